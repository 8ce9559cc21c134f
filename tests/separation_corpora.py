"""Separation data sections as the YAML files give them, and tiny corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiolab import build
from audiolab.tasks.separation.data import SeparationData

CONF = Path(__file__).resolve().parent.parent / "conf"


def section_of(group: str, name: str, *overrides: str, task: str = "separation") -> dict[str, Any]:
    """The section of conf/<group>/<task>/<name>.yaml, with options given as `root=/x`, or `+data.x=1` for more."""
    with initialize_config_dir(str(CONF), version_base=None):
        given = (text if text.startswith("+") else f"{group}.{text}" for text in overrides)
        composed = compose(overrides=[f"+{group}={task}/{name}", *given])
    return OmegaConf.to_container(composed, resolve=True)[group]  # type: ignore[index,call-overload]


def open_data(name: str, *overrides: str, seed: int = 0) -> SeparationData:
    """The DataModule of such a section."""
    section = section_of("data", name, *overrides)
    build.check(section, "data", given=("seed", "augment"))
    return build.build(section, seed=seed)


def write_wave(path: Path, wave: np.ndarray, rate_hz: int = 8000) -> None:
    """A float WAV file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.T, rate_hz, subtype="FLOAT")


def noise_sources(num_sources: int, num_samples: int, seed: int) -> np.ndarray:
    """Gaussian sources (source, time) at about -26 dBFS, float32."""
    return 0.05 * np.random.default_rng(seed).standard_normal((num_sources, num_samples), dtype=np.float32)


def write_folders(
    folder: Path,
    parts: tuple[str, ...],
    *,
    mixture: str = "mix",
    num: int = 4,
    num_sources: int = 2,
    length: int = 4000,
) -> Path:
    """Parts with `num` mixtures m0.wav ... and their sources at 8 kHz."""
    for seed, part in enumerate(parts):
        for number in range(num):
            sources = noise_sources(num_sources, length, 100 * seed + number)
            write_wave(folder / part / mixture / f"m{number}.wav", sources.sum(axis=0))
            for index, source in enumerate(sources, 1):
                write_wave(folder / part / f"s{index}" / f"m{number}.wav", source)
    return folder
