"""Checkpoints: written at moments that resume exactly, read safely, refused in a sentence."""

from __future__ import annotations

import logging
import math
import pickle
import re
import time
import zipfile
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from audiolab.errors import InputError, RunError
from audiolab.training.checkpoint_files import BEST, LAST, copy, damage, link, remove_leftovers, step_file, step_files
from audiolab.training.preemption import Preemption, agree

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """`best.ckpt`, the newest `keep` of `step0000006.ckpt` ..., and `last.ckpt`, another name of the newest.

    The best is the one with the best `monitor` of all validations: NaN is never best, the earlier of equal ones stays.
    The others are written after every epoch and, within one, every `every_n_steps` optimiser steps, every
    `every_n_minutes` minutes, and when the run is asked to stop (`Preemption`).

    They are written only where a resumed run goes on exactly: after an optimiser step, not between two batches of one
    accumulated step (Lightning 2.6 loses their gradients), and not between a batch and the validation after it (the
    counters of the resumed run are one behind then), but after that validation.

    A run that is killed between `best.ckpt` and `last.ckpt` repeats the steps in between. `best.ckpt` says itself
    which value it has, so its state is read from there when a run goes on. State holds numbers, never paths: a run
    folder can be moved.
    """

    def __init__(
        self,
        dirpath: Path,
        monitor: str,
        mode: Literal["min", "max"],
        keep: int,
        every_n_steps: int | None,
        every_n_minutes: float | None,
    ) -> None:
        steps, minutes = (1 if given is None else given for given in (every_n_steps, every_n_minutes))
        if keep < 1 or steps < 1 or minutes <= 0:
            raise InputError(
                f"checkpoints with keep={keep}, every_n_steps={every_n_steps}, every_n_minutes={every_n_minutes} "
                "cannot be: keep 1 or more, and give a positive interval or null"
            )
        self.folder, self.monitor, self.mode, self.keep = Path(dirpath), monitor, mode, keep
        self.every_n_steps = every_n_steps
        self.interval_s = math.inf if every_n_minutes is None else 60 * every_n_minutes
        self.best: tuple[float, int] | None = None
        """Value and optimiser step of `best.ckpt`."""
        self._settled = False
        self._step_before = -1
        self._written_at_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Value and optimiser step of the best, as a list, or None."""
        return {"best": list(self.best) if self.best else None}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the state of the checkpoint that training goes on from with `best.ckpt`."""
        self._settle(trainer, checkpoint["callbacks"].get(self.state_key, {}).get("best"))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Clear away what killed processes have left."""
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(self.folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        if not self._settled:
            self._settle(trainer, None)
        self._written_at_s = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the number of optimiser steps."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write within an epoch when it is due, or when the run is to stop."""
        stepped, self._step_before = trainer.global_step > self._step_before >= 0, -1  # a batch of bad audio only: none
        if not stepped or _validation_or_end_follows(trainer, batch_idx):
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        late = trainer.is_global_zero and time.monotonic() - self._written_at_s >= self.interval_s
        stop = _asked(trainer)
        late, stop = agree(trainer, int(late), stop)
        if due or late or stop:
            self._write(trainer)
            _leave(trainer, stop)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `best.ckpt` if the weights that were just judged are the best so far."""
        if trainer.state.fn is not TrainerFn.FITTING or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if trainer.strategy.broadcast(self._is_better(value)):
            self.best = (value, trainer.global_step)
            trainer.save_checkpoint(self.folder / BEST, weights_only=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after every epoch and its validation."""
        self._write(trainer)
        _leave(trainer, *agree(trainer, _asked(trainer)))

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value) or self.best is None:
            return math.isfinite(value)
        return value < self.best[0] if self.mode == "min" else value > self.best[0]

    def _write(self, trainer: L.Trainer) -> None:
        path = step_file(self.folder, trainer.global_step)
        trainer.save_checkpoint(path, weights_only=False)  # the whole state
        if trainer.is_global_zero:
            link(path, self.folder / LAST)
            for old in [other for other in step_files(self.folder) if other != path][self.keep - 1 :]:
                old.unlink()
        self._written_at_s = time.monotonic()

    def _settle(self, trainer: L.Trainer, expected: list[float] | None) -> None:
        """Take the best's value from `best.ckpt` itself; rank 0 looks, the others follow."""
        best = self._best_on_disk(expected) if trainer.is_global_zero else None
        self.best, self._settled = trainer.strategy.broadcast(best), True

    def _best_on_disk(self, expected: list[float] | None) -> tuple[float, int] | None:
        path = self.folder / BEST
        why = damage(path) if path.is_file() else "it is missing"
        if why is None:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"][self.state_key]
                return float(state["best"][0]), int(state["best"][1])
            except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
                why = f"it does not say how good it is: {type(error).__name__}"
        if expected is None:  # none was written yet at the point that training goes on from: its steps are repeated
            if path.is_file():
                log.warning("%s is of no use (%s) and is replaced by the next one", path, why)
            return None
        value, step = float(expected[0]), int(expected[1])
        twin = step_file(self.folder, step)
        if twin.is_file() and damage(twin) is None:
            copy(twin, path)
            log.warning(
                "%s was of no use (%s) and is made anew from %s, which has the same weights", path, why, twin.name
            )
            return value, step
        if path.is_file():
            raise RunError(
                f"{path}, the best so far ({self.monitor} {value:g} after step {step}), is damaged ({why}) and no "
                f"other file holds it: copy it from a backup, or delete it to keep the best of the epochs to come, "
                f"or delete {self.folder} to train again to the same numbers; "
                f"then python -m audiolab.resume {self.folder.parent}"
            )
        log.warning(
            "%s of step %d (%s %g) is missing: the best of the epochs to come is kept instead",
            *(path, step, self.monitor, value),
        )
        return None


