"""Depthwise convolution over time tap by tap: several times faster in training on a CPU than torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Taps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bct: Tensor, weight_cp: Tensor, dilation: int, left: int) -> Tensor:
        ctx.save_for_backward(x_bct, weight_cp)
        ctx.shifts = [tap * dilation - left for tap in range(weight_cp.shape[1])]
        y_bct = torch.zeros_like(x_bct)
        for shift, w_c in zip(ctx.shifts, weight_cp.unbind(1), strict=True):
            into, out_of = _overlap(x_bct.shape[-1], shift)
            y_bct[..., into].addcmul_(x_bct[..., out_of], w_c[:, None])
        return y_bct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bct: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_bct, weight_cp = ctx.saved_tensors
        grad_x_bct, grad_w = torch.zeros_like(x_bct), []
        for shift, w_c in zip(ctx.shifts, weight_cp.unbind(1), strict=True):
            into, out_of = _overlap(x_bct.shape[-1], shift)
            grad_x_bct[..., out_of].addcmul_(grad_bct[..., into], w_c[:, None])
            grad_w.append(torch.linalg.vecdot(grad_bct[..., into], x_bct[..., out_of]).sum(0))
        return grad_x_bct, torch.stack(grad_w, 1), None, None


def _overlap(num_frames: int, shift: int) -> tuple[slice, slice]:
    """Frames t of the output whose input t + shift exists, and those inputs."""
    first, last = max(0, -shift), max(0, num_frames - max(0, shift))
    return slice(first, max(first, last)), slice(first + shift, max(first, last) + shift)


def depthwise_conv(x_bct: Tensor, weight_cp: Tensor, bias_c: Tensor | None, dilation: int, left: int) -> Tensor:
    """Convolve each channel of (batch, channel, time) with its own filter of P taps, output as long as the input.

    `left` zeros stand before the signal: (P - 1) * dilation makes it causal, half of that centres it. On CUDA the
    library's kernel is used. Gradients can be taken once.

    >>> depthwise_conv(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 1.0]]), None, dilation=1, left=1)
    tensor([[[ 1., 12., 23.]]])
    """
    if x_bct.is_cuda:
        num_channels, right = len(weight_cp), (weight_cp.shape[1] - 1) * dilation - left
        padded_bct = F.pad(x_bct, (left, right))
        return F.conv1d(padded_bct, weight_cp[:, None], bias_c, dilation=dilation, groups=num_channels)
    y_bct = _Taps.apply(x_bct, weight_cp, dilation, left)
    return y_bct if bias_c is None else y_bct + bias_c[:, None]
