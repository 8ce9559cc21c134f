"""Several augmentations one after the other, each with draws of its own, which can be recorded and replayed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from audiolab.errors import InputError


class Augmentation(Protocol):
    """What a step of a chain is: drawing is separate from applying, which uses no random number of its own."""

    def draw(self, num_samples: int, generator: np.random.Generator) -> Any:
        """Everything random about one waveform of `num_samples`."""

    def apply(self, waveforms: torch.Tensor, draws: Sequence[Any]) -> torch.Tensor:
        """`waveforms` (batch, time) changed by the draws, one a row; a new tensor on the same device."""

    def describe(self, draw: Any) -> dict[str, Any]:
        """What was drawn as short JSON types."""


@dataclass(frozen=True)
class ChainDraw:
    """The draws of all steps for one waveform; they follow from `key`."""

    key: int
    num_samples: int
    steps: tuple[Any, ...]


class Chain:
    """Augmentations by name, applied in `order`.

    Each utterance's generator gives one number, its key, and every step draws from a generator of its own, made of
    that key and the step's name: neither its place nor another step changes what a step draws.
    `record` asks the training loop to keep what was drawn for every item (`describe`); `replay` makes the same
    waveform from such a record. InputError where `order` does not name every step once.

    >>> from audiolab.augment.noise import NoiseAugment
    >>> chain = Chain({"noise": NoiseAugment(["white"], 20, 20, p=1.0)}, order=["noise"], record=False)
    >>> chain(torch.ones(2, 800), [np.random.default_rng(seed) for seed in (1, 2)]).shape
    torch.Size([2, 800])
    """

    def __init__(self, steps: Mapping[str, Augmentation], order: list[str], record: bool) -> None:
        if sorted(order) != sorted(steps):
            raise InputError(
                f"the order of augmentations is {', '.join(order) or 'empty'} and the steps are {', '.join(steps)}: "
                "name every step once (augment.order)."
            )
        for name, step in steps.items():
            if not all(hasattr(step, method) for method in ("draw", "apply", "describe")):
                raise InputError(f"the step {name} of the augmentation is a {type(step).__name__}, which cannot draw.")
        self.steps = {name: steps[name] for name in order}
        self.record = record

    @property
    def only_adds(self) -> bool:
        """Whether every step only adds to a waveform, so that what was in it is in it still, unchanged.

        A step says so by an attribute `only_adds`; filters, gains and codecs have none.
        """
        return all(getattr(step, "only_adds", False) for step in self.steps.values())

    def draw(self, num_samples: int, generator: np.random.Generator) -> ChainDraw:
        """The draws of every step for one waveform."""
        return self._draw(num_samples, int(generator.integers(2**63)))

    def apply(self, waveforms: torch.Tensor, draws: Sequence[ChainDraw]) -> torch.Tensor:
        """`waveforms` (batch, time) through all steps."""
        for number, step in enumerate(self.steps.values()):
            waveforms = step.apply(waveforms, [draw.steps[number] for draw in draws])
        return waveforms

    def describe(self, draw: ChainDraw) -> dict[str, Any]:
        """What was drawn, as JSON types: for reading, and for `replay`, which needs the key only."""
        described = zip(self.steps.items(), draw.steps, strict=True)
        return {
            "key": draw.key,
            "num_samples": draw.num_samples,
            "steps": [{"step": name, **step.describe(drawn)} for (name, step), drawn in described],
        }

    def replay(self, waveforms: torch.Tensor, records: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """`waveforms` (batch, time) changed once more as recorded by `describe`, one record a row.

        Raises InputError for a record that this chain did not make, or not for waveforms of this length.
        """
        draws = [self._draw(waveforms.shape[-1], record["key"]) for record in records]
        for draw, record in zip(draws, records, strict=True):
            if self.describe(draw) != {name: record[name] for name in ("key", "num_samples", "steps")}:
                raise InputError(
                    f"the record of {record.get('id', 'an utterance')} does not follow from its key "
                    f"{record['key']} here: replay it with the options of its run and {record['num_samples']} samples."
                )
        return self.apply(waveforms, draws)

    def __call__(self, waveforms: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
        """`waveforms` (batch, time) through all steps, one generator a row."""
        return self.apply(waveforms, [self.draw(waveforms.shape[-1], generator) for generator in generators])

    def _draw(self, num_samples: int, key: int) -> ChainDraw:
        generators = [np.random.default_rng([key, zlib.crc32(name.encode())]) for name in self.steps]
        draws = zip(self.steps.values(), generators, strict=True)
        return ChainDraw(key, num_samples, tuple(step.draw(num_samples, generator) for step, generator in draws))
