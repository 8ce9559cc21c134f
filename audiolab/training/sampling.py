"""Which items make up which batch on which process.

A batch is a list of draws (epoch, item): the dataset gets the epoch with the item, so that its generators need no
state in the workers.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from audiolab.errors import InputError
from audiolab.training.randomness import item_generator

Draw = tuple[int, int]
FILLER = -1
"""In place of the epoch of a draw: an item that only keeps the processes in step, and counts for nothing."""


class TrainBatches(Sampler[list[Draw]]):
    """Shuffled batches of one process; the permutation is a function of (seed, epoch).

    The global batch of `world_size x batch_size` items is dealt out to the processes, so two processes with batches of
    B see together what one process with batches of 2 B sees. The incomplete last batch of an epoch is dropped.
    `resume_at(epoch, batch)` makes the next iteration start there without reading what came before.

    >>> list(TrainBatches(num_items=5, batch_size=2, seed=0)) == list(TrainBatches(num_items=5, batch_size=2, seed=0))
    True
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if num_items < batch_size * world_size:
            raise InputError(
                f"the training set has {num_items} items, fewer than one batch of data.batch_size={batch_size} on "
                f"{world_size} process(es): lower data.batch_size to {max(1, num_items // world_size)} or less"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with batch number `batch` of `epoch`."""
        self.epoch, self.start = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the starting point."""
        return self.num_items // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = item_generator(self.seed, self.epoch, 0, "order").permutation(self.num_items)
        step = self.batch_size * self.world_size
        for batch in range(self.start, len(self)):
            items = order[batch * step : (batch + 1) * step][self.rank :: self.world_size]
            yield [(self.epoch, int(item)) for item in items]


class EvalBatches(Sampler[list[Draw]]):
    """Every item exactly once over all processes: rank r takes range(r, N, world), nothing is padded or repeated.

    A process without items gets an empty batch: Lightning would leave the evaluation out there, and the others wait.
    With `equal` all processes have the same number of batches, some of them empty.

    >>> list(EvalBatches(num_items=5, batch_size=2, rank=1, world_size=2))
    [[(0, 1), (0, 3)]]
    >>> list(EvalBatches(num_items=1, batch_size=2, rank=1, world_size=2))
    [[]]
    >>> list(EvalBatches(num_items=3, batch_size=1, rank=1, world_size=2, equal=True))
    [[(0, 1)], []]
    """

    def __init__(
        self, num_items: int, batch_size: int, rank: int = 0, world_size: int = 1, *, equal: bool = False
    ) -> None:
        self.items = range(rank, num_items, world_size)
        self.batch_size = batch_size
        self.most = -(-num_items // world_size) if equal else len(self.items)

    def __len__(self) -> int:
        return max(1, -(-self.most // self.batch_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in range(0, max(1, self.most), self.batch_size):
            yield [(0, item) for item in self.items[first : first + self.batch_size]]
