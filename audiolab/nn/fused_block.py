"""A block of Conv-TasNet (gLN) with its gradient by hand: less memory and less time on a CPU than autograd's own.

    expand 1x1 -> act and norm -> depthwise -> act and norm -> 1x1 to residual and skip

Kept for the backward are the input and the two tensors before the activations, or (`recompute`) the input alone. What
else the gradient needs is made again, utterance by utterance, in buffers that are used over and over: on a CPU fresh
memory costs more than arithmetic. Nothing here is visible to autograd but `fused_block`.

Shapes: b batch, i channels in, o channels out, c hidden channels, t frames, p taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from audiolab.nn.depthwise import slabs, tap_conv, tap_products, tap_shifts

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

    def shifts(self, weights: BlockWeights) -> list[int]:
        """For each tap how many frames later than the output it reads."""
        return tap_shifts(weights.taps_cp.shape[1], self.dilation, self.left)


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
        num_hidden, num_frames = len(weights.expand_ci), x_bit.shape[-1]
        kept_bct = [x_bit.new_empty(len(x_bit) if keep else 1, num_hidden, num_frames) for _ in range(2)]
        spare_ct = x_bit.new_empty(num_hidden, num_frames)
        out_bot = x_bit.new_empty(len(x_bit), len(weights.out_oc), num_frames)
        for item, (x_it, out_ot) in enumerate(zip(x_bit, out_bot, strict=True)):
            before_ct, between_ct = (kept[item if keep else 0] for kept in kept_bct)
            _hidden(x_it, weights, shape, before_ct, between_ct, spare_ct)
            normed_ct = _act_norm(between_ct, weights.outer, shape, spare_ct).normed_ct
            torch.addmm(weights.out_bias_o[:, None], weights.out_oc, normed_ct, out=out_ot)
        ctx.save_for_backward(x_bit, *flat, *(kept_bct if keep else ()))
        return out_bot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bot: Tensor) -> tuple[Tensor | None, ...]:
        x_bit, *rest = ctx.saved_tensors
        flat, kept_bct = rest[:_NUM_WEIGHTS], rest[_NUM_WEIGHTS:]
        weights, shape = _weights(flat), ctx.shape
        spares = [x_bit.new_empty(len(weights.expand_ci), x_bit.shape[-1]) for _ in range(2 if kept_bct else 4)]
        grad_x_bit = torch.empty_like(x_bit)
        grads = [None if weight is None else torch.zeros_like(weight) for weight in flat]
        for item, (x_it, grad_ot) in enumerate(zip(x_bit, grad_bot, strict=True)):
            if kept_bct:
                before_ct, between_ct = (kept[item] for kept in kept_bct)
            else:
                before_ct, between_ct = spares[2:]
                _hidden(x_it, weights, shape, before_ct, between_ct, spares[0])
            _backward(
                grad_ot, x_it, before_ct, between_ct, weights, shape, _weights(grads), grad_x_bit[item], *spares[:2]
            )
        return grad_x_bit, None, None, *grads


_NUM_WEIGHTS = 12


def _weights(flat: Sequence[Tensor | None]) -> BlockWeights:
    return BlockWeights(*flat[:2], ActNorm(*flat[2:5]), *flat[5:7], ActNorm(*flat[7:10]), *flat[10:])


def _hidden(
    x_it: Tensor, weights: BlockWeights, shape: BlockShape, before_ct: Tensor, between_ct: Tensor, spare_ct: Tensor
) -> None:
    """Fill the tensors before the first and before the second activation."""
    torch.addmm(weights.expand_bias_c[:, None], weights.expand_ci, x_it, out=before_ct)
    normed_ct = _act_norm(before_ct, weights.inner, shape, spare_ct).normed_ct
    tap_conv(normed_ct, weights.taps_cp, weights.taps_bias_c, shape.shifts(weights), between_ct)


class _ActNormed(NamedTuple):
    """Activation and norm of one utterance, in either order, and what their gradients need."""

    normed_ct: Tensor
    norm_input_ct: Tensor
    act_input_ct: Tensor
    mean: Tensor
    scale: Tensor


def _act_norm(x_ct: Tensor, place: ActNorm, shape: BlockShape, spare_ct: Tensor) -> _ActNormed:
    """Activation and norm, or norm and activation, of (channel, time); overwrites `spare_ct`."""
    slope = place.slope.item()
    norm_input_ct = x_ct if shape.norm_first else leaky_relu_out(x_ct, slope, out=spare_ct)
    sizes = 1, *x_ct.shape, 1
    normed_bct, mean, scale = torch.native_group_norm(
        norm_input_ct[None], place.weight_c, place.bias_c, *sizes, shape.eps
    )
    if shape.norm_first:
        return _ActNormed(leaky_relu_out(normed_bct[0], slope, out=spare_ct), x_ct, normed_bct[0], mean, scale)
    return _ActNormed(normed_bct[0], norm_input_ct, x_ct, mean, scale)


def _act_norm_backward(
    grad_ct: Tensor, known: _ActNormed, place: ActNorm, shape: BlockShape, totals: ActNorm
) -> Tensor:
    """Gradient of the input from that of the output; adds those of the parameters to `totals`, overwrites both."""
    if shape.norm_first:
        grad_ct = _act_backward(grad_ct, known, place, totals)
    grad_bct, grad_weight_c, grad_bias_c = torch.ops.aten.native_group_norm_backward(
        grad_ct[None],
        known.norm_input_ct[None],
        known.mean,
        known.scale,
        place.weight_c,
        1,
        *grad_ct.shape,
        1,
        [True] * 3,
    )
    totals.weight_c.add_(grad_weight_c)
    totals.bias_c.add_(grad_bias_c)
    return grad_bct[0] if shape.norm_first else _act_backward(grad_bct[0], known, place, totals)


def _act_backward(grad_ct: Tensor, known: _ActNormed, place: ActNorm, totals: ActNorm) -> Tensor:
    slope, x_ct = place.slope.item(), known.act_input_ct
    for slab in slabs(x_ct):
        grad, x = grad_ct[slab], x_ct[slab]
        totals.slope.add_(torch.dot(grad.view(-1), x.clamp(max=0).view(-1)))
        leaky_relu_backward_out(grad, x, slope, False, grad_input=grad)
    return grad_ct


def _backward(
    grad_ot: Tensor,
    x_it: Tensor,
    before_ct: Tensor,
    between_ct: Tensor,
    weights: BlockWeights,
    shape: BlockShape,
    totals: BlockWeights,
    grad_x_it: Tensor,
    spare_ct: Tensor,
    grad_ct: Tensor,
) -> None:
    """Fill the gradient of an utterance and add to those of the parameters, from the end of the block to its start."""
    known = _act_norm(between_ct, weights.outer, shape, spare_ct)
    totals.out_oc.addmm_(grad_ot, known.normed_ct.T)
    totals.out_bias_o.add_(grad_ot.sum(-1))
    torch.mm(weights.out_oc.T, grad_ot, out=grad_ct)
    between_grad_ct = _act_norm_backward(grad_ct, known, weights.outer, shape, totals.outer)

    known, shifts = _act_norm(before_ct, weights.inner, shape, spare_ct), shape.shifts(weights)
    totals.taps_cp.add_(tap_products(between_grad_ct, known.normed_ct, shifts))
    if totals.taps_bias_c is not None:
        totals.taps_bias_c.add_(between_grad_ct.sum(-1))
    tap_conv(between_grad_ct, weights.taps_cp, None, [-shift for shift in shifts], grad_ct)
    before_grad_ct = _act_norm_backward(grad_ct, known, weights.inner, shape, totals.inner)

    totals.expand_ci.addmm_(before_grad_ct, x_it.T)
    totals.expand_bias_c.add_(before_grad_ct.sum(-1))
    torch.mm(weights.expand_ci.T, before_grad_ct, out=grad_x_it)
