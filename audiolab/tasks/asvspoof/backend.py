"""Back ends: attention pooling alone, and after bidirectional Mamba blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiolab.nn.mamba import Mamba
from audiolab.tasks.asvspoof.model import BackEnd


class AttentionPooling(BackEnd):
    """LayerNorm, then softmax attention over time: (batch, frames, dim) -> (batch, dim).

    >>> AttentionPooling(dim=32)(torch.ones(3, 21, 32)).shape
    torch.Size([3, 32])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_dim = self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.Linear(dim, 1)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Pool the frames."""
        x_btd = self.norm(x_btd)
        return (torch.softmax(self.attention(x_btd), dim=1) * x_btd).sum(1)


class BiMambaBlock(nn.Module):
    """Pre-norm block (batch, time, d_model) -> the same; ONE Mamba reads the frames in both directions.

    n = LN(x); m = Mamba(n) + flip(Mamba(flip(n))); y = x + FFN(LN(m)).

    >>> BiMambaBlock(d_model=16)(torch.ones(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int = 144, d_state: int = 16, d_conv: int = 4, expand: int = 2, ffn_expand: int = 4
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.mamba = Mamba(d_model, d_state, d_conv, expand)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, ffn_expand * d_model), nn.GELU(), nn.Linear(ffn_expand * d_model, d_model)
        )

    def forward(self, x_btd: Tensor) -> Tensor:
        """Run the block."""
        normed_btd = self.norm1(x_btd)
        # both directions as one batch: half the steps of the scan
        both_btd = self.mamba(torch.cat([normed_btd, normed_btd.flip(1)]))
        forward_btd, backward_btd = both_btd.chunk(2)
        return x_btd + self.feed_forward(self.norm2(forward_btd + backward_btd.flip(1)))


class BiMamba(BackEnd):
    """`num_blocks` tied bidirectional Mamba blocks, then attention pooling.

    >>> BiMamba(dim=16, num_blocks=2)(torch.ones(2, 5, 16)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        dim: int = 144,
        num_blocks: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        ffn_expand: int = 4,
    ) -> None:
        super().__init__()
        self.in_dim = self.dim = dim
        self.blocks = nn.Sequential(
            *(BiMambaBlock(dim, d_state, d_conv, expand, ffn_expand) for _ in range(num_blocks))
        )
        self.pooling = AttentionPooling(dim)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Run blocks and pooling."""
        return self.pooling(self.blocks(x_btd))
