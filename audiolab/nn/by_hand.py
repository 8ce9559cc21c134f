"""What code written by hand for the CPU shares: when it is used, and how it goes through memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SLAB_BYTES = 2**20  # for each thread: measured; two of them fit into the cache of a core


def by_hand(x: Tensor) -> bool:
    """Whether such code takes this tensor: on a GPU, and under a compiler or autocast, torch's own is the better one.

    >>> by_hand(torch.zeros(3)), by_hand(torch.zeros(3, dtype=torch.bfloat16))
    (True, False)
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward written by hand refuse create_graph=True, where its result would silently count as constant."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this gradient is written by hand and has no gradient of its own: leave out create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


def slabs(x_ct: Tensor) -> list[slice]:
    """Channels of (..., channel, time) to be worked on together: so few that the next step finds them in the cache."""
    num_channels = x_ct.shape[-2]
    bytes_of_channel = max(1, x_ct.numel() // max(1, num_channels) * x_ct.itemsize)
    together = max(1, _SLAB_BYTES * torch.get_num_threads() // bytes_of_channel)
    return [slice(first, min(first + together, num_channels)) for first in range(0, num_channels, together)]


def like(x: Tensor, spare: Tensor | None) -> Tensor:
    """Return memory of the shape of x, from `spare` where that is given and large enough: new memory costs a pass."""
    if spare is None or spare.numel() < x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return spare.view(-1)[: x.numel()].view(x.shape)


class Buffers:
    """Working memory that the segments of one call share."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory under a name: the same as before while it is large enough."""
        numel = math.prod(shape)
        if name not in self.flat or self.flat[name].numel() < numel:
            self.flat[name] = like.new_empty(numel)
        return self.flat[name][:numel].view(shape)
