"""The signals that ask a run to stop, and what they do while nothing is being trained; torch is not needed here."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from contextlib import suppress
from types import FrameType

from audiolab.errors import EXIT_PREEMPTED


def stop_signals() -> list[int]:
    """Return the signals to stop by: SIGTERM, SIGHUP (a closed terminal, a lost connection) and SLURM's SIGUSR1.

    SIGHUP is left out where it is ignored, as `nohup` has it. Empty outside the main thread, where Python takes none.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    slurm = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
    return [signal.SIGTERM, *([] if kept else [signal.SIGHUP]), *slurm]


def stop_before_training() -> None:
    """Let a signal end this process with a sentence and exit code 75 for as long as no `Preemption` takes it.

    At any moment, in the middle of an import too: the process ends at once, and its forked children without a word.
    """
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            end_as_usual(number)
            return
        leave_lost_terminal()
        name = signal.Signals(number).name
        say(
            f"audiolab: stopped by {name} while nothing was being trained: training had not begun, or had ended; "
            "to go on: the same command again"
        )
        if number == signal.SIGUSR1 and global_rank() == 0:
            say(f"audiolab: {requeue()}")
        os._exit(EXIT_PREEMPTED)

    for number in stop_signals():
        signal.signal(number, stop)


def end_as_usual(number: int) -> None:
    """Do with a signal what a process without a handler does: for a forked child, whose parent's handler it has."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def leave_lost_terminal() -> None:
    """Write to nowhere what would go to a terminal that is gone; else the next line that is printed ends the run."""
    for descriptor in (1, 2):
        try:
            lost = stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor)
        except OSError:  # it is closed
            continue
        if lost:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def say(line: str) -> None:
    """Write a line to the standard error from a signal handler: print may be at work where the signal came in."""
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"{line}\n".encode())


def requeue() -> str:
    """Ask SLURM to queue this job again (of an array, this task of it); returns what came of it."""
    environment = os.environ
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        why = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why is None:
        return f"SLURM job {job} is queued again"
    return f"scontrol requeue {job} failed ({why or 'no reason given'}): submit the same command again"


def global_rank() -> int:
    """Return the rank that torchrun or srun has given this process, 0 without them."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
