"""Norms of convolutional separators over (batch, channel, time) (Luo and Mesgarani 2019, section II-D)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["gLN", "cLN", "channelwise", "BN"]
EPS = 1e-8


class CumulativeSums(NamedTuple):
    """What a cumulative norm remembers of the frames so far: sums in float64 (batch, 1, 1), and their number."""

    value_b11: Tensor
    square_b11: Tensor
    num_frames: int


class GlobalLayerNorm(nn.Module):
    """gLN: mean and variance over all channels and frames of an utterance; not causal."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return F.group_norm(x_bct, 1, self.weight, self.bias, EPS)


class CumulativeLayerNorm(GlobalLayerNorm):
    """cLN: mean and variance over all channels of the frames up to the present one; causal."""

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return self.step(x_bct, None)[0]

    def step(self, x_bct: Tensor, sums: CumulativeSums | None) -> tuple[Tensor, CumulativeSums]:
        """Normalise the next frames of a stream, given the sums over those before."""
        num_channels, num_frames = x_bct.shape[1:]
        value_b1t = x_bct.double().sum(1, keepdim=True).cumsum(-1)
        square_b1t = x_bct.double().square().sum(1, keepdim=True).cumsum(-1)
        before = 0 if sums is None else sums.num_frames
        if sums is not None:
            value_b1t, square_b1t = value_b1t + sums.value_b11, square_b1t + sums.square_b11
        count_t = num_channels * torch.arange(before + 1, before + num_frames + 1, device=x_bct.device)
        mean_b1t = value_b1t / count_t
        variance_b1t = (square_b1t / count_t - mean_b1t.square()).clamp(min=0)
        scale_b1t = (variance_b1t + EPS).rsqrt()
        normed_bct = (x_bct - mean_b1t.to(x_bct.dtype)) * scale_b1t.to(x_bct.dtype)
        last = CumulativeSums(value_b1t[..., -1:], square_b1t[..., -1:], before + num_frames)
        return normed_bct * self.weight[:, None] + self.bias[:, None], last


class ChannelwiseLayerNorm(GlobalLayerNorm):
    """Mean and variance over the channels of each frame by itself; causal. Some libraries call this cLN."""

    def forward(self, x_bct: Tensor) -> Tensor:
        """Normalise (batch, channel, time)."""
        return F.layer_norm(x_bct.mT, (x_bct.shape[1],), self.weight, self.bias, EPS).mT


def make_norm(name: NormName, num_channels: int) -> nn.Module:
    """Return the norm of that name: gLN, cLN (cumulative), channelwise, BN (batch norm).

    >>> make_norm("cLN", 4)(torch.zeros(1, 4, 5)).shape
    torch.Size([1, 4, 5])
    """
    kinds = {"gLN": GlobalLayerNorm, "cLN": CumulativeLayerNorm, "channelwise": ChannelwiseLayerNorm}
    return nn.BatchNorm1d(num_channels) if name == "BN" else kinds[name](num_channels)
