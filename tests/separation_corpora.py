"""Separation data sections as the YAML files give them, and tiny corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from audiolab import build
from audiolab.tasks.separation.data import SeparationData

CONF = Path(__file__).resolve().parent.parent / "conf"


def data_section(name: str, *overrides: str) -> dict[str, Any]:
    """The data section separation/<name>, with options given as `root=/x`."""
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(overrides=[f"+data=separation/{name}", *(f"data.{text}" for text in overrides)])
    return OmegaConf.to_container(composed, resolve=True)["data"]  # type: ignore[index,call-overload]


def open_data(name: str, *overrides: str, seed: int = 0) -> SeparationData:
    """The DataModule of such a section."""
    section = data_section(name, *overrides)
    build.check(section, "data", given=("seed", "augment"))
    return build.build(section, seed=seed)
