"""What a run would cost, before it is started: parameters, memory, steps, hours, disk."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from rich.table import Table

from audiolab.reporting.tables import console
from audiolab.training.data import SpeechData
from audiolab.training.footprint import checkpoints_mb, footprint, num_averages
from audiolab.training.task import Task

TIMED_STEPS = 20
_PATIENCE_S = 30.0  # after that, two steps are enough


class StepClock(L.Callback):
    """Notes when each training step ends; stops when steps are slow and there are two intervals to go by."""

    def __init__(self) -> None:
        self.stamps_s: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Take the time, of the device too."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps_s.append(time.perf_counter())
        if len(self.stamps_s) > 2 and self.stamps_s[-1] - self.stamps_s[0] > _PATIENCE_S:
            trainer.should_stop = True


def print_plan(config: dict[str, Any], task: Task, data: SpeechData, trainer: L.Trainer, clock: StepClock) -> None:
    """Print parameters per optimiser group, steps, time, memory and disk; `trainer` runs the few timed steps."""
    groups = task.optimization.parameter_groups(task)
    total = sum(p.numel() for p in task.model.parameters())
    table = Table(title=f"plan: {config['task']} / {config['recipe']}", title_justify="left")
    for column in ("parameters", "number", "learning rate"):
        table.add_column(column, justify="left" if column == "parameters" else "right")
    table.add_row("all", f"{total:,}", "")
    table.add_row("trainable", f"{sum(p.numel() for g in groups for p in g['params']):,}", "")
    for group in groups:
        table.add_row(f"  group {group['name']}", f"{sum(p.numel() for p in group['params']):,}", f"{group['lr']:g}")
    terminal = console()
    terminal.print(table)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(task, data)
    intervals_s = sorted(b - a for a, b in zip(clock.stamps_s[1:], clock.stamps_s[2:], strict=False))
    step_s = intervals_s[len(intervals_s) // 2] if intervals_s else float("nan")
    batches = len(data.train_dataloader())
    epochs = config["trainer"]["max_epochs"]
    accumulation = config["trainer"].get("accumulate_grad_batches", 1)
    needs = footprint(task, num_averages(config["callbacks"] or {}))
    facts = Table(show_header=False)
    for what, value in task.facts().items():
        facts.add_row(what, value)
    facts.add_row("batches an epoch, optimiser steps in all", f"{batches:,}, {-(-batches // accumulation) * epochs:,}")
    facts.add_row(f"seconds a batch (median of {len(intervals_s)})", f"{step_s:.3f}")
    facts.add_row("training, hours (without validation)", f"{step_s * batches * epochs / 3600:.2f}")
    facts.add_row("weights + gradients + optimiser, MiB", f"{needs.training_mb:,.0f}")
    facts.add_row("peak memory, MiB", f"{_peak_mb():,.0f} ({'GPU' if torch.cuda.is_available() else 'process'})")
    disk_mb = checkpoints_mb(needs, config["callbacks"] or {}, epochs)
    facts.add_row("disk for checkpoints at most, MiB", f"{disk_mb:,.0f}")
    terminal.print(facts)


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux
