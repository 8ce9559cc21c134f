"""Normalisation of each frame by itself or with all frames before it, in few passes over memory.

Shapes: b batch, c channels, t frames. Sums over channels are float32, those over frames float64: the millionth frame is
normalised as exactly as the first, and nothing but (batch, time) is ever in double precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiolab.nn.by_hand import once


class CumulativeSums(NamedTuple):
    """What a cumulative norm remembers of the frames so far: sums of values and squares, and the number of frames."""

    sums_2b1: Tensor
    num_frames: int


def channelwise_norm(x_bct: Tensor, weight_c: Tensor, bias_c: Tensor, eps: float) -> Tensor:
    """Bring each frame of (batch, channel, time) to mean 0 and variance 1 over its channels; then weight and bias.

    Gradients can be taken once.

    >>> channelwise_norm(torch.tensor([[[5.0], [3.0]]]), torch.ones(2), torch.zeros(2), 1e-8)
    tensor([[[ 1.],
             [-1.]]])
    """
    return _FrameNorm.apply(_at_least_single(x_bct), weight_c, bias_c, eps, None, False)[0]


def cumulative_norm(
    x_bct: Tensor, weight_c: Tensor, bias_c: Tensor, eps: float, before: CumulativeSums | None = None
) -> tuple[Tensor, CumulativeSums]:
    """Normalise with mean and variance over the channels of all frames up to the present one; also return their sums.

    `before` are the sums of the frames before these, through which no gradient flows. Gradients can be taken once.

    >>> x_bct, weight_c, bias_c = torch.tensor([[[5.0, 5.0], [3.0, 3.0]]]), torch.ones(2), torch.zeros(2)
    >>> normed_bct, sums = cumulative_norm(x_bct, weight_c, bias_c, 1e-8)
    >>> normed_bct[0, 0].tolist(), sums.sums_2b1.flatten().tolist(), sums.num_frames
    ([1.0, 1.0], [16.0, 68.0], 2)
    """
    x_bct = _at_least_single(x_bct)
    if torch.is_grad_enabled():
        normed_bct, last_2b1 = _FrameNorm.apply(x_bct, weight_c, bias_c, eps, before, True)
    else:  # a stream of a few frames at a time notices what autograd costs
        normed_bct, last_2b1, *_ = _normalise(x_bct, weight_c, bias_c, eps, before, cumulative=True)
    return normed_bct, CumulativeSums(last_2b1, x_bct.shape[-1] + (0 if before is None else before.num_frames))


def _at_least_single(x_bct: Tensor) -> Tensor:
    return x_bct.float() if x_bct.dtype in (torch.float16, torch.bfloat16) else x_bct  # of autocast


def _normalise(
    x_bct: Tensor, weight_c: Tensor, bias_c: Tensor, eps: float, before: CumulativeSums | None, *, cumulative: bool
) -> tuple[Tensor, ...]:
    """Return the normed frames, the last sums, and mean, scale and count of each frame in float64."""
    num_channels, num_frames = x_bct.shape[1:]
    own_b1t = x_bct.mean(1, keepdim=True)
    centred_bct = x_bct - own_b1t  # so that a mean far from 0 costs the variance no digits
    own_bt, around_bt = own_b1t[:, 0].double(), centred_bct.square().sum(1).double()
    sums_2bt = torch.stack((num_channels * own_bt, around_bt + num_channels * own_bt.square()))
    count_t = num_channels * torch.ones(num_frames, dtype=torch.float64, device=x_bct.device)
    if cumulative:
        sums_2bt, count_t = sums_2bt.cumsum(-1), count_t.cumsum(-1)
    if before is not None:
        sums_2bt, count_t = sums_2bt + before.sums_2b1, count_t + num_channels * before.num_frames
    mean_bt, square_bt = (sums_2bt / count_t).unbind()
    scale_bt = ((square_bt - mean_bt.square()).clamp_(min=0) + eps).rsqrt_()
    if cumulative:
        centred_bct += (own_bt - mean_bt)[:, None].to(x_bct.dtype)
    normed_bct = centred_bct.mul_(scale_bt[:, None].to(x_bct.dtype))
    normed_bct = torch.addcmul(bias_c[:, None], normed_bct, weight_c[:, None])
    return normed_bct, sums_2bt[..., -1:].clone(), mean_bt, scale_bt, count_t


class _FrameNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_bct: Tensor,
        weight_c: Tensor,
        bias_c: Tensor,
        eps: float,
        before: CumulativeSums | None,
        cumulative: bool,
    ) -> tuple[Tensor, Tensor]:
        normed_bct, last_2b1, *rest = _normalise(x_bct, weight_c, bias_c, eps, before, cumulative=cumulative)
        ctx.save_for_backward(x_bct, weight_c, *rest)
        ctx.cumulative = cumulative
        ctx.mark_non_differentiable(last_2b1)
        return normed_bct, last_2b1

    @staticmethod
    @once
    def backward(ctx: Any, grad_bct: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x_bct, weight_c, mean_bt, scale_bt, count_t = ctx.saved_tensors
        product_bct = grad_bct * x_bct
        toward_mean_bt, toward_scale_bt = (weight_c @ grad_bct).double(), (weight_c @ product_bct).double()
        # through scale = (square / count - mean^2 + eps)^-1/2 and mean = value / count to the two sums
        toward_variance_bt = -0.5 * scale_bt**3 * (toward_scale_bt - mean_bt * toward_mean_bt)
        value_bt = (-scale_bt * toward_mean_bt - 2 * mean_bt * toward_variance_bt) / count_t
        square_bt = 2 * toward_variance_bt / count_t
        if ctx.cumulative:  # a frame is part of the sums of all later ones
            value_bt, square_bt = (sums_bt.flip(-1).cumsum(-1).flip(-1) for sums_bt in (value_bt, square_bt))
        scale_bt1 = scale_bt[..., None].to(x_bct.dtype)
        shift_bt1 = (scale_bt * mean_bt)[..., None].to(x_bct.dtype)
        grad_weight_c = (product_bct @ scale_bt1 - grad_bct @ shift_bt1).sum((0, 2))
        grad_x_bct = torch.mul(grad_bct, weight_c[:, None], out=product_bct).mul_(scale_bt1.mT)
        grad_x_bct.addcmul_(x_bct, square_bt[:, None].to(x_bct.dtype)).add_(value_bt[:, None].to(x_bct.dtype))
        return grad_x_bct, grad_weight_c, grad_bct.sum((0, 2)), None, None, None
