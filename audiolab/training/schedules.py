"""How learning rates change: by the optimiser step, or by what validations find."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from audiolab.errors import InputError
from audiolab.training.limits import check_range


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_start: float, floor: float) -> float:
    """Return the factor on the base rate at optimiser step `step`: linear warm-up, then cosine down to `floor`.

    >>> [round(cosine_factor(s, 100, 10, 0.1, 0.0), 2) for s in (0, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Schedule(ABC):
    """Base of the schedules: `build` makes torch's own for the groups of an optimiser.

    One that watches a metric is stepped with it after every validation, the others after every optimiser step.
    """

    @property
    def watched(self) -> str | None:
        """The metric that is watched, if any."""
        return None

    def of_group(self, name: str, options: Mapping[str, Any]) -> Schedule:
        """Return the schedule of a parameter group that differs in these options.

        Raises InputError for options that there are not, or that all groups share.
        """
        if options:
            raise InputError(
                f"optimizer.groups.{name}.schedule does not fit {type(self).__name__}, by which all groups go "
                "together: leave it out"
            )
        return self

    @abstractmethod
    def build(self, optimizer: Optimizer, total_steps: int, of_groups: Mapping[str, Schedule]) -> LRScheduler:
        """Return the schedule of `total_steps` optimiser steps; groups have those of `of_groups`, or else this one."""


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """A factor on each group's rate at every optimiser step: linear warm-up, then what a subclass says.

    `warmup` is a share of all steps, `warmup_start` the factor at step 0.
    """

    warmup: float
    warmup_start: float

    def __post_init__(self) -> None:
        if not (0 <= self.warmup < 1 and 0 <= self.warmup_start <= 1):
            raise InputError(
                f"schedule.warmup={self.warmup}, warmup_start={self.warmup_start} do not fit: give a share of all "
                "steps from 0 to below 1, and a factor from 0 to 1"
            )

    @abstractmethod
    def factor(self, step: int, total_steps: int, lr: float) -> float:
        """Return the factor on the rate `lr` at an optimiser step."""

    def of_group(self, name: str, options: Mapping[str, Any]) -> StepSchedule:
        """Return the schedule of a parameter group that differs in these options.

        Raises InputError for options that there are not.
        """
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(options) - set(known)):
            raise InputError(
                f"optimizer.groups.{name}.schedule.{unknown[0]} is no option of {type(self).__name__}: its options are "
                f"{', '.join(known)}"
            )
        return replace(self, **options)

    def build(self, optimizer: Optimizer, total_steps: int, of_groups: Mapping[str, StepSchedule]) -> LambdaLR:
        """Return torch's LambdaLR."""

        def factor_of(group: dict[str, Any]) -> Any:
            schedule, lr = of_groups.get(group["name"], self), group["lr"]
            return lambda step: schedule.factor(step, total_steps, lr)

        return LambdaLR(optimizer, [factor_of(group) for group in optimizer.param_groups])


@dataclass(frozen=True)
class Constant(StepSchedule):
    """Linear warm-up, then the rate as it is.

    >>> [Constant(warmup=0.1, warmup_start=0.0).factor(step, 100, lr=1e-3) for step in (0, 5, 10, 100)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def factor(self, step: int, total_steps: int, lr: float) -> float:
        """Return the factor at an optimiser step."""
        return cosine_factor(step, total_steps, round(self.warmup * total_steps), self.warmup_start, 1.0)


@dataclass(frozen=True)
class Cosine(StepSchedule):
    """Linear warm-up, then a cosine down to the rate `floor_lr`; a rate below it stays instead of rising to it.

    >>> [round(Cosine(warmup=0.1, warmup_start=0.1, floor_lr=1e-4).factor(s, 100, lr=1e-3), 2) for s in (0, 10, 100)]
    [0.1, 1.0, 0.1]
    """

    floor_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("schedule.floor_lr", self.floor_lr, least=0)

    def factor(self, step: int, total_steps: int, lr: float) -> float:
        """Return the factor at an optimiser step."""
        floor = min(1.0, self.floor_lr / lr)
        return cosine_factor(step, total_steps, round(self.warmup * total_steps), self.warmup_start, floor)


@dataclass(frozen=True)
class Halving(Schedule):
    """Multiplies all rates by `factor` when `monitor` has not improved for more than `patience` validations.

    Better means by more than `threshold`, in the metric's own unit: torch's ReduceLROnPlateau, whose default, a share
    of the value, counts a metric in dB that stays the same as better wherever better means more negative. NaN is never
    better. Rates stop at `min_lr`.

    >>> from torch import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    >>> halving = Halving("dev/si_sdr", "max", factor=0.5, patience=1, threshold=0.01, min_lr=0.0)
    >>> schedule = halving.build(optimizer, total_steps=10, of_groups={})
    >>> for value in (9.0, 9.005, 9.0, 9.005): schedule.step(value)
    >>> optimizer.param_groups[0]["lr"]
    0.5
    """

    monitor: str
    mode: Literal["min", "max"]
    factor: float
    patience: int
    threshold: float
    min_lr: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1 or self.patience < 0 or self.threshold < 0 or self.min_lr < 0:
            raise InputError(
                f"schedule.factor={self.factor}, patience={self.patience}, threshold={self.threshold}, min_lr="
                f"{self.min_lr} do not fit: give a factor between 0 and 1, and other numbers from 0 up"
            )

    @property
    def watched(self) -> str:
        """The metric that is watched."""
        return self.monitor

    def build(self, optimizer: Optimizer, total_steps: int, of_groups: Mapping[str, Schedule]) -> ReduceLROnPlateau:
        """Return torch's ReduceLROnPlateau."""
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return ReduceLROnPlateau(
            optimizer,
            mode=self.mode,
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            threshold_mode="abs",
            min_lr=self.min_lr,
        )
