"""One utterance through a block with norm before activation, the seed's order, and back.

Shapes: i channels in, o channels out, c hidden channels, t frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from audiolab.nn.depthwise import tap_conv, tap_products
from audiolab.nn.fused_block.weights import ActNorm, BlockShape, BlockWeights
from audiolab.nn.prelu import leaky_relu_out, prelu_backward


def hidden(
    x_it: Tensor, weights: BlockWeights, shape: BlockShape, before_ct: Tensor, between_ct: Tensor, spare_ct: Tensor
) -> float:
    """Fill the tensors before the first and before the second norm, and return what `ends` and `backward` ask for."""
    torch.addmm(weights.expand_bias_c[:, None], weights.expand_ci, x_it, out=before_ct)
    activated_ct = _norm_act(before_ct, weights.inner, shape.eps, spare_ct).activated_ct
    tap_conv(activated_ct, weights.taps_cp, weights.taps_bias_c, shape.shifts(weights), between_ct)
    return shape.eps


def ends(between_ct: Tensor, weights: BlockWeights, eps: float, out_ot: Tensor, spare_ct: Tensor) -> None:
    """Fill the outputs of the block."""
    activated_ct = _norm_act(between_ct, weights.outer, eps, spare_ct).activated_ct
    torch.addmm(weights.out_bias_o[:, None], weights.out_oc, activated_ct, out=out_ot)


def backward(
    grad_ot: Tensor,
    x_it: Tensor,
    hidden: tuple[Tensor, Tensor, float],
    weights: BlockWeights,
    shape: BlockShape,
    sums: BlockWeights,
    spares: list[Tensor],
) -> Tensor:
    """Go from the block's end to its start: add the parameters' gradients to `sums`, return that of `before_ct`."""
    before_ct, between_ct, eps = hidden
    spare_ct, grad_ct = spares
    known = _norm_act(between_ct, weights.outer, eps, spare_ct)
    sums.out_oc.addmm_(grad_ot, known.activated_ct.T)
    sums.out_bias_o.add_(grad_ot.sum(-1))
    torch.mm(weights.out_oc.T, grad_ot, out=grad_ct)
    between_grad_ct = _norm_act_backward(grad_ct, between_ct, known, weights.outer, sums.outer)

    known, shifts = _norm_act(before_ct, weights.inner, eps, spare_ct), shape.shifts(weights)
    sums.taps_cp.add_(tap_products(between_grad_ct, known.activated_ct, shifts))
    if sums.taps_bias_c is not None:
        sums.taps_bias_c.add_(between_grad_ct.sum(-1))
    tap_conv(between_grad_ct, weights.taps_cp, None, [-shift for shift in shifts], grad_ct)
    before_grad_ct = _norm_act_backward(grad_ct, before_ct, known, weights.inner, sums.inner)

    sums.expand_ci.addmm_(before_grad_ct, x_it.T)
    sums.expand_bias_c.add_(before_grad_ct.sum(-1))
    return before_grad_ct


class _NormAct(NamedTuple):
    activated_ct: Tensor
    normed_ct: Tensor
    mean: Tensor
    scale: Tensor


def _norm_act(x_ct: Tensor, place: ActNorm, eps: float, spare_ct: Tensor) -> _NormAct:
    """gLN, then PReLU into `spare_ct`."""
    normed_bct, mean, scale = torch.native_group_norm(x_ct[None], place.weight_c, place.bias_c, 1, *x_ct.shape, 1, eps)
    return _NormAct(leaky_relu_out(normed_bct[0], place.slope.item(), out=spare_ct), normed_bct[0], mean, scale)


def _norm_act_backward(grad_ct: Tensor, x_ct: Tensor, known: _NormAct, place: ActNorm, sums: ActNorm) -> Tensor:
    """Return the gradient of the input from that of the output, overwritten; add the parameters' to `sums`."""
    sums.slope.add_(prelu_backward(grad_ct, known.normed_ct, place.slope.item(), grad_ct))
    grad_bct, grad_weight_c, grad_bias_c = torch.ops.aten.native_group_norm_backward(
        grad_ct[None], x_ct[None], known.mean, known.scale, place.weight_c, 1, *x_ct.shape, 1, [True, True, True]
    )
    sums.weight_c.add_(grad_weight_c)
    sums.bias_c.add_(grad_bias_c)
    return grad_bct[0]
