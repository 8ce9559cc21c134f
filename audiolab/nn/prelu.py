"""PReLU with one slope on a CPU: torch's own backward is made for a slope per channel and takes several times as long.

Shapes: c channels, t frames; any leading dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolab.nn.by_hand import by_hand, like, once, slabs

leaky_relu_out = torch.ops.aten.leaky_relu.out
_leaky_relu_backward_out = torch.ops.aten.leaky_relu_backward.grad_input


def prelu(x_ct: Tensor, slope: Tensor) -> Tensor:
    """Return x where it is positive, else slope * x; `slope` holds one value. Gradients can be taken once.

    >>> prelu(torch.tensor([[-2.0, 2.0]]), torch.tensor([0.25]))
    tensor([[-0.5000,  2.0000]])
    """
    return _PReLU.apply(x_ct, slope) if by_hand(x_ct) else F.prelu(x_ct, slope)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ct: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x_ct, slope)
        return F.leaky_relu(x_ct, slope.item())

    @staticmethod
    @once
    def backward(ctx: Any, grad_ct: Tensor) -> tuple[Tensor, Tensor]:
        x_ct, slope = ctx.saved_tensors
        grad_x_ct = torch.empty_like(x_ct)
        grad_slope = prelu_backward(grad_ct, x_ct, slope.item(), grad_x_ct)
        return grad_x_ct, grad_slope.view_as(slope)


def prelu_backward(grad_ct: Tensor, x_ct: Tensor, slope: float, out_ct: Tensor, spare: Tensor | None = None) -> Tensor:
    """Fill `out_ct` (which may be `grad_ct`) with the gradient of x and return that of the slope; no autograd.

    `spare` is memory for a slab.
    """
    grad_slope = x_ct.new_zeros(())
    for slab in slabs(x_ct):
        grad, x = grad_ct[..., slab, :], x_ct[..., slab, :]
        spare = like(x, spare)
        grad_slope += torch.dot(grad.flatten(), torch.clamp(x, max=0, out=like(x, spare)).flatten())
        _leaky_relu_backward_out(grad, x, slope, False, grad_input=out_ct[..., slab, :])
    return grad_slope
