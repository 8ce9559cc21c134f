"""Whether the disk of a run will hold its next checkpoints."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

GROWTH_EPOCHS = 4  # the first ones add the files that later ones replace


def checkpoint_bytes(folder: Path) -> int:
    """Return the size of the largest checkpoint in a folder; 0 while there is none."""
    sizes = []
    for path in folder.glob("*.ckpt"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # replaced at this moment
            continue
    return max(sizes, default=0)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder lies on."""
    return shutil.disk_usage(folder).free


def disk_warning(free: Sequence[int], checkpoint: int, epochs_left: int | None, num_checkpoints: int) -> str | None:
    """Say in a sentence that a disk fills up, or None.

    `free` holds its free bytes, at the start and after each epoch since; `checkpoint` is the size of one. Said is that
    fewer than `num_checkpoints` fit, or that at the rate of the latest epochs (the least of four, so that checkpoints
    which replace one another do not count) that will be so before the last epoch.

    >>> disk_warning([10_000_000_000, 900_000_000], 300_000_000, epochs_left=8, num_checkpoints=4)
    'the disk has 0.9 GB left, and a checkpoint of this run takes 0.3 GB'
    >>> disk_warning([40_000_000_000, 39_000_000_000], 300_000_000, epochs_left=8, num_checkpoints=4)
    """
    room = free[-1] - num_checkpoints * checkpoint
    if checkpoint and room < 0:
        return f"the disk has {_gb(free[-1])} left, and a checkpoint of this run takes {_gb(checkpoint)}"
    recent = free[-GROWTH_EPOCHS - 1 :]
    growth = min((before - after for before, after in itertools.pairwise(recent)), default=0)
    if len(recent) <= GROWTH_EPOCHS or growth <= 0 or epochs_left is None or room >= growth * epochs_left:
        return None
    return (
        f"the disk loses {_gb(growth)} an epoch and has {_gb(free[-1])} left: it will be full in about "
        f"{max(1, int(free[-1] // growth))} epochs, and {epochs_left} are to come"
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.0f} MB"
