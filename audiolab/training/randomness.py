"""Random draws that depend on (seed, epoch, item) and on nothing else: not on workers, ranks, order or restarts."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def item_generator(seed: int, epoch: int, item: int, purpose: str) -> np.random.Generator:
    """Return the generator of one item in one epoch; each purpose (`crop`, `augment`, `order` ...) has its own stream.

    >>> a = item_generator(0, epoch=3, item=7, purpose="crop").random()
    >>> a == item_generator(0, epoch=3, item=7, purpose="crop").random()
    True
    >>> a == item_generator(0, epoch=3, item=7, purpose="augment").random()
    False
    """
    return np.random.default_rng([seed, epoch, item, zlib.crc32(purpose.encode())])


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seed torch's default generators (dropout, masks inside modules) for one training step on one process."""
    entropy = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(2, np.uint32)
    torch.manual_seed(int(entropy[0]) << 32 | int(entropy[1]))
