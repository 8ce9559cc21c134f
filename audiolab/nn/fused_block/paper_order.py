"""One utterance through a block with activation before norm, the paper's order, and back.

A norm is weight * (z - mean) * scale + bias of the activation's output z. With mean and scale known it is one gain and
one offset a channel, so it needs no pass over memory of its own: the 1x1 convolution takes it into its weights. Nor do
its gradient's two sums over time, of g and of g * z, where g is the gradient of its output: they follow from sums that
the next convolution needs for its own weights.

Shapes: i channels in, o channels out, c hidden channels, t frames, p taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from audiolab.nn.by_hand import like, slabs
from audiolab.nn.depthwise import tap_conv, tap_products, tap_sums
from audiolab.nn.fused_block.weights import ActNorm, BlockShape, BlockWeights
from audiolab.nn.prelu import leaky_relu_out, prelu_backward


class Norm(NamedTuple):
    """A norm whose mean and scale are known: gain * z + offset, a channel each."""

    gain_c: Tensor
    offset_c: Tensor
    mean: float
    scale: float


Moments = tuple[Norm, Norm]


def hidden(
    x_it: Tensor, weights: BlockWeights, shape: BlockShape, before_ct: Tensor, between_ct: Tensor, spare_ct: Tensor
) -> Moments:
    """Fill the tensors before the first and before the second activation, and return the norms after them."""
    torch.addmm(weights.expand_bias_c[:, None], weights.expand_ci, x_it, out=before_ct)
    inner = _norm(before_ct, weights.inner, shape.eps, spare_ct)
    slope, shifts = weights.inner.slope.item(), shape.shifts(weights)
    for slab in slabs(before_ct):
        z_ct = leaky_relu_out(before_ct[slab], slope, out=like(before_ct[slab], spare_ct))
        normed_ct = z_ct.mul_(inner.gain_c[slab, None]).add_(inner.offset_c[slab, None])
        taps_bias_c = None if weights.taps_bias_c is None else weights.taps_bias_c[slab]
        tap_conv(normed_ct, weights.taps_cp[slab], taps_bias_c, shifts, between_ct[slab])
    return inner, _norm(between_ct, weights.outer, shape.eps, spare_ct)


def ends(between_ct: Tensor, weights: BlockWeights, moments: Moments, out_ot: Tensor, spare_ct: Tensor) -> None:
    """Fill the outputs of the block."""
    _, outer = moments
    z_ct = leaky_relu_out(between_ct, weights.outer.slope.item(), out=spare_ct)
    bias_o = torch.addmv(weights.out_bias_o, weights.out_oc, outer.offset_c)
    torch.addmm(bias_o[:, None], weights.out_oc * outer.gain_c, z_ct, out=out_ot)


def backward(
    grad_ot: Tensor,
    x_it: Tensor,
    hidden: tuple[Tensor, Tensor, Moments],
    weights: BlockWeights,
    shape: BlockShape,
    sums: BlockWeights,
    spares: list[Tensor],
) -> Tensor:
    """Go from the block's end to its start: add the parameters' gradients to `sums`, return that of `before_ct`."""
    before_ct, between_ct, (inner, outer) = hidden
    between_grad_ct, before_grad_ct = spares
    inner_slope, outer_slope = weights.inner.slope.item(), weights.outer.slope.item()

    z_ct = leaky_relu_out(between_ct, outer_slope, out=between_grad_ct)
    products_oc, grad_sum_o = grad_ot @ z_ct.T, grad_ot.sum(-1)
    sums.out_oc.add_(products_oc * outer.gain_c).addr_(grad_sum_o, outer.offset_c)
    sums.out_bias_o.add_(grad_sum_o)
    sum_c, product_sum_c = weights.out_oc.T @ grad_sum_o, (weights.out_oc * products_oc).sum(0)
    constant, slope_of_z = _through_norm(sum_c, product_sum_c, weights.outer, outer, sums.outer, z_ct.numel())
    torch.add(constant, z_ct, alpha=slope_of_z, out=between_grad_ct)
    between_grad_ct.addmm_((weights.out_oc * outer.gain_c).T, grad_ot)

    shifts = shape.shifts(weights)
    products_cp, sums_cp = torch.empty_like(weights.taps_cp), torch.empty_like(weights.taps_cp)
    spare = torch.empty_like(before_ct[slabs(before_ct)[0]])
    for slab in slabs(before_ct):
        grad_ct = between_grad_ct[slab]
        sums.outer.slope.add_(prelu_backward(grad_ct, between_ct[slab], outer_slope, grad_ct, spare))
        z_ct = leaky_relu_out(before_ct[slab], inner_slope, out=before_grad_ct[slab])
        products_cp[slab] = tap_products(grad_ct, z_ct, shifts, spare)
        sums_cp[slab] = tap_sums(grad_ct, shifts)
        if sums.taps_bias_c is not None:
            sums.taps_bias_c[slab] += grad_ct.sum(-1)
        taps_cp = weights.taps_cp[slab] * inner.gain_c[slab, None]
        tap_conv(grad_ct, taps_cp, None, [-shift for shift in shifts], before_grad_ct[slab])
    sums.taps_cp.add_(products_cp * inner.gain_c[:, None] + sums_cp * inner.offset_c[:, None])
    sum_c, product_sum_c = (weights.taps_cp * sums_cp).sum(1), (weights.taps_cp * products_cp).sum(1)
    constant, slope_of_z = _through_norm(sum_c, product_sum_c, weights.inner, inner, sums.inner, before_ct.numel())

    for slab in slabs(before_ct):
        grad_ct, z_ct = before_grad_ct[slab], leaky_relu_out(before_ct[slab], inner_slope, out=between_grad_ct[slab])
        grad_ct.add_(z_ct, alpha=slope_of_z).add_(constant)
        sums.inner.slope.add_(prelu_backward(grad_ct, before_ct[slab], inner_slope, grad_ct, spare))
        sums.expand_bias_c[slab] += grad_ct.sum(-1)
    sums.expand_ci.addmm_(before_grad_ct, x_it.T)
    return before_grad_ct


def _norm(x_ct: Tensor, place: ActNorm, eps: float, spare_ct: Tensor) -> Norm:
    """Take mean and scale of the activation's output."""
    slope, value, square = place.slope.item(), 0.0, 0.0
    for slab in slabs(x_ct):
        z_ct = leaky_relu_out(x_ct[slab], slope, out=like(x_ct[slab], spare_ct))
        value += z_ct.sum().item()
        square += torch.linalg.vector_norm(z_ct).item() ** 2
    mean = value / x_ct.numel()
    scale = (max(0.0, square / x_ct.numel() - mean**2) + eps) ** -0.5
    gain_c = place.weight_c * scale
    return Norm(gain_c, place.bias_c - mean * gain_c, mean, scale)


def _through_norm(
    sum_c: Tensor, product_sum_c: Tensor, place: ActNorm, norm: Norm, sums: ActNorm, count: int
) -> tuple[Tensor, float]:
    """Take the gradient g of a norm's output back to that of z, which is gain * g + slope_of_z * z + constant.

    Given the sums over time of g and g * z. What would only change mean and power of z is taken out of the gradient.
    """
    grad_weight_c = (product_sum_c - norm.mean * sum_c) * norm.scale
    sums.weight_c.add_(grad_weight_c)
    sums.bias_c.add_(sum_c)
    slope_of_z = -(norm.scale**2) * torch.dot(place.weight_c, grad_weight_c).item() / count
    constant = -norm.scale * torch.dot(place.weight_c, sum_c) / count - slope_of_z * norm.mean
    return constant, slope_of_z
