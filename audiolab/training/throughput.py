"""How fast training goes, what holds it up, how long it will still take, and whether the disk will do."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from audiolab.training.device import COUNTERS, ProcessClock, device_warnings, of_all_ranks, read_gpu, resident_mb
from audiolab.training.disk import checkpoint_bytes, disk_warning, free_bytes
from audiolab.training.limits import check_range
from audiolab.training.rates import Tally, rates, wait_advice
from audiolab.training.time_left import in_words, time_left_s, work_left

log = logging.getLogger(__name__)

REMEMBERED = 5  # epochs that the time left is estimated from
READ_EVERY_S, DISK_EVERY_S = 5.0, 60.0
LONG_S = 600.0  # a GPU that idles as long as that is said to idle


class Throughput(L.Callback):
    """Logs `throughput/*` and `device/*` every `log_every_n_steps` steps, counted over all processes, and warns.

    `throughput/<rate>` is of the steps since the last row, `throughput/<rate>_epoch` of an epoch, both of training
    alone; after a resume an epoch counts from there. Each warning comes once: `wait_percent` of the time is spent
    waiting for data; the GPU is busy less than `idle_percent`, or has more than `memory_percent` of its memory in use;
    the disk has no room for `free_checkpoints` checkpoints, or soon will not. Without a progress bar a line is printed
    every `line_every_minutes`, for epochs that take hours. The duration of the latest epochs is part of checkpoints, so
    the time left is known right after a resume.
    """

    def __init__(
        self,
        dirpath: Path,
        line_every_minutes: float,
        wait_percent: float,
        idle_percent: float,
        memory_percent: float,
        free_checkpoints: int,
    ) -> None:
        percents = {"wait_percent": wait_percent, "idle_percent": idle_percent, "memory_percent": memory_percent}
        for name, percent in percents.items():
            check_range(f"callbacks.throughput.{name}", percent, least=0, most=100)
        check_range("callbacks.throughput.line_every_minutes", line_every_minutes, above=0)
        check_range("callbacks.throughput.free_checkpoints", free_checkpoints, least=0)
        self.dirpath, self.line_every_s = dirpath, 60 * line_every_minutes
        self.wait_percent, self.idle_percent, self.memory_percent = wait_percent, idle_percent, memory_percent
        self.free_checkpoints = free_checkpoints
        self.batch_s: deque[float] = deque(maxlen=REMEMBERED)
        self.validation_s: deque[float] = deque(maxlen=REMEMBERED)
        self.current: dict[str, float] = {}
        """The rates of the latest stretch that is known for all processes."""
        self._window, self._epoch = Tally(), Tally()
        self._done = self._epochs_here = 0
        self._mark_s = self._waited_s = self._validation_began_s = 0.0
        self._said: set[str] = set()
        self._cpu = ProcessClock()
        self._counters: dict[str, float] = {}
        self._read_s = self._disk_s = self._line_s = -float("inf")
        self._busy: deque[tuple[float, float]] = deque()
        self._free: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """Seconds a batch and a validation, of the latest epochs."""
        return {"batch_s": list(self.batch_s), "validation_s": list(self.validation_s)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know what the epochs before the resume took."""
        self.batch_s.extend(state_dict["batch_s"])
        self.validation_s.extend(state_dict["validation_s"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks; a run resumed within an epoch has no start of that epoch."""
        self._free = [free_bytes(self.dirpath.parent)]
        self._line_s = time.perf_counter()
        self._start(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to count an epoch."""
        self._epoch, self._done = Tally(), 0
        self._start(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to time a validation."""
        self._validation_began_s = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note how long it took, and go on with training."""
        if trainer.state.fn is TrainerFn.FITTING:
            self.validation_s.append(time.perf_counter() - self._validation_began_s)
            self._start(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; where Lightning logs, log what was counted since."""
        spent_s, waited_s = -self._mark_s, -self._waited_s
        self._start(trainer)
        counted = (len(batch["id"]), trainer.datamodule.audio_s(batch)) if batch else (0, 0.0)
        tally = Tally(*counted, self._waited_s + waited_s, self._mark_s + spent_s, 1)
        self._window.add(tally)
        self._epoch.add(tally)
        self._done = batch_idx + 1
        stepped = self._done % trainer.accumulate_grad_batches == 0 or self._done == trainer.num_training_batches
        if stepped and trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._close_window(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's rates, and see to the disk."""
        tally, self._epochs_here = self._epoch, self._epochs_here + 1
        if not tally.batches:
            return  # resumed after the last batch
        self.batch_s.append(tally.spent_s / tally.batches)
        self.current, _ = self._over_all_ranks(trainer, tally)
        logged = {f"throughput/{name}_epoch": value for name, value in self.current.items()}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)
        if trainer.is_global_zero:
            self._look_at_disk(trainer, at_end=True)
            if self._epochs_here > 1:  # the first one reads the files and starts the workers
                self._advise(trainer)

    def left_s(self, trainer: L.Trainer) -> float | None:
        """Return the seconds that training will still take, validations included; None while that is not known.

        The final evaluation of development and test sets comes after that.
        """
        work = work_left(trainer, self._done)
        so_far = [self._epoch.spent_s / self._epoch.batches] if self._epoch.batches else []
        return time_left_s(self.batch_s or so_far, self.validation_s, *work) if work else None

    def _start(self, trainer: L.Trainer) -> None:
        self._mark_s, self._waited_s = time.perf_counter(), trainer.train_dataloader.waited_s

    def _close_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now_s = time.perf_counter()
        if now_s - self._read_s > READ_EVERY_S:
            self._read_s = now_s
            self._read(pl_module.device)
        self.current, counters = self._over_all_ranks(trainer, self._window)
        self._window = Tally()
        logged = {f"throughput/{name}": value for name, value in self.current.items()}
        logged |= {f"device/{name}": value for name, value in counters.items()}
        pl_module.log_dict(logged, on_step=True, on_epoch=False, batch_size=1)
        if not trainer.is_global_zero:
            return
        self._warn_of_device(counters, now_s)
        if now_s - self._disk_s > DISK_EVERY_S:
            self._disk_s = now_s
            self._look_at_disk(trainer, at_end=False)
        if now_s - self._line_s > self.line_every_s:
            self._line_s = now_s
            self._print_line(trainer)
            self._advise(trainer)

    def _read(self, device: torch.device) -> None:
        self._counters = {"cpu_percent": self._cpu.percent(), "memory_mb": resident_mb()}
        if device.type == "cuda":
            self._counters |= read_gpu(device)

    def _over_all_ranks(self, trainer: L.Trainer, tally: Tally) -> tuple[dict[str, float], dict[str, float]]:
        """Return rates and counters of all processes; all of them come here at the same step."""
        if trainer.world_size == 1:
            return rates([tally]), dict(self._counters)
        mine = [*astuple(tally), *(self._counters.get(name, float("nan")) for name in COUNTERS)]
        row = torch.tensor(mine, dtype=torch.float64, device=trainer.strategy.root_device)
        rows = trainer.strategy.all_gather(row).tolist()
        fields = len(astuple(tally))
        readings = [
            {name: value for name, value in zip(COUNTERS, row[fields:], strict=True) if value == value} for row in rows
        ]
        return rates([Tally(*row[:fields]) for row in rows]), of_all_ranks(readings)

    def _warn_of_device(self, counters: dict[str, float], now_s: float) -> None:
        mean = None
        if "gpu_utilisation_percent" in counters:
            self._busy.append((now_s, counters["gpu_utilisation_percent"]))
            while now_s - self._busy[0][0] > 1.1 * LONG_S:
                self._busy.popleft()
            if now_s - self._busy[0][0] >= LONG_S:
                mean = sum(value for _, value in self._busy) / len(self._busy)
        for about, sentence in device_warnings(counters, mean, self.idle_percent, self.memory_percent).items():
            self._warn(about, sentence)

    def _look_at_disk(self, trainer: L.Trainer, *, at_end: bool) -> None:
        size, now = checkpoint_bytes(self.dirpath), free_bytes(self.dirpath.parent)
        if at_end:
            self._free.append(now)
        epochs_left = trainer.max_epochs - trainer.current_epoch - 1 if (trainer.max_epochs or -1) > 0 else None
        sentence = disk_warning(self._free if at_end else [now], size, epochs_left, self.free_checkpoints)
        if sentence:
            self._warn("disk", f"{self.dirpath.parent}: {sentence}; make room while the run goes on")

    def _advise(self, trainer: L.Trainer) -> None:
        percent = rates([self._epoch])["data_wait_percent"]
        options = trainer.datamodule.faster_loading()
        sentence = wait_advice(percent, self.wait_percent, self.left_s(trainer), options)
        if sentence:
            self._warn("waiting", sentence)

    def _warn(self, about: str, sentence: str) -> None:
        if about not in self._said:
            self._said.add(about)
            log.warning(sentence)

    def _print_line(self, trainer: L.Trainer) -> None:
        values, left_s = trainer.callback_metrics, self.left_s(trainer)
        shown = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        shown += [f"batch {self._done}/{trainer.num_training_batches}"]
        shown += [f"loss {float(values['train/loss_step']):.4f}"] if "train/loss_step" in values else []
        shown += [f"{self.current['utterances_per_s']:.3g} utt/s"]
        shown += [f"{in_words(left_s)} left"] if left_s else []
        line = "  ".join(shown)
        if trainer.progress_bar_callback is None:  # else the bar shows it
            print(line, flush=True)
        log.info(line)