def _asked(trainer: L.Trainer) -> int:
    preemption = Preemption.of(trainer)
    return preemption.asked if preemption else 0


def _leave(trainer: L.Trainer, signal_number: int) -> None:
    """Say that the state is written, if any process was asked to stop: then all leave, at the same step."""
    preemption = Preemption.of(trainer)
    if preemption and signal_number:
        preemption.asked, preemption.written = signal_number, True


def _validation_or_end_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    done, every = batch_idx + 1, trainer.val_check_batch
    if done >= trainer.num_training_batches or every is None:  # None: validation after a time, at any batch
        return True
    if trainer.check_val_every_n_epoch is None:
        done = trainer.fit_loop.total_batch_idx + 1
    return math.isfinite(every) and done % every == 0


def read_checkpoint(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values; anything that would run code is refused.

    Raises InputError for a file that is damaged (with `verify` by its checksums too), unsafe or no checkpoint of a run.
    """
    why = damage(path) if verify and path.is_file() and zipfile.is_zipfile(path) else None
    try:
        if why is not None:
            raise ValueError(why)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a run folder that has trained for at least one epoch") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        if (held := _held_object(path, error)) is not None:
            raise InputError(
                f"{path} is refused: it holds {held}, and to read that could run code; give a checkpoint that audiolab "
                "wrote, or weights as .safetensors"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read ({reason[:150]}): it is damaged; copy it again from its source"
        ) from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise InputError(f"{path} is not a checkpoint of a run: it has no state_dict; give one that audiolab wrote")
    return state


def holds_objects(path: Path) -> str | None:
    """Say which object other than tensors and plain values a checkpoint that is whole holds, None where there is none.

    Its tensors are not read.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        held = _held_object(path, error)
        return None if held is None else f"it holds {held}, which could run code"
    return None


def _held_object(path: Path, error: Exception) -> str | None:
    """Return what a file holds that `weights_only` refuses, None where it is the file itself that is broken."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None and not zipfile.is_zipfile(path):
        return None
    return "objects other than tensors and plain values" + (f" ({named[1]})" if named else "")
