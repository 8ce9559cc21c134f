"""A run that is asked to stop writes its state at the next exact moment and ends with exit code 75.

SIGTERM is what clusters, containers and `timeout` send, SIGHUP what a closed terminal leaves; SLURM sends SIGUSR1 some
time before the limit where the job asks for it (`#SBATCH --signal=USR1@120`), and the job is then queued again.
Lightning's handlers would save inside the signal handler, between two batches of one step, or wait for the other
processes there: they are replaced.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from audiolab.errors import EXIT_PREEMPTED, Preempted
from audiolab.training.signals import end_as_usual, global_rank, leave_lost_terminal, requeue, say, stop_signals

_TRAINED = "its training is finished and written, only its evaluation will be done again"
_ONE_REQUEST_S = 2.0  # a signal to the whole process group arrives twice: once directly, once from the parent


def agree(trainer: L.Trainer, *values: int) -> list[int]:
    """Return the largest of each value over all processes: one small collective where there are several."""
    if trainer.world_size == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.int32, device=trainer.strategy.root_device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.tolist()


class Preemption(L.Callback):
    """Context and callback: notes signals while it is entered, and ends the run when its state is written.

    While there is something newer to write (training with a checkpoint callback) a signal is only noted in `asked`;
    that callback looks there at its exact moments, writes, and sets `written`. At any other time, and for a second
    signal, the process ends at once. A signal that asks for it (SIGUSR1 under SLURM) puts the job into the queue again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: int = 0
        """The signal's number, 0 while there is none."""
        self.written = False
        """Whether the state is written and all processes leave."""
        self._waits = self._trained = False
        self._unwritten = "there was nothing newer to write"
        self._process, self._has_workers, self._told = os.getpid(), False, False
        self._asked_at_s = 0.0
        self._interrupted = False
        self._before: dict[int, Any] = {}

    @staticmethod
    def of(trainer: L.Trainer) -> Preemption | None:
        """Return the one among the callbacks of a trainer, if any."""
        return next((callback for callback in trainer.callbacks if isinstance(callback, Preemption)), None)

    def __enter__(self) -> Preemption:
        self._before = {number: signal.getsignal(number) for number in stop_signals()}
        self._install()
        if self._before and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Preempted):
            self._requeue()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._before:
            if number != signal.SIGINT:
                signal.signal(number, self._on_signal)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take note that forked children are data workers from now on."""
        self._has_workers = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning, which has just put its own handlers in place."""
        self._install()
        self._waits = any(isinstance(callback, Checkpoint) for callback in trainer.callbacks)
        if not self._waits:
            self._unwritten = "no callback keeps checkpoints, so it starts from the beginning"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back here too: an evaluation after training has handlers of its own."""
        self._trained = self._trained or trainer.state.fn is not TrainerFn.FITTING
        self._install()

    on_test_start = on_validation_start

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the run if its state is written: only now, when the loggers have the values of the step before."""
        if self._interrupted:
            raise KeyboardInterrupt
        if self.written:
            raise self._ended(f"its state after step {trainer.global_step} is written")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the run after an epoch if its state is written."""
        self.on_train_batch_start(trainer, pl_module, None, 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the run before its evaluation."""
        self._waits, self._trained = False, True
        if self.asked:
            raise self._ended(_TRAINED)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, and again at the next batch: Python loses what is raised while it forks a worker."""
        self._interrupted = os.getpid() == self._process
        raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._on_signal_to_child(number)
            return
        if number == signal.SIGHUP:
            leave_lost_terminal()
        if self.written:
            return  # it is ending already, and another process that was faster may have caused this one
        again_s = time.monotonic() - self._asked_at_s
        if self.asked and (number == signal.SIGHUP or again_s <= _ONE_REQUEST_S):  # shell and kernel both send SIGHUP
            return
        if self.asked:
            say(f"audiolab: {self._ended('a second signal came')}")
            self._requeue()
            os._exit(EXIT_PREEMPTED)
        self.asked, self._asked_at_s = number, time.monotonic()
        if not self._waits:
            raise self._ended(_TRAINED if self._trained else self._unwritten)
        if global_rank() == 0:
            say(f"audiolab: {signal.Signals(number).name}: stopping at the next step that resumes exactly")

    def _on_signal_to_child(self, number: int) -> None:
        """Let data workers feed the run that writes its state: a signal to the process group is not for them.

        A second SIGTERM ends them all the same: it is how their parent gets rid of them.
        """
        if not self._has_workers or (number == signal.SIGTERM and self._told):
            end_as_usual(number)
        self._told = self._told or number == signal.SIGTERM

    def _requeue(self) -> None:
        if self.asked == signal.SIGUSR1 and global_rank() == 0:
            say(f"audiolab: {requeue()}")

    def _ended(self, state: str) -> Preempted:
        name = signal.Signals(self.asked).name if self.asked else "a signal to another process"
        return Preempted(f"{self.folder} was stopped by {name}, {state}; {how_to_go_on(self.folder)}")


def how_to_go_on(folder: Path) -> str:
    """Return the words that end the sentence about a stopped run."""
    if (folder / "config.yaml").is_file():
        return f"to go on: the same command again, or python -m audiolab.resume {folder}"
    return "to go on: the same command again"
