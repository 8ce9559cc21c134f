"""Where the time of training on la_mini goes: python benchmarks/training_profile.py [option=value ...]

Trains a few epochs of experiment=asvspoof/la_mini and splits the wall time of the training loop into waiting for data,
the model's steps and the rest, with the share of the callbacks that measure and show it; with the CPU time of the
process over wall time and cores. Options are those of audiolab.run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

import lightning as L
from lightning.pytorch.profilers import SimpleProfiler
from rich.table import Table

from audiolab import assemble
from audiolab.config import compose_run
from audiolab.folder import RunFolder
from audiolab.reporting.tables import console

EPOCHS = 6


class Clock(L.Callback):
    """Wall and CPU time of all epochs but the first, which reads the files."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            self.wall_s, self.cpu_s = -time.perf_counter(), -time.process_time()
            trainer.profiler.recorded_durations.clear()

    def on_train_end(self, *_: Any) -> None:
        self.wall_s += time.perf_counter()
        self.cpu_s += time.process_time()


def main(overrides: list[str]) -> None:
    base = ["experiment=asvspoof/la_mini", f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=100"]
    with tempfile.TemporaryDirectory() as outputs:
        config = compose_run([*base, f"outputs={outputs}", *overrides], "profile")
        data, task = assemble.prepare(config)
        run = RunFolder.create(config)
        trainer = assemble.build_trainer(config, run.path, run, training=True)
        trainer.profiler = SimpleProfiler()
        clock = Clock()
        trainer.callbacks.insert(0, clock)
        trainer.fit(task, data)
    table = Table(title=f"epochs 2 to {EPOCHS} on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for column in ("part", "seconds", "share of wall time"):
        table.add_column(column, justify="left" if column == "part" else "right")
    took = {name: sum(durations) for name, durations in trainer.profiler.recorded_durations.items()}
    parts = {
        "waiting for data": took["[_TrainingEpochLoop].train_dataloader_next"],
        "model: forward, backward, optimiser": took["run_training_batch"],
    }
    parts["Lightning, logs, checkpoints"] = clock.wall_s - sum(parts.values())
    for part, seconds in parts.items():
        table.add_row(part, f"{seconds:.2f}", f"{100 * seconds / clock.wall_s:.1f} %")
    for name in ("Throughput", "TrainingCurves", "EpochLine"):
        seconds = sum(took_s for action, took_s in took.items() if action.startswith(f"[Callback]{name}."))
        table.add_row(f"  of that: {name}", f"{seconds:.3f}", f"{100 * seconds / clock.wall_s:.2f} %")
    busy = clock.cpu_s / (clock.wall_s * (os.cpu_count() or 1))
    table.add_row("CPU time / (wall x cores)", f"{clock.cpu_s:.2f}", f"{100 * busy:.1f} %")
    console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
