"""Fusion of the two streams with squeeze-excitation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcitation(nn.Module):
    """Scale each channel of (batch, time, dim) by a gate computed from its mean over time (Hu et al. 2018).

    >>> SqueezeExcitation(32, reduction=16)(torch.ones(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(dim, dim // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(dim // reduction, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x_btd: Tensor) -> Tensor:
        """Gate the channels."""
        return x_btd * self.gate(x_btd.mean(1, keepdim=True))


class SEFusion(nn.Module):
    """Join a long stream A (batch, time_a, dim_a) and a short stream B into (batch, time_a, dim).

    Each is normalised and projected to dim, B is stretched to A's frames (nearest neighbour when A has more than four
    times as many, else linear), both are concatenated, projected, gated by squeeze-excitation and normalised.

    >>> fusion = SEFusion(dim_a=24, dim_b=8, dim=32)
    >>> fusion(torch.ones(2, 50, 24), torch.ones(2, 7, 8)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, dim_a: int, dim_b: int, dim: int = 144, se_reduction: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(dim_a), nn.LayerNorm(dim_b)
        self.project_a, self.project_b = nn.Linear(dim_a, dim), nn.Linear(dim_b, dim)
        self.join = nn.Linear(2 * dim, dim)
        self.squeeze_excitation = SqueezeExcitation(dim, se_reduction)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a_btd: Tensor, b_btd: Tensor) -> Tensor:
        """Fuse the streams."""
        a_btd = self.project_a(self.norm_a(a_btd))
        b_btd = _stretch(self.project_b(self.norm_b(b_btd)), a_btd.shape[1])
        joined_btd = self.join(torch.cat([a_btd, b_btd], dim=-1))
        return self.dropout(self.norm(self.squeeze_excitation(joined_btd)))


def _stretch(x_btd: Tensor, num_frames: int) -> Tensor:
    if x_btd.shape[1] == num_frames:
        return x_btd
    mode = "nearest" if num_frames > 4 * x_btd.shape[1] else "linear"
    return F.interpolate(x_btd.transpose(1, 2), size=num_frames, mode=mode).transpose(1, 2)
