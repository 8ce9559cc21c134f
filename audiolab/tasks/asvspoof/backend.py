"""The bidirectional Mamba back end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiolab.nn.mamba import Mamba


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
