"""A block of Conv-TasNet (gLN) with its gradient by hand: less memory and less time on a CPU than autograd's own.

    expand 1x1 -> act and norm -> depthwise -> act and norm -> 1x1 to residual and skip

Kept for the backward are the input and the two tensors before the activations, or (`recompute`) the input alone. What
else the gradient needs is made again, utterance by utterance, in buffers that are used over and over: on a CPU fresh
memory costs more than arithmetic. Nothing here is visible to autograd but `fused_block`.

Shapes: b batch, i channels in, o channels out, c hidden channels, t frames, p taps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from audiolab.nn.depthwise import tap_conv, tap_products, tap_shifts

leaky_relu_out = torch.ops.aten.leaky_relu.out
leaky_relu_backward_out = torch.ops.aten.leaky_relu_backward.grad_input


class ActNorm(NamedTuple):
    """PReLU (one slope) and gLN of one place in the block, in either order."""

    slope: Tensor
    weight_c: Tensor
    bias_c: Tensor


class BlockWeights(NamedTuple):
    """The parameters of a block, 1x1 and depthwise convolutions as matrices."""

    expand_ci: Tensor
    expand_bias_c: Tensor
    inner: ActNorm
    taps_cp: Tensor
    taps_bias_c: Tensor | None
    outer: ActNorm
    out_oc: Tensor
    out_bias_o: Tensor


class BlockShape(NamedTuple):
    """What is fixed in a block: dilation, zeros before the signal, order, eps of the norms, what is kept."""

    dilation: int
    left: int
    norm_first: bool
    eps: float
    recompute: bool


class _Moments(NamedTuple):
    """Mean and 1 / standard deviation of what a norm saw of one utterance."""

    mean: float
    scale: float


def fused_block(x_bit: Tensor, weights: BlockWeights, shape: BlockShape) -> Tensor:
    """Return the outputs (batch, channels out, time) of the block; gradients can be taken once.

    >>> norm = ActNorm(torch.tensor([0.25]), torch.ones(4), torch.zeros(4))
    >>> matrices = torch.ones(4, 2), torch.zeros(4), norm, torch.ones(4, 3), None, norm, torch.ones(6, 4), torch.zeros(6)
    >>> fused_block(torch.randn(1, 2, 9), BlockWeights(*matrices), BlockShape(1, 1, False, 1e-8, False)).shape
    torch.Size([1, 6, 9])
    """
    flat = [*weights[:2], *weights.inner, *weights[3:5], *weights.outer, *weights[6:]]
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (x_bit, *flat))
    return _FusedBlock.apply(x_bit, shape, learns and not shape.recompute, *flat)


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bit: Tensor, shape: BlockShape, keep: bool, *flat: Tensor | None) -> Tensor:
        ctx.shape, weights = shape, _weights(flat)
        num_channels, num_frames = len(weights.expand_ci), x_bit.shape[-1]
        hidden = [x_bit.new_empty(len(x_bit) if keep else 1, num_channels, num_frames) for _ in range(2)]
        spare_ct = x_bit.new_empty(num_channels, num_frames) if keep else None
        out_bot = x_bit.new_empty(len(x_bit), len(weights.out_oc), num_frames)
        ctx.moments = []
        for item, (x_it, out_ot) in enumerate(zip(x_bit, out_bot, strict=True)):
            before_ct, between_ct = (kept_bct[item if keep else 0] for kept_bct in hidden)
            normed_ct = before_ct if spare_ct is None else spare_ct
            moments = _hidden(x_it, weights, shape, before_ct, normed_ct, between_ct)
            normed_ct = between_ct if spare_ct is None else spare_ct
            outer = _act_norm(between_ct, weights.outer, shape, normed_ct)
            torch.addmm(weights.out_bias_o[:, None], weights.out_oc, normed_ct, out=out_ot)
            ctx.moments.append((moments, outer))
        ctx.save_for_backward(x_bit, *flat, *(hidden if keep else ()))
        return out_bot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bot: Tensor) -> tuple[Tensor | None, ...]:
        x_bit, *rest = ctx.saved_tensors
        weights, hidden = _weights(rest[:12]), rest[12:]
        shape = ctx.shape
        g_ct, spare_ct, other_ct, *again = (
            x_bit.new_empty(len(weights.expand_ci), x_bit.shape[-1]) for _ in range(3 if hidden else 5)
        )
        grad_x_bit = torch.empty_like(x_bit)
        grads = [torch.zeros_like(weight) for weight in rest[:12] if weight is not None]
        for item, (x_it, grad_ot, (inner, outer)) in enumerate(zip(x_bit, grad_bot, ctx.moments, strict=True)):
            before_ct, between_ct = again or (kept_bct[item] for kept_bct in hidden)
            if again:
                _hidden(x_it, weights, shape, before_ct, spare_ct, between_ct)
            of_item = _backward(
                grad_ot, x_it, before_ct, between_ct, weights, shape, inner, outer, g_ct, spare_ct, other_ct
            )
            torch.mm(weights.expand_ci.T, other_ct, out=grad_x_bit[item])
            for total, grad in zip(grads, of_item, strict=True):
                total += grad.view_as(total)
        if weights.taps_bias_c is None:
            grads.insert(6, None)
        return grad_x_bit, None, None, *grads


def _weights(flat: tuple[Tensor | None, ...]) -> BlockWeights:
    return BlockWeights(*flat[:2], ActNorm(*flat[2:5]), *flat[5:7], ActNorm(*flat[7:10]), *flat[10:])


def _hidden(
    x_it: Tensor, weights: BlockWeights, shape: BlockShape, before_ct: Tensor, normed_ct: Tensor, between_ct: Tensor
) -> _Moments:
    """Fill the tensors before the first and before the second activation; return the first moments."""
    torch.addmm(weights.expand_bias_c[:, None], weights.expand_ci, x_it, out=before_ct)
    moments = _act_norm(before_ct, weights.inner, shape, normed_ct)
    shifts = tap_shifts(weights.taps_cp.shape[1], shape.dilation, shape.left)
    tap_conv(normed_ct, weights.taps_cp, weights.taps_bias_c, shifts, between_ct)
    return moments


def _act_norm(x_ct: Tensor, place: ActNorm, shape: BlockShape, out_ct: Tensor) -> _Moments:
    """Fill `out_ct` (which may be `x_ct`) with activation and norm of it."""
    slope = place.slope.item()
    if not shape.norm_first:
        x_ct = leaky_relu_out(x_ct, slope, out=out_ct)
    mean = x_ct.mean().item()
    torch.sub(x_ct, mean, out=out_ct)
    power = torch.linalg.vector_norm(out_ct, dim=-1).double().square().sum().item() / out_ct.numel()
    moments = _Moments(mean, (power + shape.eps) ** -0.5)
    torch.addcmul(place.bias_c[:, None], out_ct, place.weight_c[:, None] * moments.scale, out=out_ct)
    if shape.norm_first:
        leaky_relu_out(out_ct, slope, out=out_ct)
    return moments


def _act_norm_again(x_ct: Tensor, place: ActNorm, shape: BlockShape, moments: _Moments, out_ct: Tensor) -> Tensor:
    """Fill `out_ct` with what `_act_norm` made of `x_ct`, whose moments are known."""
    slope, weight_c1 = place.slope.item(), place.weight_c[:, None] * moments.scale
    if not shape.norm_first:
        x_ct = leaky_relu_out(x_ct, slope, out=out_ct)
    torch.addcmul(place.bias_c[:, None] - moments.mean * weight_c1, x_ct, weight_c1, out=out_ct)
    return leaky_relu_out(out_ct, slope, out=out_ct) if shape.norm_first else out_ct


def _act_norm_backward(
    grad_ct: Tensor,
    x_ct: Tensor,
    place: ActNorm,
    shape: BlockShape,
    moments: _Moments,
    spare_ct: Tensor,
    other_ct: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the gradient of what `_act_norm` made of `x_ct` into that of `x_ct`; return those of slope, weight, bias."""
    slope, (mean, scale) = place.slope.item(), moments
    weight_c1 = place.weight_c[:, None] * scale
    if shape.norm_first:
        normed_ct = torch.addcmul(place.bias_c[:, None] - mean * weight_c1, x_ct, weight_c1, out=spare_ct)
        grad_slope = _dot(grad_ct, torch.clamp(normed_ct, max=0, out=other_ct))
        leaky_relu_backward_out(grad_ct, normed_ct, slope, False, grad_input=grad_ct)
        centred_ct = torch.sub(x_ct, mean, out=spare_ct)
    else:
        centred_ct = leaky_relu_out(x_ct, slope, out=spare_ct).sub_(mean)
    grad_bias_c = grad_ct.sum(-1)
    grad_weight_c = torch.mul(grad_ct, centred_ct, out=other_ct).sum(-1) * scale
    # the norm takes out of the gradient what would change mean and power
    along_mean = torch.dot(place.weight_c, grad_bias_c) * (-scale / x_ct.numel())
    along_value = (torch.dot(place.weight_c, grad_weight_c) * (-(scale**2) / x_ct.numel())).item()
    torch.add(along_mean, centred_ct, alpha=along_value, out=spare_ct)
    torch.addcmul(spare_ct, grad_ct, weight_c1, out=grad_ct)
    if not shape.norm_first:
        grad_slope = _dot(grad_ct, torch.clamp(x_ct, max=0, out=spare_ct))
        leaky_relu_backward_out(grad_ct, x_ct, slope, False, grad_input=grad_ct)
    return grad_slope, grad_weight_c, grad_bias_c


