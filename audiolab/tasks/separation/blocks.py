"""The convolutional block of Conv-TasNet (Luo and Mesgarani 2019, arXiv:1809.07454, figure 1).

Shapes: b batch, c channels, t frames, p taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiolab.errors import InputError
from audiolab.nn.by_hand import by_hand
from audiolab.nn.depthwise import depthwise_conv
from audiolab.nn.fused_block import ActNorm, BlockShape, BlockWeights, fused_block
from audiolab.nn.layer_norm import EPS, NormName, make_norm
from audiolab.nn.prelu import prelu


class Block(nn.Module):
    """1x1 convolution, depthwise convolution, each with PReLU and norm; then 1x1 convolutions to residual and skip.

    `norm_first` puts each norm before its PReLU. Without `residual` or `skip` the block has no such output (None).
    `recompute`: what the gradient needs is computed again in the backward, not kept, with the same result. Raises
    InputError with BN, which would count a batch twice.
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
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if recompute and norm == "BN":
            raise InputError("model.recompute does not go with model.norm=BN: set it to false or choose another norm")
        left = (kernel - 1) * dilation // (1 if causal else 2)
        self.shape = BlockShape(dilation, left, norm_first, EPS, recompute)
        self.fusable = norm == "gLN"  # the norm that `fused_block` has
        self.expand = nn.Conv1d(channels, hidden, 1)
        self.act1, self.norm1 = nn.PReLU(), make_norm(norm, hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, groups=hidden, bias=depthwise_bias)  # holds the parameters
        self.act2, self.norm2 = nn.PReLU(), make_norm(norm, hidden)
        self.residual = nn.Conv1d(hidden, channels, 1) if residual else None
        self.skip = nn.Conv1d(hidden, skip, 1) if skip else None

    def forward(self, x_bct: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what is added to the residual path and what to the skip path."""
        if self.fusable and by_hand(x_bct):
            ends_bct = fused_block(x_bct, self._weights(), self.shape)
        elif self.shape.recompute and torch.is_grad_enabled():
            ends_bct = checkpoint(self.ends, x_bct, use_reentrant=False, preserve_rng_state=False)
        else:
            ends_bct = self.ends(x_bct)
        residual_bct, skip_bct = ends_bct.split([conv.out_channels if conv else 0 for conv in self._end_convs()], 1)
        return residual_bct if self.residual else None, skip_bct if self.skip else None

    def ends(self, x_bct: Tensor) -> Tensor:
        """Return residual and skip output one above the other; `fused_block` does exactly this, gradient and all."""
        x_bct = self._act_norm(self.expand(x_bct), self.act1, self.norm1)
        taps_cp = self.depthwise.weight[:, 0]
        x_bct = depthwise_conv(x_bct, taps_cp, self.depthwise.bias, self.shape.dilation, self.shape.left)
        return F.conv1d(self._act_norm(x_bct, self.act2, self.norm2), *self._end_weights())

    def _act_norm(self, x_bct: Tensor, act: nn.PReLU, norm: nn.Module) -> Tensor:
        return prelu(norm(x_bct), act.weight) if self.shape.norm_first else norm(prelu(x_bct, act.weight))

    def _end_convs(self) -> tuple[nn.Conv1d | None, nn.Conv1d | None]:
        return self.residual, self.skip

    def _end_weights(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of both 1x1 convolutions as one."""
        convs = [conv for conv in self._end_convs() if conv is not None]
        return torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])

    def _weights(self) -> BlockWeights:
        end_weight, end_bias = self._end_weights()
        return BlockWeights(
            self.expand.weight[..., 0],
            self.expand.bias,
            ActNorm(self.act1.weight, self.norm1.weight, self.norm1.bias),
            self.depthwise.weight[:, 0],
            self.depthwise.bias,
            ActNorm(self.act2.weight, self.norm2.weight, self.norm2.bias),
            end_weight[..., 0],
            end_bias,
        )
