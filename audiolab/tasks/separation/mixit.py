"""Mixture-invariant training: a loss for mixtures whose sources nobody knows.

Axes: b batch, e estimate, r mixture, p way of dealing estimates to mixtures, t time.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from audiolab.errors import InputError
from audiolab.tasks.separation.losses import Criterion, mean_of, relative_db
from audiolab.tasks.separation.pairs import Pairs, SilentReferences

_MOST_ESTIMATES = 12  # 4,096 ways of dealing


class MixITLoss(Criterion):
    """Mixture-invariant training (Wisdom et al. 2020): the model separates sums of two mixtures of the batch.

    Each of its estimates, any number, is dealt to the mixture it fits. All ways of dealing are judged from inner
    products; what is dealt to a mixture x is summed and compared with it by the SNR, 10 log10((|x - sum e|^2 + tau
    |x|^2) / |x|^2), and the loss is the mean of both. Batches need an even number of mixtures and no sources. For
    mixtures of up to N talkers the model has `num_speakers` 2 N, also in evaluation, where N of them stay quiet.

    >>> criterion = MixITLoss(soft_cap_db=30.0, silent_references="leave_out")
    >>> mixture_bt, mixtures_brt = criterion.problem(torch.eye(4)[:2], None)
    >>> mixture_bt.tolist(), tuple(mixtures_brt.shape)
    ([[1.0, 1.0, 0.0, 0.0]], (1, 2, 4))
    >>> round(criterion(torch.eye(4)[None, :2].flip(1), mixtures_brt)[0].item(), 3)
    -30.0
    """

    remixes: ClassVar[bool] = True

    def __init__(self, soft_cap_db: float, silent_references: SilentReferences) -> None:
        super().__init__(soft_cap_db)
        self.silent_references = silent_references

    def problem(self, mixture_bt: Tensor, sources_bst: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return sums of neighbouring mixtures, (batch / 2, time), and the mixtures in them, (batch / 2, 2, time)."""
        if len(mixture_bt) % 2:
            raise InputError(
                f"a batch of {len(mixture_bt)} mixtures cannot be summed in pairs, as loss=separation/mixit does: "
                "give an even data.batch_size"
            )
        mixtures_brt = mixture_bt.unflatten(0, (-1, 2))
        return mixtures_brt.sum(1), mixtures_brt

    def _refuse(self, num_estimates: int, num_sources: int) -> None:
        if num_sources != 2 or not 2 <= num_estimates <= _MOST_ESTIMATES:
            raise InputError(
                f"{num_estimates} estimates cannot be dealt to {num_sources} mixtures: loss=separation/mixit takes "
                f"sums of 2 mixtures and models with model.num_speakers from 2 to {_MOST_ESTIMATES}"
            )

    def _loss(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = Pairs(estimate_bst, sources_bst, zero_mean=False, silent=self.silent_references)
            deals_pre = _deals(estimate_bst.shape[1]).to(estimate_bst)
            dealt_bpr = torch.einsum("pre,bef,prf->bpr", deals_pre, estimate_bst @ estimate_bst.mT, deals_pre)
            shared_bpr = torch.einsum("pre,ber->bpr", deals_pre, pairs.inner_ber)
            noise_bpr = (pairs.energy_br[:, None] - 2 * shared_bpr + dealt_bpr).clamp(min=0)
            value_bpr = relative_db(noise_bpr, pairs.scale_br[:, None], self.tau)
            best_b = torch.where(pairs.counts_br[:, None], value_bpr, 0).sum(-1).argmin(-1)
        noise_brt = sources_bst - deals_pre[best_b] @ estimate_bst
        value_br = relative_db(noise_brt.square().sum(-1), pairs.scale_br, self.tau)
        return mean_of(value_br, pairs.counts_br), pairs.heard_br


@cache
def _deals(num_estimates: int) -> Tensor:
    """Return all ways of dealing estimates to two mixtures, (way, mixture, estimate) of 0 and 1."""
    second_pe = torch.tensor(list(product((0, 1), repeat=num_estimates)))
    return torch.stack([1 - second_pe, second_pe], 1)
