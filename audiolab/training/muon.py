"""Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): steps of matrices made orthogonal, for fewer of them.

Adam sizes the step of each number of a matrix by itself, so a few directions take most of it. Muon gives all singular
directions of the averaged gradient the same length. That pays where steps are few: small corpora, minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from audiolab.errors import InputError
from audiolab.training.limits import check_range
from audiolab.training.optim import Optimization
from audiolab.training.schedules import Schedule

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steepest at 0 that keeps singular values near 1
_STEPS = 5


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U V^T of the singular value decomposition U S V^T, by five Newton-Schulz steps: S becomes 0.7 to 1.2.

    Directions that hold less than a thousandth of the matrix' norm remain smaller. A zero matrix remains zero.

    >>> values = torch.linalg.svdvals(orthogonalized(torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.1, 0.0]])))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).float()
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with `matrices`, AdamW for the others.

    `momentum` is that of Muon, with Nesterov's look ahead; `betas` and `eps` are Adam's. A kernel is a matrix of its
    output channels and all else. Steps are longer by sqrt(rows / columns) where there are more rows than columns, so
    that outputs change alike. Weight decay is decoupled in both.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], betas: tuple[float, float], eps: float, momentum: float
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "momentum": momentum, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._muon if group["matrices"] else self._adam)(weight, group)
        return loss

    def _muon(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, share = self.state[weight], 1 - group["momentum"]
        if not state:
            state["average"] = torch.zeros_like(weight)
        state["average"].lerp_(weight.grad, share)
        ahead = weight.grad.lerp(state["average"], group["momentum"]).flatten(1)
        stretch = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
        weight.add_(orthogonalized(ahead).view_as(weight), alpha=-group["lr"] * stretch)

    def _adam(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state.update(step=0, average=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        state["average"].lerp_(weight.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        scale = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        weight.addcdiv_(state["average"], scale, value=-group["lr"] / (1 - beta1 ** state["step"]))


class MuonOptimization(Optimization):
    """Muon with the rate `matrix_lr` for the weights of linear and convolution layers, AdamW for all else.

    Depthwise kernels, norms, biases and recurrent layers are left to AdamW, and so is what has a pattern of
    `elementwise` in its name: first and last layers, usually. Everything else is as in `Optimization`, in whose groups
    the matrices form a second one of their own, `<group>_matrices`.
    """

    def __init__(
        self,
        lr: float,
        matrix_lr: float,
        momentum: float,
        elementwise: Sequence[str],
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        schedule: Schedule,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, betas, eps, schedule, groups)
        check_range("optimizer.matrix_lr", matrix_lr, most=1, above=0)
        if not 0 <= momentum < 1:
            raise InputError(f"optimizer.momentum={momentum} does not fit: give a number from 0 to below 1")
        self.matrix_lr, self.momentum, self.elementwise = matrix_lr, momentum, tuple(elementwise)

    def build(self, model: nn.Module, total_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return the optimiser and its schedule for `total_steps` optimiser steps."""
        matrices = {
            id(layer.weight)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
            and getattr(layer, "groups", 1) == 1
            and not any(pattern in f"{name}.weight" for pattern in self.elementwise)
        }
        groups = []
        for group in self.parameter_groups(model):
            chosen = [weight for weight in group["params"] if id(weight) in matrices]
            others = [weight for weight in group["params"] if id(weight) not in matrices]
            if others:
                groups.append({**group, "params": others})
            if chosen:
                rate = self.matrix_lr * group["lr"] / self.rest.lr
                name = f"{group['name']}_matrices"
                groups.append({**group, "name": name, "params": chosen, "lr": rate, "matrices": True})
        optimizer = Muon(groups, self.betas, self.eps, self.momentum)
        of_groups = {f"{name}_matrices": schedule for name, schedule in self._of_groups.items()} | self._of_groups
        return optimizer, self.schedule.build(optimizer, total_steps, of_groups)
