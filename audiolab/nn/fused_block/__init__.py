"""A block of Conv-TasNet (gLN) with its gradient by hand: less memory and less time on a CPU than autograd's own.

    expand 1x1 -> act and norm -> depthwise -> act and norm -> 1x1 to residual and skip

Kept for the backward are the input and the two tensors before activation and norm, or (`recompute`) the input alone.
What else the gradient needs is made again, utterance by utterance, in buffers that are used over and over: on a CPU,
memory costs more than arithmetic. `paper_order` (activation, then norm) and `seed_order` (norm, then activation) say
how one utterance goes through.

Shapes: b batch, i channels in, o channels out, c hidden channels, t frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiolab.nn.by_hand import once
from audiolab.nn.fused_block import paper_order, seed_order
from audiolab.nn.fused_block.weights import ActNorm, BlockShape, BlockWeights

__all__ = ["ActNorm", "BlockShape", "BlockWeights", "fused_block"]


def fused_block(x_bit: Tensor, weights: BlockWeights, shape: BlockShape) -> Tensor:
    """Return the outputs (batch, channels out, time) of the block; gradients can be taken once.

    >>> norm = ActNorm(torch.tensor([0.25]), torch.ones(4), torch.zeros(4))
    >>> start, end = (torch.ones(4, 2), torch.zeros(4)), (torch.ones(6, 4), torch.zeros(6))
    >>> shape = BlockShape(dilation=1, left=1, norm_first=False, eps=1e-8, recompute=False)
    >>> fused_block(torch.randn(1, 2, 9), BlockWeights(*start, norm, torch.ones(4, 3), None, norm, *end), shape).shape
    torch.Size([1, 6, 9])
    """
    flat = weights.flat()
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (x_bit, *flat))
    return _FusedBlock.apply(x_bit, shape, learns and not shape.recompute, *flat)


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bit: Tensor, shape: BlockShape, keep: bool, *flat: Tensor | None) -> Tensor:
        weights, order = BlockWeights.of_flat(flat), seed_order if shape.norm_first else paper_order
        num_hidden, num_frames = len(weights.expand_ci), x_bit.shape[-1]
        kept = [x_bit.new_empty(len(x_bit) if keep else 1, num_hidden, num_frames) for _ in range(2 if keep else 1)]
        spare_ct = x_bit.new_empty(num_hidden, num_frames)
        out_bot = x_bit.new_empty(len(x_bit), len(weights.out_oc), num_frames)
        ctx.shape, ctx.order, ctx.moments = shape, order, []
        for item, (x_it, out_ot) in enumerate(zip(x_bit, out_bot, strict=True)):
            # not kept, the second tensor takes the place of the first
            before_ct, between_ct = (kept_bct[item if keep else 0] for kept_bct in (kept[0], kept[-1]))
            moments = order.hidden(x_it, weights, shape, before_ct, between_ct, spare_ct)
            order.ends(between_ct, weights, moments, out_ot, spare_ct)
            ctx.moments.append(moments)
        ctx.save_for_backward(x_bit, *flat, *(kept if keep else ()))
        return out_bot

    @staticmethod
    @once
    def backward(ctx: Any, grad_bot: Tensor) -> tuple[Tensor | None, ...]:
        x_bit, *rest = ctx.saved_tensors
        flat, kept = rest[:_NUM_WEIGHTS], rest[_NUM_WEIGHTS:]
        weights, shape, order = BlockWeights.of_flat(flat), ctx.shape, ctx.order
        sums = [None if weight is None else torch.zeros_like(weight) for weight in flat]
        grad_x_bit = torch.empty_like(x_bit)
        num_spares = 2 if kept else 4
        spares = [x_bit.new_empty(len(weights.expand_ci), x_bit.shape[-1]) for _ in range(num_spares)]
        for item, (x_it, grad_ot, moments) in enumerate(zip(x_bit, grad_bot, ctx.moments, strict=True)):
            before_ct, between_ct = (kept_bct[item] for kept_bct in kept) if kept else spares[2:]
            if not kept:
                order.hidden(x_it, weights, shape, before_ct, between_ct, spares[0])
            hidden = before_ct, between_ct, moments
            grad_ct = order.backward(grad_ot, x_it, hidden, weights, shape, BlockWeights.of_flat(sums), spares[:2])
            torch.mm(weights.expand_ci.T, grad_ct, out=grad_x_bit[item])
        return grad_x_bit, None, None, *sums


_NUM_WEIGHTS = 12
