"""Codecs as an augmentation: each training utterance goes through one codec, drawn from its own generator."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from audiolab.augment.codecs import CODECS, FAMILIES, find_codec, round_trip
from audiolab.errors import InputError

NO_CODEC = "none"


class CodecAugment:
    """One codec for each utterance with probability `p`, drawn evenly from `codecs`.

    An entry of `codecs` is a codec (`mp3_32kbps`) or a family (`mp3`), which stands for one of its members, drawn
    evenly in turn. G.711 and `resample` run in batch on the waveforms' device; other codecs run row by row on the CPU,
    in `num_threads` threads. Raises InputError for an unknown codec and for one that is not installed.

    >>> augment = CodecAugment(["resample", "g711_mulaw"], p=1.0, sample_rate=16000, num_threads=1)
    >>> augment(torch.zeros(2, 1600), [np.random.default_rng(seed) for seed in (1, 2)]).shape
    torch.Size([2, 1600])
    """

    def __init__(self, codecs: list[str], p: float, sample_rate: int, num_threads: int) -> None:
        if not 0.0 <= p <= 1.0:
            raise InputError(f"codecs are to be applied with probability {p}: give a number from 0 to 1.")
        if not codecs:
            raise InputError("the list of codecs is empty: name some, or leave this augmentation out.")
        if num_threads < 1:
            raise InputError(f"codecs were given {num_threads} threads: give 1 or more.")
        self.choices = [_members(name) for name in codecs]
        for name in {name for members in self.choices for name in members}:
            find_codec(name)
        self.p, self.sample_rate, self.num_threads = p, sample_rate, num_threads

    def draw(self, num_samples: int, generator: np.random.Generator) -> str:
        """The codec for one waveform, or `none`."""
        if self.p < 1.0 and generator.random() >= self.p:
            return NO_CODEC
        members = self.choices[generator.integers(len(self.choices))]
        return members[generator.integers(len(members))]

    def apply(self, waveforms: torch.Tensor, draws: Sequence[str]) -> torch.Tensor:
        """`waveforms` (batch, time), each through the codec drawn for it; a new tensor."""
        coded_bt = waveforms.clone()
        for codec in sorted(set(draws) - {NO_CODEC}):
            rows = [row for row, name in enumerate(draws) if name == codec]
            coded_bt[rows] = round_trip(waveforms[rows], self.sample_rate, codec, self.num_threads)
        return coded_bt

    def describe(self, draw: str) -> dict[str, Any]:
        """What was drawn, for a record."""
        return {"codec": draw}

    def __call__(self, waveforms: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
        """Coded copies of `waveforms` (batch, time), one generator a row."""
        return self.apply(waveforms, [self.draw(waveforms.shape[-1], generator) for generator in generators])


def _members(name: str) -> tuple[str, ...]:
    if name in FAMILIES:
        return FAMILIES[name]
    if name not in CODECS:
        known = [*FAMILIES, *CODECS]
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"there is no codec {name!r}; did you mean {nearest!r}? Give a family, {', '.join(FAMILIES)}, "
            f"or a member of one, such as {', '.join(members[0] for members in FAMILIES.values())}."
        )
    return (name,)
