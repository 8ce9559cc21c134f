"""Means of the loss and its parts over whole epochs, exact whatever was stopped in between."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from audiolab.training.processes import gather

LOSS = "loss"
_SIZE = ""  # in place of a name: how many utterances the sums are of


class EpochMeans(L.Callback):
    """Logs `train/loss_epoch` and `train/<part>`: means over the utterances of an epoch, of all processes.

    Lightning's own means begin anew where a run goes on within an epoch, and reach the loggers only after the
    epoch's checkpoint. These go on with the sums so far, and are written before it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_utterances = 0.0
        self._before: dict[str, float] = {}
        """The sums of the part of the epoch that a checkpoint has."""

    def state_dict(self) -> dict[str, Any]:
        """The sums of all processes, as plain numbers; a checkpoint is written by all of them together."""
        return self._totals()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the sums so far."""
        self._before = dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave to one process what all of them had added up before."""
        if not trainer.is_global_zero:
            self._before = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up on the device; nothing waits for it."""
        if not outputs:
            return
        parts = outputs.get("parts") or {LOSS: outputs["loss"] * trainer.accumulate_grad_batches}
        size = len(batch["id"])
        for name, value in parts.items():
            wide = torch.float32 if value.device.type == "mps" else torch.float64
            value = value.detach().to(wide) * size
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_utterances += size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means, written when this returns, and begin anew."""
        totals = self._totals()
        self._sums, self._num_utterances, self._before = {}, 0.0, {}
        size = totals.pop(_SIZE, 0.0)
        if not size:  # every file of the epoch was unreadable
            return
        means = {
            f"train/{LOSS}_epoch" if name == LOSS else f"train/{name}": float(torch.tensor(total / size))
            for name, total in totals.items()
        }
        for name, mean in means.items():
            pl_module.log(name, mean, prog_bar=name == f"train/{LOSS}_epoch", logger=False)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1  # where Lightning logs what belongs to an epoch
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **means}, step=step)
            logger.save()

    def _totals(self) -> dict[str, float]:
        """Return the sums of all processes by name, and under `_SIZE` the number of utterances."""
        own = dict(self._before)
        if self._sums:
            added = dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))
            for name, value in (*added.items(), (_SIZE, self._num_utterances)):
                own[name] = own.get(name, 0.0) + value
        totals: dict[str, float] = {}
        for sums in gather([own]):
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals
