"""Trials with their audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiolab.audio.crop import fixed_length
from audiolab.audio.io import read_audio
from audiolab.tasks.asvspoof.protocols import BONAFIDE, Trial
from audiolab.training.items import Item, Utterances

SAMPLE_RATE_HZ = 16_000
FACTS = ("speaker", "attack", "codec", "vocoder", "source", "corpus")
"""What a score table tells of a trial besides its label; the last four only where the set has them."""


class SpoofingTrials(Utterances):
    """Trials with their audio: `wave` (time,) at 16 kHz, `label` 1 for bona fide and 0 for spoof, and their facts.

    `num_samples` fixes the length: a drawn window with `random_crop`, else the first samples; None keeps the whole.
    With `in_memory` the decoded audio is kept after the first reading (64 kB a second and process).
    """

    def __init__(
        self, trials: list[Trial], paths: list[str], num_samples: int | None, *, random_crop: bool, in_memory: bool
    ) -> None:
        self.trials, self.paths, self.num_samples, self.random_crop = trials, paths, num_samples, random_crop
        self.ids = [trial.id for trial in trials]
        told = [name for name in FACTS[2:] if any(getattr(trial, name) != "-" for trial in trials)]
        self._told = (*FACTS[:2], *told)
        self._decoded: dict[int, np.ndarray] | None = {} if in_memory else None

    def path(self, index: int) -> Path:
        """Return the audio file of a trial."""
        return Path(self.paths[index])

    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Read one trial."""
        wave = self.wave(index)
        if self.num_samples is not None:
            wave = fixed_length(wave, self.num_samples, generator if self.random_crop else None)
        return {**self.facts(index), "wave": wave}

    def facts(self, index: int) -> Item:
        """Return label and facts of a trial."""
        trial = self.trials[index]
        return {"label": int(trial.label == BONAFIDE)} | {name: getattr(trial, name) for name in self._told}

    def wave(self, index: int) -> np.ndarray:
        """Return the whole recording of a trial, (time,)."""
        if self._decoded is not None and index in self._decoded:
            return self._decoded[index]
        wave, _ = read_audio(self.path(index), sample_rate=SAMPLE_RATE_HZ)
        if self._decoded is not None:
            self._decoded[index] = wave
        return wave
