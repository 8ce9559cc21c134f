"""What a user sees while training: a bar in a terminal, and one line an epoch everywhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich.progress import MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from audiolab.training.throughput import Throughput
from audiolab.training.time_left import in_words

log = logging.getLogger(__name__)

WIDTH = 80  # columns of a terminal


class Bar(RichProgressBar):
    """Lightning's bar in one line: epochs from 1, the loss, and the time that the whole training will still take.

    It leaves the terminal when it ends: the lines of the epochs stay.
    """

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Return what stands before loss and time left; in a narrow terminal the bar gives way."""
        whole = {"table_column": Column(no_wrap=True)}
        return [
            TextColumn("{task.description}", **whole),
            CustomBarColumn(bar_width=30),
            MofNCompleteColumn(**whole),
            _Speed(**whole),
        ]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown beside the bar."""
        items = super().get_metrics(trainer, pl_module)
        loss = items.get("train/loss_step", items.get("train/loss"))
        throughput = throughput_of(trainer)
        left_s = throughput.left_s(trainer) if throughput else None
        return {**({} if loss is None else {"loss": loss}), **({"left": in_words(left_s)} if left_s else {})}

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None and self._metric_component is not None:
            self.progress.live.transient = True
            self._metric_component._table_column = Column(no_wrap=True)

    def _get_train_description(self, current_epoch: int) -> str:
        words = f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{words:{len(self.validation_description)}}"


class _Speed(ProgressColumn):
    """Batches a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g} it/s", style="dim")


def progress_bar() -> list[L.Callback]:
    """Return a progress bar when a person is watching; a log file or a pipe gets the lines only."""
    return [Bar(leave=False)] if sys.stderr.isatty() and sys.stdout.isatty() else []


def throughput_of(trainer: L.Trainer) -> Throughput | None:
    """Return the callback that knows rates and the time left, where there is one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, Throughput)), None)


def fitting_line(parts: Sequence[str], spare: Sequence[str]) -> str:
    """Join the parts of a line, with those of `spare` parts that a terminal still has room for.

    >>> fitting_line(["epoch 3/10", "loss 0.0812"], ["310 utt/s", "4 min left"])
    'epoch 3/10  loss 0.0812  310 utt/s  4 min left'
    """
    line = "  ".join(parts)
    for number, part in enumerate(spare):
        others = "".join(f"  {later}" for later in spare[number + 1 :])  # the later ones matter more
        if len(line) + 2 + len(part) + len(others) <= WIDTH:
            line = f"{line}  {part}"
    return line


class EpochLine(L.Callback):
    """Prints and logs one line an epoch: loss, metrics, seconds, and what `Throughput` knows: rate and time left."""

    def __init__(self) -> None:
        self._started_s = 0.0
        self._validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run resumed within an epoch has no start of that epoch."""
        self._started_s = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started_s = time.perf_counter()
        self._validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the metrics are of this epoch."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line; validation has run by now."""
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        shown += [f"loss {values['train/loss_epoch']:.4f}"] if "train/loss_epoch" in values else []
        for set_name in trainer.datamodule.val_sets if self._validated else []:
            metric, form = next(iter(pl_module.headline.items()))
            if f"{set_name}/{metric}" in values:
                shown.append(f"{set_name} {form.format(values[f'{set_name}/{metric}'])}")
        shown.append(f"{time.perf_counter() - self._started_s:.1f} s")
        throughput = throughput_of(trainer)
        spare = []
        if throughput and throughput.current:
            left_s = throughput.left_s(trainer)
            spare = [f"{throughput.current['utterances_per_s']:.3g} utt/s"]
            spare += [f"{in_words(left_s)} left"] if left_s else []
        line = fitting_line(shown, spare)
        print(line, flush=True)
        log.info(line)
