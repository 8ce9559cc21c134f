"""Mixup: training on sums of two utterances, with the losses of their labels in the same proportion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """One draw for a batch: row b becomes `share` x itself + (1 - share) x row `partner_b[b]` (Zhang et al. 2018).

    >>> mixup = Mixup(0.75, torch.tensor([1, 0]))
    >>> mixup.mix(torch.tensor([[4.0], [8.0]])).tolist()
    [[5.0], [7.0]]
    >>> mixup.dominant(torch.tensor([0, 1])).tolist()
    [0, 1]
    """

    share: float
    partner_b: Tensor

    @classmethod
    def draw(cls, batch_size: int, alpha: float) -> Mixup:
        """Draw the share from Beta(alpha, alpha) and a permutation of the batch.

        Both come from torch's default CPU generator, which is seeded for every training step.
        """
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        return cls(share, torch.randperm(batch_size))

    def mix(self, x_bt: Tensor) -> Tensor:
        """Mix the rows of a batch."""
        return self.share * x_bt + (1 - self.share) * x_bt[self.partner_b.to(x_bt.device)]

    def dominant(self, label_b: Tensor) -> Tensor:
        """Return the label that has the larger share in each mixed row."""
        return label_b if self.share >= 0.5 else label_b[self.partner_b.to(label_b.device)]

    def loss(self, loss_of: Callable[[Tensor], Tensor], label_b: Tensor) -> Tensor:
        """Return the losses against both labels of each mixed row, in proportion."""
        partner_label_b = label_b[self.partner_b.to(label_b.device)]
        return self.share * loss_of(label_b) + (1 - self.share) * loss_of(partner_label_b)
