"""Items of a set of utterances: read, replaced where they cannot be read, and stacked into batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, default_collate

from audiolab.audio.io import AudioError
from audiolab.training.feature_cache import FeatureStore
from audiolab.training.randomness import item_generator
from audiolab.training.sampling import FILLER, Draw

Item = dict[str, Any]


@dataclass(frozen=True)
class BadItem:
    """An utterance whose audio could not be read; it travels in the batch to the main process, which counts it."""

    id: str
    error: AudioError


class Utterances(Dataset[Item | BadItem], ABC):
    """A set of utterances: `ids` in order, and `read(index, generator)` which gives one item as a dict.

    An item may list, under `bad`, what it was not made of because it could not be read.
    """

    ids: list[str]
    seed: int = 0
    features: FeatureStore | None = None
    """Where the features of a frozen encoder lie; items then have them as `states`."""

    @abstractmethod
    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Read one item; every draw comes from `generator`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: Draw) -> Item | BadItem:
        return self.item(draw, draw[1])

    def item(self, draw: Draw, index: int) -> Item | BadItem:
        """Return item `index` as the one that was drawn."""
        try:
            item = self.read(index, item_generator(self.seed, *draw, "read"))
        except AudioError as error:
            return BadItem(self.ids[index], error)
        if self.features is not None:
            item["states"] = self.features.load(item["wave"])
        return {**item, "id": self.ids[index], "draw": draw}

    def readable(self, draw: Draw, num_allowed: int) -> tuple[Item | None, list[BadItem]]:
        """Return the first readable item from the drawn one on, after at most `num_allowed` others, and those."""
        bad = []
        for number in range(min(num_allowed + 1, len(self))):
            item = self.item(draw, (draw[1] + number) % len(self))
            if not isinstance(item, BadItem):
                return item, bad
            bad.append(item)
        return None, bad


class Replacing(Dataset[Item | list[BadItem]]):
    """A training set in which the next readable utterance stands in for an unreadable one, with the draws of that one.

    So batches keep their size: an empty one would leave the other processes of DDP waiting for its gradients. After
    `num_allowed` unreadable ones in a row only those come back, and there are too many then.
    """

    def __init__(self, utterances: Utterances, num_allowed: int) -> None:
        self.utterances, self.num_allowed = utterances, num_allowed

    def __getitem__(self, draw: Draw) -> Item | list[BadItem]:
        item, bad = self.utterances.readable(draw, self.num_allowed)
        return bad if item is None else {**item, "bad": [*item.get("bad", []), *bad]}


class NeverEmpty(Dataset[Item | BadItem]):
    """An evaluation set of which every batch, also an empty one, has something for the model; see `Replacing`.

    What is put in has `FILLER` for its epoch.
    """

    def __init__(self, utterances: Utterances, num_allowed: int) -> None:
        self.utterances, self.num_allowed = utterances, num_allowed

    def __getitems__(self, draws: list[Draw]) -> list[Item | BadItem]:
        items = [self.utterances[draw] for draw in draws]
        if any(not isinstance(item, BadItem) for item in items):
            return items
        item, bad = self.utterances.readable((0, draws[-1][1] if draws else 0), self.num_allowed)
        return [*items, *bad] if item is None else [*items, *bad, {**item, "draw": (FILLER, 0)}]


def collate(items: list[Item | BadItem | list[BadItem]]) -> dict[str, Any]:
    """Stack the good items; bad ones are listed under `bad`, draws and ids stay lists."""
    batch: dict[str, Any] = {"bad": []}
    good = []
    for item in items:
        if isinstance(item, BadItem):
            batch["bad"].append(item)
        elif isinstance(item, list):
            batch["bad"] += item
        else:
            batch["bad"] += item.pop("bad", [])
            good.append(item)
    if good:
        batch |= {key: [item[key] for item in good] for key in ("id", "draw")}
        batch |= default_collate([{k: v for k, v in item.items() if k not in ("id", "draw")} for item in good])
    return batch
