"""Optimiser groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from audiolab.errors import InputError
from audiolab.training.schedules import Schedule


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Which parameters, and how they are trained; `optional`: it may match none."""

    name: str
    lr: float
    weight_decay: float
    schedule: Mapping[str, Any] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    optional: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0:
            where = "optimizer" if self.name == "rest" else f"optimizer.groups.{self.name}"
            raise InputError(
                f"{where}.lr={self.lr}, weight_decay={self.weight_decay} do not fit: give a positive rate and a decay "
                "from 0"
            )

    def matches(self, name: str) -> bool:
        """Whether a parameter's name starts with a prefix or contains a pattern of this group."""
        return name.startswith(self.prefix) or any(pattern in name for pattern in self.contains)


class Optimization:
    """AdamW over named parameter groups, and a schedule of their rates; without decay it is Adam, to the bit.

    `groups` maps a name to `{"prefix": [...], "contains": [...], "lr": ..., "weight_decay": ..., "schedule": {...},
    "optional": ...}`. A trainable parameter joins the first group one of whose prefixes its name starts with, or one of
    whose patterns it contains, else `rest`. So `contains: [lora_]`, named before a group of the encoder's prefix, takes
    the LoRA adapters out of it. Rate and decay that a group does not say are those of `rest`, its `schedule` holds the
    options in which it differs from the schedule of all; a group that matches nothing is an error unless `optional`.
    Decay is of every parameter: `contains: [bias, norm, A_log, .D]` and `weight_decay: 0` exempt those that are no
    matrices in a model of Mamba layers.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        schedule: Schedule,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas) or eps <= 0:
            raise InputError(
                f"optimizer.betas={list(betas)}, eps={eps} do not fit: give betas from 0 to below 1 and a positive eps"
            )
        self.betas, self.eps, self.schedule = tuple(betas), eps, schedule
        self.rest = ParameterGroup("rest", lr, weight_decay)
        self.groups = [self._group(name, dict(options)) for name, options in (groups or {}).items()]
        self._of_groups = {group.name: schedule.of_group(group.name, group.schedule) for group in self.groups}

    def _group(self, name: str, options: dict[str, Any]) -> ParameterGroup:
        known = ("prefix", "contains", "lr", "weight_decay", "schedule", "optional")
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
        inherited = {key: getattr(self.rest, key) for key in ("lr", "weight_decay")}
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

    def build(self, model: nn.Module, total_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return the optimiser and its schedule for `total_steps` optimiser steps."""
        optimizer = torch.optim.AdamW(self.parameter_groups(model), betas=self.betas, eps=self.eps)
        return optimizer, self.schedule.build(optimizer, total_steps, self._of_groups)


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
