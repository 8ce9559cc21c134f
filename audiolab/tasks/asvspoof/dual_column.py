"""The dual-column Mamba back end of XLSR-Mamba: one stack of blocks for each direction of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from audiolab.nn.mamba import Mamba
from audiolab.tasks.asvspoof.model import BackEnd

_NORM_EPS = 1e-5


class DualColumnMamba(BackEnd):
    """Frames (batch, frames, dim) -> embedding (batch, dim), from `num_blocks` blocks forward and as many backward.

    Each block is Add, RMSNorm, Mamba: x <- x + Mamba(RMSNorm(x)); the columns share no Mamba. Both end in one RMSNorm,
    each is pooled by its own softmax attention over time, and a linear map joins them. Output projections start
    smaller by sqrt(num_blocks), as GPT-2's. Xiao & Das, "XLSR-Mamba: a dual-column bidirectional state space model for
    spoofing attack detection", IEEE Signal Processing Letters 2025.

    The public code computes this where its fused kernel is switched off. With the kernel, its last norm reads the
    columns' input in place of the last block's output, which then has no effect and no gradient; that is not imitated.

    >>> DualColumnMamba(dim=16, num_blocks=2)(torch.ones(2, 5, 16)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        dim: int = 144,
        num_blocks: int = 6,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_dim = self.dim = dim
        self.dropout = nn.Dropout(dropout)
        self.forward_column = _column(dim, num_blocks, d_state, d_conv, expand)
        self.backward_column = _column(dim, num_blocks, d_state, d_conv, expand)
        self.norm = nn.RMSNorm(dim, eps=_NORM_EPS)
        self.forward_attention, self.backward_attention = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.join = nn.Linear(2 * dim, dim)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Run both columns and pool them."""
        x_btd = self.dropout(x_btd)
        forward_btd = self.norm(self.forward_column(x_btd))
        backward_btd = self.norm(self.backward_column(x_btd.flip(1)))
        pooled = [_pool(forward_btd, self.forward_attention), _pool(backward_btd, self.backward_attention)]
        return self.join(torch.cat(pooled, dim=1))


class MambaBlock(nn.Module):
    """Pre-norm residual block x + Mamba(RMSNorm(x)), (batch, time, dim) -> the same, causal.

    >>> MambaBlock(dim=16)(torch.ones(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=_NORM_EPS)
        self.mamba = Mamba(dim, d_state, d_conv, expand)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Run the block."""
        return x_btd + self.mamba(self.norm(x_btd))


def _column(dim: int, num_blocks: int, d_state: int, d_conv: int, expand: int) -> nn.Sequential:
    column = nn.Sequential(*(MambaBlock(dim, d_state, d_conv, expand) for _ in range(num_blocks)))
    with torch.no_grad():
        for block in column:
            block.mamba.out_proj.weight /= math.sqrt(num_blocks)
    return column


def _pool(x_btd: Tensor, attention: nn.Linear) -> Tensor:
    return (torch.softmax(attention(x_btd), dim=1) * x_btd).sum(1)
