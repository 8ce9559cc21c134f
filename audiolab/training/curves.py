"""Keeps the picture of training in the run folder up to date."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from audiolab.reporting.metrics_file import read_metrics
from audiolab.reporting.plots import save_figure
from audiolab.reporting.training_curves import training_curves
from audiolab.tracking import log_figure
from audiolab.training.limits import check_range

log = logging.getLogger(__name__)

DRAWING_SHARE = 0.02  # of the time, at most


class TrainingCurves(L.Callback):
    """Draws `plots/training.png` from `metrics.csv`: during training at most every `every_s` seconds, and at its end.

    It is drawn too when training stops by an interrupt or an error. `monitor` and `mode` say which epoch is best.
    Without the CSV logger there is no picture; loggers that show pictures get the last one.
    """

    def __init__(self, dirpath: Path, every_s: float, monitor: str, mode: Literal["min", "max"]) -> None:
        check_range("callbacks.curves.every_s", every_s, least=0)
        self.run_folder, self.every_s, self.monitor, self.mode = dirpath.parent, every_s, monitor, mode
        self._next_s = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock: a short run is drawn once, at its end."""
        self._next_s = time.perf_counter() + self.every_s

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the epochs so far; only now does the file have all of the last one."""
        if time.perf_counter() > self._next_s:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the whole training, for the other loggers too."""
        figure = self._draw(trainer, pl_module)
        if figure is not None:
            log_figure(trainer.loggers, "training", figure)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Draw how far it came."""
        if trainer.state.fn is TrainerFn.FITTING:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Figure | None:
        path = self.run_folder / "metrics.csv"
        if not trainer.is_global_zero or not path.is_file():
            return None
        started_s = time.perf_counter()
        try:
            figure = training_curves(
                read_metrics(path), pl_module.headline, self.monitor, self.mode, title=self.run_folder.name
            )
            if not figure.axes:
                return None  # nothing is logged yet
            save_figure(figure, self.run_folder / "plots" / "training.png")
        except OSError as error:  # a full disk, say: what training needs of it is checked where it is written
            log.warning("the picture of training was not written: %s", error)
            return None
        now_s = time.perf_counter()
        self._next_s = now_s + max(self.every_s, (now_s - started_s) / DRAWING_SHARE)
        return figure
