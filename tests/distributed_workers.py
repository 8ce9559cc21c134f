"""Functions that the tests run on several processes; spawned processes import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from audiolab.errors import InputError, OutOfMemory


def answer(folder: str) -> tuple[int, int]:
    """Write what this process is; return (rank, world size)."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (Path(folder) / f"{rank}.txt").write_text(f"{os.getpid()} {os.environ['LOCAL_RANK']} {world}")
    return rank, world


def fail(how: str) -> None:
    """End process 1 in a way; process 0 waits for it, as a collective would."""
    if os.environ["RANK"] == "0":
        time.sleep(60)
    if how == "input":
        raise InputError("train.txt, line 3: no label")
    if how == "memory":
        raise OutOfMemory("the device has no memory left")
    if how == "bug":
        raise KeyError("fold")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])


def late_and_early() -> int:
    """Finish process 1 long before process 0, after both have used the group."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if os.environ["RANK"] == "0":
        time.sleep(1)
    return int(total)


def wait(folder: str) -> None:
    """Say that this process is there, then do nothing for a minute."""
    answer(folder)
    time.sleep(60)
