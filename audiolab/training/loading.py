"""A loader that knows how long it has been waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


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
