"""The convolutional block of Conv-TasNet (Luo and Mesgarani 2019, arXiv:1809.07454, figure 1).

Shapes: b batch, c channels, t frames, p taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolab.nn.depthwise import depthwise_conv
from audiolab.nn.layer_norm import NormName, make_norm


class Block(nn.Module):
    """1x1 convolution, depthwise convolution, each with PReLU and norm; then 1x1 convolutions to residual and skip.

    `norm_first` puts each norm before its PReLU. Without `residual` or `skip` the block has no such output (None).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        skip: int,
        kernel: int,
        dilation: int,
        norm: NormName,
        *,
        causal: bool,
        norm_first: bool,
        depthwise_bias: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.dilation, self.norm_first = dilation, norm_first
        self.left = (kernel - 1) * dilation // (1 if causal else 2)
        self.expand = nn.Conv1d(channels, hidden, 1)
        self.act1, self.norm1 = nn.PReLU(), make_norm(norm, hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, groups=hidden, bias=depthwise_bias)  # holds the parameters
        self.act2, self.norm2 = nn.PReLU(), make_norm(norm, hidden)
        self.residual = nn.Conv1d(hidden, channels, 1) if residual else None
        self.skip = nn.Conv1d(hidden, skip, 1) if skip else None

    def forward(self, x_bct: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what is added to the residual path and what to the skip path."""
        x_bct = self._normed(self.expand(x_bct), self.act1, self.norm1)
        taps_cp = self.depthwise.weight[:, 0]
        x_bct = depthwise_conv(x_bct, taps_cp, self.depthwise.bias, self.dilation, self.left)
        return self.outputs(self._normed(x_bct, self.act2, self.norm2))

    def outputs(self, x_bct: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Apply both 1x1 convolutions as one."""
        convs = [conv for conv in (self.residual, self.skip) if conv is not None]
        weight, bias = torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])
        parts = iter(F.conv1d(x_bct, weight, bias).split([conv.out_channels for conv in convs], 1))
        return next(parts) if self.residual else None, next(parts) if self.skip else None

    def _normed(self, x_bct: Tensor, act: nn.Module, norm: nn.Module) -> Tensor:
        return act(norm(x_bct)) if self.norm_first else norm(act(x_bct))
