"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from audiolab.errors import InputError


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_start: float, floor: float) -> float:
    """Return the factor on the base rate at optimiser step `step`: linear warm-up, then cosine down to `floor`.

    >>> [round(cosine_factor(s, 100, 10, 0.1, 0.0), 2) for s in (0, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimization:
    """AdamW over named parameter groups with linear warm-up and a cosine per optimiser step.

    `groups` maps a name to `{"prefix": [...], "lr": ..., "weight_decay": ...}`; a trainable parameter joins the first
    group one of whose prefixes its name in the model starts with, all others form the group `rest` with `lr` and
    `weight_decay`. A group whose rate is below `floor_lr` keeps its rate instead of rising to the floor.
    Rates per optimiser step, `warmup` as a share of all steps.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup: float,
        warmup_start: float,
        floor_lr: float,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if lr <= 0 or weight_decay < 0 or not 0 <= warmup < 1:
            raise InputError(
                f"optimizer.lr={lr}, weight_decay={weight_decay}, warmup={warmup} do not fit: give a positive rate, "
                "a decay from 0 and a warm-up share from 0 to below 1"
            )
        self.lr, self.weight_decay, self.betas = lr, weight_decay, tuple(betas)
        self.warmup, self.warmup_start, self.floor_lr = warmup, warmup_start, floor_lr
        self.groups = {name: dict(group) for name, group in (groups or {}).items()}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Sort the trainable parameters into groups; each lands in exactly one.

        Raises InputError for a group that matches no trainable parameter.
        """
        rest: dict[str, Any] = {"name": "rest", "params": [], "lr": self.lr, "weight_decay": self.weight_decay}
        named = []
        for name, group in self.groups.items():
            unknown = set(group) - {"prefix", "lr", "weight_decay"}
            if unknown:
                key = sorted(unknown)[0]
                raise InputError(f"optimizer.groups.{name}.{key} is unknown: prefix, lr and weight_decay are known")
            prefix = group["prefix"] if isinstance(group["prefix"], str) else tuple(group["prefix"])
            named.append(
                {
                    "name": name,
                    "params": [],
                    "lr": group.get("lr", self.lr),
                    "weight_decay": group.get("weight_decay", self.weight_decay),
                    "prefix": prefix,
                }
            )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                home = next((group for group in named if name.startswith(group["prefix"])), rest)
                home["params"].append(parameter)
        for group in named:
            if not group["params"]:
                modules = sorted({name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad})
                raise InputError(
                    f"optimizer.groups.{group['name']} matches no trainable parameter (prefix {group['prefix']!r}): "
                    f"the model's trainable parts are {', '.join(modules)}"
                )
            del group["prefix"]
        return [group for group in [*named, rest] if group["params"]]

    def build(
        self, model: nn.Module, total_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Return the optimiser and its schedule for `total_steps` optimiser steps."""
        optimizer = torch.optim.AdamW(self.parameter_groups(model), betas=self.betas)
        warmup_steps = round(self.warmup * total_steps)

        def factor_of(lr: float) -> Any:
            floor = min(1.0, self.floor_lr / lr) if lr > 0 else 1.0
            return lambda step: cosine_factor(step, total_steps, warmup_steps, self.warmup_start, floor)

        factors = [factor_of(group["lr"]) for group in optimizer.param_groups]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
