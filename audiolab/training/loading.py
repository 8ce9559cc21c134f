"""A loader that knows how long it has been waited for."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader

_GRACE_S = 1.0  # between a killed process's connections and its entry in the process table


class TimedLoader(DataLoader):
    """A DataLoader that adds up, in `waited_s`, the seconds that the process stood still for its batches.

    Without workers that is the whole time of reading. On a GPU some of it may be hidden behind steps that were started
    before, so it is the most that faster loading could gain.
    """

    waited_s: float = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        started_s = time.perf_counter()
        batches = super().__iter__()  # starts the workers
        self.waited_s += time.perf_counter() - started_s
        return self._timed(batches)

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            started_s = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - started_s
            yield batch


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_without_a_word_after_parent(worker: int = 0) -> None:
    """Let this data worker print no traceback of a connection that broke because its process was killed.

    The thread that hands over tensors would; what has happened is said by whoever started the process.
    """
    parent = multiprocessing.parent_process()
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (isinstance(error, ConnectionError | EOFError) and parent is not None and _ends(parent.pid)):
            usual(kind, error, trace)

    sys.excepthook = hook


def _ends(parent: int) -> bool:
    """Return whether the process that started this one has ended, or does so within a moment."""
    deadline_s = time.monotonic() + _GRACE_S
    while os.getppid() == parent:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True
