"""Averages of weights: a moving one during training, and one of the best checkpoints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from audiolab.errors import InputError
from audiolab.training.batch_norm import has_batch_norm, reestimate_batch_norm
from audiolab.training.checkpoints import read_checkpoint
from audiolab.training.sharding import load_state

AVERAGE = "average.ckpt"


def moving_average(average: Tensor, current: Tensor, decay: float) -> Tensor:
    """Return decay x average + (1 - decay) x current; equal values stay what they are to the bit, counters are copied.

    >>> import torch
    >>> moving_average(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), decay=0.75).tolist()
    [1.0, 2.5]
    """
    return average.lerp(current, 1 - decay) if average.is_floating_point() else current


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts, summed in float64; what is not a floating-point number is that of the first.

    >>> import torch
    >>> mean_weights([{"w": torch.tensor([0.0])}, {"w": torch.tensor([3.0])}])
    {'w': tensor([1.5000])}
    """
    mean = {}
    for name, first in states[0].items():
        mean[name] = first
        if first.is_floating_point():
            total = sum((state[name].double() for state in states[1:]), first.double())
            mean[name] = (total / len(states)).to(first.dtype)
    return mean


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights and running statistics, which is what is evaluated and kept.

    Checkpoints hold the average as `state_dict` and the weights in training as `current_model_state`. Running
    statistics of batch norm are averaged like the weights. Frozen weights and constants stay exactly what they are.
    """

    def __init__(self, decay: float, every_n_steps: int, start_step: int) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1 or start_step < 0:
            raise InputError(
                f"a moving average with decay={decay}, every_n_steps={every_n_steps}, start_step={start_step} cannot "
                "be: give a decay from 0 to below 1, every step or more, and a start from 0"
            )
        super().__init__(avg_fn=lambda average, current, num_averaged: moving_average(average, current, decay))
        self.every_n_steps, self.start_step = every_n_steps, start_step

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average takes in the weights after an optimiser step."""
        return step_idx is not None and step_idx >= self.start_step and step_idx % self.every_n_steps == 0

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the average after training: Lightning would put it in place of the weights that a test loads."""
        self._average_model = None


class TopKAverage(L.Callback):
    """Averages the weights of the `keep` best epochs by a development metric and makes that the run's model.

    After every validation that is among the `keep` best so far the weights are kept (of a moving average, those it
    judged; of equal values the later). At the end of the last epoch their mean is written to `average.ckpt`, which
    `RunFolder.best_checkpoint` then prefers, and the single files are deleted. The running statistics of batch norm fit
    none of the networks then, so they are measured anew in one pass over the training data (Izmailov et al. 2018).
    Nothing is compared once more: the average is the final model because the recipe says so.
    """

    def __init__(self, dirpath: Path, keep: int, monitor: str, mode: Literal["min", "max"]) -> None:
        if keep < 1:
            raise InputError(f"an average of keep={keep} checkpoints cannot be: give 1 or more")
        self.folder, self.keep, self.monitor, self.mode = Path(dirpath), keep, monitor, mode
        self.kept: list[tuple[float, int]] = []

    def state_dict(self) -> dict[str, Any]:
        """Values and optimiser steps of the epochs kept, the best first."""
        return {"kept": [list(entry) for entry in self.kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs kept so far."""
        self.kept = [(float(value), int(step)) for value, step in state_dict["kept"]]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights that were just judged, if they are good enough."""
        if trainer.state.fn is not TrainerFn.FITTING or self.monitor not in trainer.callback_metrics:
            return
        entry = (float(trainer.callback_metrics[self.monitor]), trainer.global_step)
        others = [kept for kept in self.kept if kept[1] != entry[1]]
        sign = 1 if self.mode == "min" else -1
        self.kept = sorted([*others, entry], key=lambda kept: (sign * kept[0], -kept[1]))[: self.keep]
        if entry in self.kept:
            trainer.strategy.save_checkpoint(_judged_weights(trainer, pl_module), self._path(entry[1]))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete what is no longer among the best: only now, when `last.ckpt` does not count on it any more."""
        self._delete({self._path(step).name for _, step in self.kept}, trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the average, before the checkpoint that says that training is over."""
        is_last = trainer.current_epoch + 1 >= (trainer.max_epochs or 0) or trainer.should_stop
        if not is_last or not self.kept:
            return
        trainer.strategy.barrier("the checkpoints to average are written")
        rank_zero_info(f"averaging the weights after steps {', '.join(str(step) for _, step in self.kept)}")
        average = mean_weights([read_checkpoint(self._path(step))["state_dict"] for _, step in self.kept])
        if has_batch_norm(pl_module):
            in_training = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            load_state(pl_module, average)
            reestimate_batch_norm(trainer, pl_module)
            whole = trainer.strategy.lightning_module_state_dict()
            average = {name: value.detach().cpu().clone() for name, value in whole.items()}
            pl_module.load_state_dict(in_training)
        trainer.strategy.save_checkpoint({"state_dict": average, **self.state_dict()}, self.folder / AVERAGE)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete the single files, which the average replaces; also where an earlier process came to write it."""
        if (self.folder / AVERAGE).is_file():
            self._delete(set(), trainer)

    def _path(self, step: int) -> Path:
        return self.folder / f"top{step:07d}.ckpt"

    def _delete(self, spared: set[str], trainer: L.Trainer) -> None:
        for path in sorted(self.folder.glob("top*.ckpt")) if trainer.is_global_zero else ():
            if path.name not in spared:
                path.unlink(missing_ok=True)


def _judged_weights(trainer: L.Trainer, task: L.LightningModule) -> dict[str, Any]:
    """Return the weights as a checkpoint would hold them: a moving average puts its own in their place."""
    checkpoint: dict[str, Any] = {"state_dict": trainer.strategy.lightning_module_state_dict()}
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            callback.on_save_checkpoint(trainer, task, checkpoint)
    return {"state_dict": checkpoint["state_dict"]}
