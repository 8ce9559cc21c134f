"""Norms of convolutional separators over (batch, channel, time) (Luo and Mesgarani 2019, section II-D)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolab.nn.frame_norm import CumulativeSums, channelwise_norm, cumulative_norm

NormName = Literal["gLN", "cLN", "channelwise", "BN"]
EPS = 1e-8


class GlobalLayerNorm(nn.Module):
    """gLN: mean and variance over all channels and frames of an utterance; not causal."""

    def __init__(self, num_channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return F.group_norm(x_bct, 1, self.weight, self.bias, self.eps)


class CumulativeLayerNorm(GlobalLayerNorm):
    """cLN: mean and variance over all channels of the frames up to the present one; causal."""

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return self.step(x_bct, None)[0]

    def step(self, x_bct: Tensor, sums: CumulativeSums | None) -> tuple[Tensor, CumulativeSums]:
        """Normalise the next frames of a stream, given the sums over those before."""
        return cumulative_norm(x_bct, self.weight, self.bias, self.eps, sums)


class ChannelwiseLayerNorm(GlobalLayerNorm):
    """Mean and variance over the channels of each frame by itself; causal. Some libraries call this cLN."""

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return channelwise_norm(x_bct, self.weight, self.bias, self.eps)


def make_norm(name: NormName, num_channels: int, eps: float | None = None) -> nn.Module:
    """Return the norm of that name: gLN, cLN (cumulative), channelwise, BN (batch norm).

    Without `eps` the variance gets 1e-8 added, 1e-5 in a batch norm.

    >>> make_norm("cLN", 4)(torch.zeros(1, 4, 5)).shape
    torch.Size([1, 4, 5])
    """
    kinds = {"gLN": GlobalLayerNorm, "cLN": CumulativeLayerNorm, "channelwise": ChannelwiseLayerNorm}
    added = {} if eps is None else {"eps": eps}
    return nn.BatchNorm1d(num_channels, **added) if name == "BN" else kinds[name](num_channels, **added)
