"""Norms of gradients and of weight changes by optimiser group, without waiting for the device for each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audiolab.training.sharding import local

_SAMPLE = 1024


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the squared 2-norm of each tensor, (tensor,) in float32, in one fused pass.

    >>> squared_norms([torch.tensor([3.0, 4.0]), torch.tensor([1.0])]).tolist()
    [25.0, 1.0]
    """
    norms = torch._foreach_norm(list(tensors), 2, torch.float32)  # as clip_grad_norm_ does; float16 would overflow
    return torch.stack(norms).square()


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that there are, of a split model this process's parts."""
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]


def squared_gradient_norms(groups: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Return the squared gradient norm of each group of an optimiser, (group,) in float32; 0 for one without any."""
    found = [gradients_of(group["params"]) for group in groups]
    return torch.stack([squared_norms(g).sum() if g else torch.zeros((), device=device) for g in found])


class UpdateProbe:
    """Measures ||change|| / ||weights|| of each group over one optimiser step.

    Of each parameter at most some thousand evenly spaced values are compared and count for all of it, so that a model
    of any size needs neither a copy of its weights nor a pass over them.

    >>> weight = nn.Parameter(torch.full((4,), 2.0))
    >>> probe = UpdateProbe([{"params": [weight]}])
    >>> _ = weight.data.add_(0.5)
    >>> change, size = probe.squares()
    >>> (change / size).sqrt().tolist()
    [0.20000000298023224]
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._members = [[local(p.detach()) for p in group["params"] if p.numel()] for group in groups]
        self._before = [sample.clone() for sample in self._samples()]

    def squares(self) -> tuple[Tensor, Tensor]:
        """Return the squared norms of change and weights, (group,) each, estimated from the values compared."""
        now = self._samples()
        change = torch._foreach_sub(now, self._before)
        share = [m.numel() / max(1, s.numel()) for m, s in zip((m for g in self._members for m in g), now, strict=True)]
        share = torch.tensor(share, device=now[0].device)
        sizes = [len(group) for group in self._members]
        sums = [
            torch.stack([part.sum() for part in (squared_norms(values) * share).split(sizes)])
            for values in (change, now)
        ]
        return sums[0], sums[1]

    def _samples(self) -> list[Tensor]:
        return [m.flatten()[:: -(-m.numel() // _SAMPLE) or 1] for group in self._members for m in group]
