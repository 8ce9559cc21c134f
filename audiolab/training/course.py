"""The course of a training in plain numbers, and what the rules of `health_rules` make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from audiolab.training import health_rules


@dataclass(frozen=True)
class Limits:
    """From when on something is said; the options of `Health`."""

    monitor: str
    mode: Literal["min", "max"]
    patience: int
    first_steps: int
    window_steps: int
    explosion_factor: float
    least_update_ratio: float


@dataclass
class Course:
    """What happened so far, all of it fit for a checkpoint (`dataclasses.asdict`).

    `norms` are gradient norms by optimiser group, the latest last, under "" those of the whole gradient; `early` the
    largest of the first steps; `ratios` the last update-to-weight ratios; `losses` the mean of every epoch and `start`
    that of the first batches; `validations` rows of an epoch (from 0) and the metrics then, the monitored one first.
    `said` are the kinds of sentences that were given already.

    >>> course = Course()
    >>> for _ in range(20): course.add_norms({"rest": 0.0}, 20, 200)
    >>> limits = Limits("dev/eer", "min", 5, 20, 200, 10.0, 1e-7)
    >>> [sentence[:46] for sentence in course.after_step(limits, {"rest": 1e-3}, clip=None)]
    ['the gradients of optimiser group rest were exa']
    >>> course.after_step(limits, {"rest": 1e-3}, clip=None)
    []
    """

    norms: dict[str, list[float]] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    start: float | None = None
    validations: list[list[float]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add_norms(self, norms: Mapping[str, float], first_steps: int, window_steps: int) -> None:
        """Add the gradient norms of a step, by group; those that are not finite, which GradScaler skips, are none."""
        whole = math.sqrt(sum(norm**2 for norm in norms.values()))
        for name, norm in {**norms, "": whole}.items():
            if math.isfinite(norm):
                known = self.norms.setdefault(name, [])
                if len(known) < first_steps:
                    self.early[name] = max(self.early.get(name, 0.0), norm)
                known.append(norm)
                del known[:-window_steps]

    def add_ratio(self, name: str, ratio: float) -> None:
        """Add the update-to-weight ratio of a group."""
        self.ratios[name] = [*self.ratios.get(name, []), ratio][-5:]

    def add_epoch(self, loss: float) -> None:
        """Add the mean training loss of an epoch."""
        self.losses.append(loss)
        self.start = loss if self.start is None else self.start

    def after_step(self, limits: Limits, rates: Mapping[str, float], clip: float | None) -> list[str]:
        """Judge gradients and updates by group, `rates` those of now, `clip` the limit on the whole norm."""
        found: dict[str, str | None] = {}
        for name, rate in rates.items():
            norms, early = self.norms.get(name, []), self.early.get(name, 0.0)
            found[f"zero {name}"] = health_rules.gradient_zero(name, norms, limits.first_steps)
            found[f"explodes {name}"] = health_rules.gradient_explodes(name, norms, early, limits.explosion_factor)
            if found[f"zero {name}"] is None:
                ratios, least = self.ratios.get(name, []), limits.least_update_ratio
                found[f"still {name}"] = health_rules.weights_not_moving(name, ratios, rate, least)
        if clip:
            found["clipped"] = health_rules.always_clipped(self.norms.get("", []), clip, limits.window_steps)
        return self.news(found)

    def after_epoch(self, limits: Limits) -> list[str]:
        """Judge training loss and development metric."""
        if not self.losses or self.start is None:
            return []
        epochs = [min(int(row[0]), len(self.losses) - 1) for row in self.validations]
        rows = [row[1:] for row in self.validations]
        values, losses = [row[0] for row in rows], [self.losses[epoch] for epoch in epochs]
        name, mode, patience = limits.monitor, limits.mode, limits.patience
        return self.news(
            {
                "loss": health_rules.loss_not_falling(self.start, self.losses, patience),
                "overfitting": health_rules.overfitting(name, mode, epochs, values, losses, patience),
                "metric": health_rules.metric_not_measured(name, values),
                "constant": health_rules.metric_constant(name, rows, patience),
            }
        )

    def news(self, found: Mapping[str, str | None]) -> list[str]:
        """Return the sentences of kinds that were not given before, and note the kinds."""
        new = {kind: sentence for kind, sentence in found.items() if sentence is not None and kind not in self.said}
        self.said += new
        return list(new.values())
