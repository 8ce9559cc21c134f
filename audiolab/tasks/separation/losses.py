"""Losses of separation: estimates and sources (batch, speaker, time), in dB, lower is better.

Which estimate is which talker is decided utterance by utterance (Kolbaek et al. 2017), from the inner products of all
pairs: one matrix product, without gradients. The loss itself is computed from the matched signals, as differences of
inner products say nothing beyond 60 dB in float32. All constants are relative to the energy of a reference, so levels
do not matter. Half-precision estimates are judged in float32.

Axes: b batch, s speaker, e estimate, r reference, t time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.nn.by_hand import once
from audiolab.tasks.separation.pairs import INAUDIBLE, WORST, Pairs, SilentReferences
from audiolab.training.limits import check_range

_DB = 10 / math.log(10)  # of a natural logarithm


class Criterion(nn.Module, ABC):
    """A loss of separated signals: `criterion(estimate_bst, sources_bst)` is the mean over the batch, and its parts.

    `soft_cap_db` is where a better estimate stops to matter: 10^(-soft_cap_db / 10) of the reference's energy is added
    to the distortion, so gradients fade near the cap and are finite for a perfect estimate (Wisdom et al. 2020, who
    take 30 dB; 80 dB is hardly a cap). A criterion that `remixes` learns from mixtures alone.

    References that are silent throughout, as a talker may be in a short crop, have no ratio. `leave_out`: an
    utterance's loss is the mean over the others. `suppress`: the estimate's energy takes the place of the distortion,
    that of all references the place of the reference, so silence is learned down to the cap (as Wisdom et al. 2021).
    An utterance without any sound counts as 0. The share of silent references is among the parts.
    """

    remixes: ClassVar[bool] = False

    def __init__(self, soft_cap_db: float) -> None:
        super().__init__()
        check_range("loss.soft_cap_db", soft_cap_db, most=150, above=0)
        self.tau = 10 ** (-soft_cap_db / 10)

    def problem(self, mixture_bt: Tensor, sources_bst: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what the model gets to separate, and what its estimates are compared with: here, what was given."""
        return mixture_bt, sources_bst

    def forward(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch, and `silent_references`, the share of references without sound.

        Raises InputError for an estimate of other speakers or samples than the sources.
        """
        loss_b, heard_br = self._judged(estimate_bst, sources_bst)
        return loss_b.mean(), {"silent_references": 1 - heard_br.float().mean()}

    def _judged(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        if estimate_bst.ndim != 3 or sources_bst.ndim != 3 or estimate_bst.shape[::2] != sources_bst.shape[::2]:
            raise InputError(
                f"estimates of shape {tuple(estimate_bst.shape)} cannot be compared with sources of shape "
                f"{tuple(sources_bst.shape)}: both must be (batch, speaker, time), with the same batch and time"
            )
        self._refuse(estimate_bst.shape[1], sources_bst.shape[1])
        dtype = torch.float64 if estimate_bst.dtype == torch.float64 else torch.float32
        with torch.autocast(estimate_bst.device.type, enabled=False):
            return self._loss(estimate_bst.to(dtype), sources_bst.detach().to(dtype))

    def _refuse(self, num_estimates: int, num_sources: int) -> None:
        """Raise InputError where so many estimates cannot be compared with so many sources."""
        if num_estimates != num_sources:
            raise InputError(
                f"the model separates {num_estimates} speakers, the mixtures have {num_sources}: give "
                f"model.num_speakers={num_sources}, or data with {num_estimates}"
            )

    @abstractmethod
    def _loss(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each utterance, (batch,), and which references are heard, (batch, reference)."""


class SISDRLoss(Criterion):
    """Negative scale-invariant SDR (Le Roux et al. 2019) in the best order of the estimates.

    10 log10((|n|^2 + tau |a s|^2) / |a s|^2) with a = <e, s> / |s|^2, n = e - a s and tau of `soft_cap_db`: the level
    of an estimate is free. `zero_mean` takes the mean of both signals away first. An estimate that is silent, or has
    nothing of the reference, counts as +80 dB.

    >>> s = torch.eye(3)[None]
    >>> loss, parts = SISDRLoss(soft_cap_db=30.0, zero_mean=False, silent_references="leave_out")(2 * s.flip(1), s)
    >>> round(loss.item(), 3)
    -30.0
    """

    def __init__(self, soft_cap_db: float, zero_mean: bool, silent_references: SilentReferences) -> None:
        super().__init__(soft_cap_db)
        self.zero_mean, self.silent_references = zero_mean, silent_references

    def _loss(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = Pairs(estimate_bst, sources_bst, self.zero_mean, self.silent_references)
            gain_ber = torch.where(pairs.heard_br, 1 / pairs.scale_br, 0)[:, None] * pairs.inner_ber
            target_ber = gain_ber * pairs.inner_ber
            noise_ber = (pairs.energy_be[..., None] - target_ber).clamp(min=0)
            order_br = pairs.order(self._value(target_ber, noise_ber, pairs.scale_br[:, None], pairs.heard_br[:, None]))
            reference_bst, place_be = pairs.match(order_br)
            scale_be, heard_be, counts_be = (
                value.gather(1, place_be) for value in (pairs.scale_br, pairs.heard_br, pairs.counts_br)
            )
            gain_be = gain_ber.gather(2, place_be[..., None])[..., 0]
        target_be, noise_be = _Projection.apply(estimate_bst, reference_bst, gain_be, scale_be, self.zero_mean)
        return mean_of(self._value(target_be, noise_be, scale_be, heard_be), counts_be), pairs.heard_br

    def _value(self, target: Tensor, noise: Tensor, scale: Tensor, heard: Tensor) -> Tensor:
        noise = noise + INAUDIBLE * scale
        ratio = (noise + self.tau * target) / (target + WORST * (target + noise))
        return _DB * torch.where(heard, ratio, noise / scale + self.tau).log()


class SNRLoss(Criterion):
    """Negative signal-to-noise ratio in the best order of the estimates: level and sign of an estimate count.

    10 log10((|e - s|^2 + tau |s|^2) / |s|^2), tau of `soft_cap_db`. A silent estimate counts as 0 dB.

    >>> s = torch.eye(2)[None]
    >>> round(SNRLoss(soft_cap_db=80.0, silent_references="leave_out")(0.9 * s.flip(1), s)[0].item(), 3)
    -20.0
    """

    def __init__(self, soft_cap_db: float, silent_references: SilentReferences) -> None:
        super().__init__(soft_cap_db)
        self.silent_references = silent_references

    def _loss(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = Pairs(estimate_bst, sources_bst, zero_mean=False, silent=self.silent_references)
            order_br = pairs.order(relative_db(pairs.distance(), pairs.scale_br[:, None], self.tau))
            reference_bst, place_be = pairs.match(order_br)
            scale_be, counts_be = (value.gather(1, place_be) for value in (pairs.scale_br, pairs.counts_br))
        noise_be = (estimate_bst - reference_bst).square().sum(-1)
        return mean_of(relative_db(noise_be, scale_be, self.tau), counts_be), pairs.heard_br


class SASDRLoss(Criterion):
    """Negative source-aggregated SDR (von Neumann et al. 2022): energies are summed over talkers before the ratio.

    10 log10(sum |e - s|^2 / sum |s|^2 + tau), tau of `soft_cap_db`, in the order with the least distortion. A silent
    reference needs no policy: whatever its estimate holds is distortion. An utterance without any sound counts as 0.

    >>> s = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> round(SASDRLoss(soft_cap_db=80.0)(s + 0.1, s)[0].item(), 2)
    -13.98
    """

    def _loss(self, estimate_bst: Tensor, sources_bst: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = Pairs(estimate_bst, sources_bst, zero_mean=False, silent="suppress")
            reference_bst, _ = pairs.match(pairs.order(-pairs.inner_ber))
        noise_b = (estimate_bst - reference_bst).square().sum((-1, -2))
        total_b, heard_b = pairs.energy_br.sum(-1), pairs.heard_br.any(-1)
        value_b = relative_db(noise_b, torch.where(heard_b, total_b, 1), self.tau)
        return torch.where(heard_b, value_b, 0), pairs.heard_br


def relative_db(noise: Tensor, scale: Tensor, tau: float) -> Tensor:
    """Return the energy of distortion relative to another one, at least `tau`, in dB.

    >>> relative_db(torch.tensor(0.0), torch.tensor(4.0), tau=1e-3).item()
    -30.0
    """
    return _DB * (noise / scale + tau).log()


def mean_of(value_bs: Tensor, counts_bs: Tensor) -> Tensor:
    """Return the mean of what counts in each row, 0 where nothing does.

    >>> mean_of(torch.tensor([[1.0, 5.0], [1.0, 2.0]]), torch.tensor([[True, False], [False, False]])).tolist()
    [1.0, 0.0]
    """
    return torch.where(counts_bs, value_bs, 0).sum(-1) / counts_bs.sum(-1).clamp(min=1)


class _Projection(torch.autograd.Function):
    """Energy of the projection of estimates on references, and of the rest; one tensor of their size is kept."""

    @staticmethod
    def forward(
        ctx: Any, estimate: Tensor, reference: Tensor, gain: Tensor, energy: Tensor, zero_mean: bool
    ) -> tuple[Tensor, Tensor]:
        noise = torch.addcmul(estimate, reference, gain[..., None], value=-1)
        if zero_mean:
            noise -= noise.mean(-1, keepdim=True)  # the reference has none any more
        ctx.save_for_backward(noise, reference, gain)
        return gain.square() * energy, torch.linalg.vector_norm(noise, dim=-1).square()

    @staticmethod
    @once
    def backward(ctx: Any, of_target: Tensor, of_noise: Tensor) -> tuple[Tensor, None, None, None, None]:
        noise, reference, gain = ctx.saved_tensors
        gradient = (2 * of_noise)[..., None] * noise
        return gradient.addcmul_(reference, (2 * of_target * gain)[..., None]), None, None, None, None