def _dot(x_ct: Tensor, y_ct: Tensor) -> Tensor:
    return torch.dot(x_ct.view(-1), y_ct.view(-1))


def _backward(grad_ot, x_it, before_ct, between_ct, weights, shape, inner, outer, g_ct, spare_ct, other_ct):
    """Leave the gradient before the first activation in `other_ct`; return those of the parameters, in their order."""
    torch.mm(weights.out_oc.T, grad_ot, out=g_ct)
    normed_ct = _act_norm_again(between_ct, weights.outer, shape, outer, spare_ct)
    of_out = grad_ot @ normed_ct.T, grad_ot.sum(-1)
    of_outer = _act_norm_backward(g_ct, between_ct, weights.outer, shape, outer, spare_ct, other_ct)

    shifts = tap_shifts(weights.taps_cp.shape[1], shape.dilation, shape.left)
    normed_ct = _act_norm_again(before_ct, weights.inner, shape, inner, spare_ct)
    of_taps = [tap_products(g_ct, normed_ct, shifts, other_ct)]
    if weights.taps_bias_c is not None:
        of_taps.append(g_ct.sum(-1))
    tap_conv(g_ct, weights.taps_cp, None, [-shift for shift in shifts], other_ct)

    of_inner = _act_norm_backward(other_ct, before_ct, weights.inner, shape, inner, spare_ct, g_ct)
    of_expand = other_ct @ x_it.T, other_ct.sum(-1)
    return *of_expand, *of_inner, *of_taps, *of_outer, *of_out
