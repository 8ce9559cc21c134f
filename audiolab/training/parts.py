"""Batches that go through a model in parts: the same gradients from less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Batch = dict[str, Any]
Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


def cut(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch of columns, as long as its `id`, into nearly equal parts; anything else goes with every part.

    There are never more parts than utterances.

    >>> [part["wave"].tolist() for part in cut({"id": ["a", "b", "c"], "wave": torch.tensor([1, 2, 3])}, 2)]
    [[1, 2], [3]]
    """
    size = len(batch["id"])
    num_parts = min(num_parts, size)
    edges = [-(-size * number // num_parts) for number in range(num_parts + 1)]

    def is_column(value: Any) -> bool:
        if isinstance(value, Tensor):
            return value.ndim > 0 and len(value) == size
        return isinstance(value, list | tuple) and len(value) == size

    return [
        {name: value[first:end] if is_column(value) else value for name, value in batch.items()}
        for first, end in pairwise(edges)
    ]


def loss_in_parts(
    loss_of: Loss,
    parts: Sequence[Batch],
    weights: Sequence[float | Tensor],
    parameters: Sequence[nn.Parameter],
    scale: float | Tensor = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, the mean of its parts' by `weights`, and its named parts; one part is held at a time.

    Each part goes forward and backward in here. The loss that is returned carries the gradients: its own backward pass
    only hands them out, so that accumulation, gradient scaling and the exchange between processes, which come with
    that pass, stay what they are. Gradients that the parameters have already are left alone. `scale` is what half
    precision multiplies losses by. For DDP; sharded models exchange weights inside both passes and cannot do this.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> def loss_of(part): return (layer(part["x"]) ** 2).mean(), {}
    >>> batch = {"id": list("abc"), "x": torch.tensor([[1.0], [2.0], [3.0]])}
    >>> loss, _ = loss_in_parts(loss_of, cut(batch, 2), [2, 1], [layer.weight])
    >>> loss.backward()
    >>> in_parts, layer.weight.grad = layer.weight.grad, None
    >>> loss_of(batch)[0].backward()
    >>> bool(torch.allclose(in_parts, layer.weight.grad))
    True
    """
    before = [parameter.grad for parameter in parameters]
    total_weight = sum(weights)
    total: Tensor | float = 0.0
    named: dict[str, Tensor] = {}
    try:
        for parameter in parameters:
            parameter.grad = None
        for part, weight in zip(parts, weights, strict=True):
            share = weight / total_weight
            loss, values = loss_of(part)
            with torch.autocast(loss.device.type, enabled=False):
                (loss * (share * scale)).backward()
            total = total + share * loss.detach()
            for name, value in values.items():
                named[name] = named.get(name, 0.0) + share * value.detach()
            del loss
        gradients = [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
    return _Known.apply(total, gradients, scale, *parameters), named


class _Known(torch.autograd.Function):
    """A loss whose gradients are known: its backward pass hands them out."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        loss: Tensor,
        gradients: list[Tensor | None],
        scale: float | Tensor,
        *parameters: nn.Parameter,
    ) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return loss.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        known, ctx.gradients = ctx.gradients, []
        factor = gradient / ctx.scale
        return None, None, None, *(None if own is None else own.mul_(factor) for own in known)
