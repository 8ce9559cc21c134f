"""The end of a training that no longer gets better."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from audiolab.training.limits import check_range

log = logging.getLogger(__name__)


class EarlyStopping(L.Callback):
    """Ends training, as a finished run, when `monitor` has not improved by more than `threshold` for `patience` epochs.

    It is looked at after every validation; NaN is no improvement. What Lightning's own callback would forget is part of
    the state: a run that was stopped early and killed while its sets were judged does not train on when it goes on.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], patience: int, threshold: float) -> None:
        check_range("callbacks.early_stopping.patience", patience, least=1)
        check_range("callbacks.early_stopping.threshold", threshold, least=0)
        self.monitor, self.mode, self.patience, self.threshold = monitor, mode, patience, threshold
        self.best: float | None = None
        self.best_epoch = -1
        """The epoch (from 0) of the last improvement; -1 before there was one."""
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Best value, its epoch, and whether training is over."""
        return {"best": self.best, "best_epoch": self.best_epoch, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far."""
        self.best, self.best_epoch, self.stopped = (state_dict[name] for name in ("best", "best_epoch", "stopped"))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train no more where training was over already."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the metric; all processes have the same, and rank 0 decides."""
        if trainer.state.fn is not TrainerFn.FITTING or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self._is_better(value):
            self.best, self.best_epoch = value, trainer.current_epoch
        over = trainer.current_epoch - self.best_epoch >= self.patience
        self.stopped = trainer.strategy.broadcast(over)
        trainer.should_stop = trainer.should_stop or self.stopped
        if self.stopped and trainer.is_global_zero:
            line = f"stopped early after epoch {trainer.current_epoch + 1}: {self._reason()}"
            print(line, flush=True)
            log.info(line)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value) or self.best is None:
            return math.isfinite(value)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.threshold

    def _reason(self) -> str:
        if self.best is None:
            return f"{self.monitor} was never measured"
        return f"{self.monitor} has not improved for {self.patience} epochs, since epoch {self.best_epoch + 1}"
