"""What a user sees while training: a bar in a terminal, and one line an epoch everywhere."""

from __future__ import annotations

import logging
import sys
import time

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

log = logging.getLogger(__name__)


def progress_bar() -> list[L.Callback]:
    """Return a progress bar when a person is watching; a log file or a pipe gets the epoch lines only."""
    return [RichProgressBar(leave=False)] if sys.stderr.isatty() and sys.stdout.isatty() else []


class EpochLine(L.Callback):
    """Prints and logs one line an epoch: loss, metrics, seconds."""

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
        shown = [f"loss {values['train/loss_epoch']:.4f}"] if "train/loss_epoch" in values else []
        for set_name in trainer.datamodule.val_sets if self._validated else []:
            metric, form = next(iter(pl_module.headline.items()))
            if f"{set_name}/{metric}" in values:
                shown.append(f"{set_name} {form.format(values[f'{set_name}/{metric}'])}")
        seconds = time.perf_counter() - self._started_s
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(shown)}  {seconds:.1f} s"
        print(line, flush=True)
        log.info(line)
