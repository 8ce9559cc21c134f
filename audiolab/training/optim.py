"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ParameterGroup:
    """Which parameters, and how they are trained; `optional`: it may match none."""

    name: str
    lr: float
    weight_decay: float
    warmup: float
    floor_lr: float
    prefix: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    optional: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.warmup < 1 or self.floor_lr < 0:
            where = "optimizer" if self.name == "rest" else f"optimizer.groups.{self.name}"
            raise InputError(
                f"{where}.lr={self.lr}, weight_decay={self.weight_decay}, warmup={self.warmup}, floor_lr="
                f"{self.floor_lr} do not fit: give a positive rate, a decay from 0, a warm-up share from 0 to below 1 "
                "and a floor from 0"
            )

    def matches(self, name: str) -> bool:
        """Whether a parameter's name starts with a prefix or contains a pattern of this group."""
        return name.startswith(self.prefix) or any(pattern in name for pattern in self.contains)

    def factor(self, step: int, total_steps: int, warmup_start: float) -> float:
        """Return the factor on `lr` at an optimiser step; a rate below the floor stays instead of rising to it."""
        floor = min(1.0, self.floor_lr / self.lr)
        return cosine_factor(step, total_steps, round(self.warmup * total_steps), warmup_start, floor)


class Optimization:
    """AdamW over named parameter groups with linear warm-up and a cosine per optimiser step.

    `groups` maps a name to `{"prefix": [...], "contains": [...], "lr": ..., "weight_decay": ..., "warmup": ...,
    "floor_lr": ..., "optional": ...}`. A trainable parameter joins the first group one of whose prefixes its name
    starts with, or one of whose patterns it contains, else `rest`. So `contains: [lora_]`, named before a group of the
    encoder's prefix, takes the LoRA adapters out of it. What a group does not say is as in `rest`; a group that
    matches nothing is an error unless `optional`. Rates are per optimiser step, `warmup` a share of all steps.
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
        self.betas, self.warmup_start = tuple(betas), warmup_start
        self.rest = ParameterGroup("rest", lr, weight_decay, warmup, floor_lr)
        self.groups = [self._group(name, dict(options)) for name, options in (groups or {}).items()]

    def _group(self, name: str, options: dict[str, Any]) -> ParameterGroup:
        known = ("prefix", "contains", "lr", "weight_decay", "warmup", "floor_lr", "optional")
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InputError(f"optimizer.groups.{name}.{unknown[0]} is unknown: {', '.join(known)} are known")
        if name == "rest" or not {"prefix", "contains"} & set(options):
            raise InputError(
                f"optimizer.groups.{name} does not say which parameters: give a group of another name than rest a "
                "prefix: [...] or contains: [...]"
            )
        for key in ("prefix", "contains"):
            options[key] = _texts(options.get(key, ()))
        inherited = {key: getattr(self.rest, key) for key in ("lr", "weight_decay", "warmup", "floor_lr")}
        return ParameterGroup(name, **{**inherited, **options})

    def assign(self, model: nn.Module) -> dict[ParameterGroup, list[nn.Parameter]]:
        """Sort the trainable parameters into groups, each into exactly one; groups without any are left out.

        Raises InputError for a group that matches no trainable parameter and is not optional.
        """
        members: dict[ParameterGroup, list[nn.Parameter]] = {group: [] for group in [*self.groups, self.rest]}
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for name in names:
            home = next((group for group in self.groups if group.matches(name)), self.rest)
            members[home].append(model.get_parameter(name))
        for group in self.groups:
            if not members[group] and not group.optional:
                modules = sorted({".".join(name.split(".")[:-1][:2]) for name in names})
                raise InputError(
                    f"optimizer.groups.{group.name} matches no trainable parameter (prefix {list(group.prefix)}, "
                    f"contains {list(group.contains)}): the trainable parts are {', '.join(modules)}"
                )
        return {group: parameters for group, parameters in members.items() if parameters}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the groups of `assign` as the optimiser takes them, with their names."""
        return [
            {"name": group.name, "params": parameters, "lr": group.lr, "weight_decay": group.weight_decay}
            for group, parameters in self.assign(model).items()
        ]

    def build(
        self, model: nn.Module, total_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Return the optimiser and its schedule for `total_steps` optimiser steps."""
        optimizer = torch.optim.AdamW(self.parameter_groups(model), betas=self.betas)

        def factor_of(group: ParameterGroup) -> Any:
            return lambda step: group.factor(step, total_steps, self.warmup_start)

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [factor_of(g) for g in self.assign(model)])


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
