"""Which estimate belongs to which reference, from the inner products of all pairs: what the losses of an order share.

Axes: b batch, s speaker, e estimate, r reference, t time.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from audiolab.metrics.separation import best_permutation

SilentReferences = Literal["leave_out", "suppress"]
INAUDIBLE = 1e-12
"""Share of a reference's energy below which an estimate counts as silent."""
WORST = 1e-8
"""-80 dB: the share of an estimate's energy that counts as signal where nothing of it is."""


class Pairs:
    """Energies and inner products of all pairs of an estimate and a reference, (batch, speaker, time), no gradients.

    `heard_br` says which references have sound, `counts_br` which of them count in a loss, and `scale_br` is the energy
    that each is judged by: its own, and with `suppress` that of all references for a silent one.

    >>> pairs = Pairs(torch.eye(2)[None].flip(1), torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), False, "leave_out")
    >>> pairs.inner_ber.tolist(), pairs.counts_br.tolist()
    ([[[0.0, 0.0], [3.0, 0.0]]], [[True, False]])
    >>> pairs.order(pairs.distance()).tolist()
    [[1, 0]]
    """

    @torch.no_grad()
    def __init__(
        self, estimate_bst: Tensor, reference_bst: Tensor, zero_mean: bool, silent: SilentReferences = "leave_out"
    ) -> None:
        least_br = torch.finfo(reference_bst.dtype).tiny / (INAUDIBLE * WORST)
        self._reference_bst, self.energy_be = reference_bst, _energy(estimate_bst)
        if zero_mean:
            num_samples, mean_br = reference_bst.shape[-1], reference_bst.mean(-1)
            self._reference_bst = reference_bst - mean_br[..., None]
            self.energy_be = (self.energy_be - num_samples * estimate_bst.mean(-1).square()).clamp(min=0)
            rounding = (10 * torch.finfo(reference_bst.dtype).eps) ** 2  # what may be left of a constant
            least_br = least_br + rounding * num_samples * mean_br.square()
        self.inner_ber = torch.bmm(estimate_bst, self._reference_bst.mT)
        self.energy_br = _energy(self._reference_bst)
        self.heard_br = self.energy_br > least_br
        total_br = torch.where(self.heard_br, self.energy_br, 0).sum(-1, keepdim=True).expand_as(self.energy_br)
        self.counts_br = self.heard_br if silent == "leave_out" else total_br > 0
        self.scale_br = torch.where(self.heard_br, self.energy_br, torch.where(self.counts_br, total_br, 1))

    def distance(self) -> Tensor:
        """Return |e - r|^2 of all pairs, (batch, estimate, reference)."""
        return (self.energy_be[..., None] - 2 * self.inner_ber + self.energy_br[:, None]).clamp(min=0)

    def order(self, loss_ber: Tensor) -> Tensor:
        """Return the estimate of each reference, (batch, reference), with the least sum over those that count."""
        return best_permutation(-torch.where(self.counts_br[:, None], loss_ber, 0).nan_to_num())

    def match(self, order_br: Tensor) -> tuple[Tensor, Tensor]:
        """Return each estimate's reference, (batch, estimate, time), less its mean if so asked, and its index."""
        place_be = order_br.argsort(-1)
        return self._reference_bst[torch.arange(len(place_be), device=place_be.device)[:, None], place_be], place_be


def _energy(signal: Tensor) -> Tensor:
    return torch.linalg.vector_norm(signal, dim=-1).square()
