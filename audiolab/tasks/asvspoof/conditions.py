"""A test set under transmission conditions: each trial through codecs and at noise levels, never in training."""

from __future__ import annotations

import zlib

import numpy as np

from audiolab.audio.crop import fixed_length
from audiolab.augment.conditions import check_condition, degrade
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.trials import SAMPLE_RATE_HZ, SpoofingTrials
from audiolab.training.items import Item, Utterances
from audiolab.training.randomness import item_generator


class ConditionTrials(Utterances):
    """Every trial of a set under every condition, with the id `<trial>@<condition>` and the condition as codec.

    The whole recording is degraded, then cut as the plain set is. What is drawn depends on (seed, trial, condition)
    only, so neither workers nor the other conditions matter.
    """

    def __init__(self, plain: SpoofingTrials, conditions: list[str]) -> None:
        self.plain, self.conditions = plain, conditions
        self.ids = [f"{name}@{condition}" for name in plain.ids for condition in conditions]

    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Read a trial and degrade it; the evaluation order's own generator is not used."""
        trial, number = divmod(index, len(self.conditions))
        condition = self.conditions[number]
        drawn = item_generator(self.seed, zlib.crc32(condition.encode()), trial, "condition")
        wave = degrade(self.plain.wave(trial), SAMPLE_RATE_HZ, condition, drawn)
        if self.plain.num_samples is not None:
            wave = fixed_length(wave, self.plain.num_samples)
        return {**self.plain.facts(trial), "codec": condition, "wave": wave}


def check_conditions(conditions: list[str]) -> None:
    """Raise InputError for a condition that does not exist or that this machine cannot apply, and for repetitions."""
    repeated = [name for name in conditions if conditions.count(name) > 1]
    if repeated:
        raise InputError(f"data.conditions names {repeated[0]} twice: name each condition once")
    for name in conditions:
        try:
            check_condition(name)
        except InputError as error:
            raise InputError(f"data.conditions: {error}") from error
