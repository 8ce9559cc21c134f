"""What augmentation drew for every training item, one JSON line each, in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audiolab.errors import InputError
from audiolab.training.sampling import Draw


class AugmentationLog:
    """Appends to `augmentations_rank<rank>.jsonl`: `epoch`, `item`, `id`, then what the augmentation describes.

    A resumed run repeats the lines of the batches after its checkpoint; they are equal, since draws depend on (seed,
    epoch, item) only.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"augmentations_rank{rank}.jsonl"

    def write(self, draws: Sequence[Draw], ids: Sequence[str], described: Sequence[dict[str, Any]]) -> None:
        """Write the lines of one batch."""
        with self.path.open("a", encoding="utf-8") as file:
            for (epoch, item), name, record in zip(draws, ids, described, strict=True):
                file.write(json.dumps({"epoch": epoch, "item": item, "id": name, **record}) + "\n")


def read_augmentations(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run, of all its processes, each (epoch, item) once.

    Raises InputError when the run kept none.
    """
    paths = sorted(folder.glob("augmentations_rank*.jsonl"))
    if not paths:
        raise InputError(f"{folder} has no record of its augmentations: train with augment.record=true.")
    seen = set()
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if (record["epoch"], record["item"]) not in seen:
                    seen.add((record["epoch"], record["item"]))
                    yield record
