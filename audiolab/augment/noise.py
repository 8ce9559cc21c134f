"""Additive white or pink noise at a signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from audiolab.errors import InputError

NOISES = ("white", "pink")


@dataclass(frozen=True)
class NoiseDraw:
    """Noise of one waveform: its kind, its level below the speech, and the seed of its samples."""

    kind: str
    snr_db: float
    seed: int


class NoiseAugment:
    """Noise added to each utterance with probability `p`, its kind and signal-to-noise ratio (dB) drawn evenly.

    Speech and noise powers are means over the whole utterance. Silence stays silence; nothing is clipped.

    >>> augment = NoiseAugment(["white", "pink"], min_snr_db=10, max_snr_db=30, p=1.0)
    >>> augment(torch.ones(2, 800), [np.random.default_rng(seed) for seed in (1, 2)]).shape
    torch.Size([2, 800])
    """

    only_adds = True

    def __init__(self, kinds: list[str], min_snr_db: float, max_snr_db: float, p: float) -> None:
        unknown = [kind for kind in kinds if kind not in NOISES]
        if unknown or not kinds:
            raise InputError(f"the kinds of noise are {list(kinds)}: give some of {', '.join(NOISES)}.")
        if not min_snr_db <= max_snr_db:
            raise InputError(f"noise has min_snr_db {min_snr_db} above max_snr_db {max_snr_db}: exchange them.")
        if not 0.0 <= p <= 1.0:
            raise InputError(f"noise is to be added with probability {p}: give a number from 0 to 1.")
        self.kinds, self.min_snr_db, self.max_snr_db, self.p = list(kinds), min_snr_db, max_snr_db, p

    def draw(self, num_samples: int, generator: np.random.Generator) -> NoiseDraw | None:
        """The noise for one waveform, or None where `p` decides against it."""
        if self.p < 1.0 and generator.random() >= self.p:
            return None
        kind = self.kinds[generator.integers(len(self.kinds))]
        return NoiseDraw(kind, generator.uniform(self.min_snr_db, self.max_snr_db), int(generator.integers(2**32)))

    def apply(self, waveforms: torch.Tensor, draws: Sequence[NoiseDraw | None]) -> torch.Tensor:
        """`waveforms` (batch, time) with the noise drawn for each; a new tensor."""
        noisy_bt = waveforms.clone()
        for row, drawn in enumerate(draws):
            if drawn is not None:
                generator = np.random.default_rng(drawn.seed)
                noise = colored_noise(drawn.kind, waveforms.shape[-1], generator)
                noisy_bt[row] = add_noise(waveforms[row], torch.from_numpy(noise).to(waveforms), drawn.snr_db)
        return noisy_bt

    def describe(self, draw: NoiseDraw | None) -> dict[str, Any]:
        """What was drawn, for a record."""
        return asdict(draw) if draw else {"kind": "none"}

    def __call__(self, waveforms: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
        """Noisy copies of `waveforms` (batch, time), one generator a row."""
        return self.apply(waveforms, [self.draw(waveforms.shape[-1], generator) for generator in generators])


def colored_noise(kind: str, num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise, float32 (time,): `white`, or `pink` with a power spectrum of 1/f and no mean.

    >>> colored_noise("pink", 4, np.random.default_rng(0)).dtype
    dtype('float32')
    """
    white = generator.standard_normal(num_samples, dtype=np.float32)
    if kind == "white":
        return white
    if kind != "pink":
        raise InputError(f"there is no noise {kind!r}: the kinds are {', '.join(NOISES)}.")
    spectrum = np.fft.rfft(white)
    amplitude = np.zeros(len(spectrum))
    amplitude[1:] = 1.0 / np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum * amplitude, n=num_samples).astype(np.float32)


def add_noise(wave: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """`wave` plus `noise`, both (time,), the noise scaled so that the power ratio of the two is `snr_db`.

    >>> add_noise(torch.tensor([1.0, -1.0]), torch.tensor([5.0, 5.0]), snr_db=20.0)
    tensor([ 1.1000, -0.9000])
    """
    tiny = torch.finfo(wave.dtype).tiny  # noise of zeros stays zeros
    scale = torch.linalg.vector_norm(wave) / torch.linalg.vector_norm(noise).clamp_min(tiny)
    return wave + noise * (scale * 10 ** (-snr_db / 20))
