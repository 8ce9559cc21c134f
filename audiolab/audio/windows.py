"""Sliding windows over a stream of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def sliding_windows(
    blocks: Iterable[np.ndarray], window_samples: int, hop_samples: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, window) of the signal that the blocks (time,) make up, keeping no more of it than is needed.

    Windows start every `hop_samples` (at most the window); the last one ends with the signal, so it may lie nearer to
    the one before. A signal shorter than a window is one shorter window.

    >>> [(start, w.tolist()) for start, w in sliding_windows([np.arange(4), np.arange(4, 7)], 4, 2)]
    [(0, [0, 1, 2, 3]), (2, [2, 3, 4, 5]), (3, [3, 4, 5, 6])]
    """
    assert 1 <= hop_samples <= window_samples
    kept, kept_from, start = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        kept = np.concatenate((kept, block)) if len(kept) else block
        end = kept_from + len(kept)
        while start + window_samples <= end:
            yield start, kept[start - kept_from : start - kept_from + window_samples]
            start += hop_samples
        # the last window reaches back from the end, wherever that will be, so a whole window is kept
        drop = max(0, min(start, end - window_samples) - kept_from)
        kept, kept_from = kept[drop:], kept_from + drop
    end = kept_from + len(kept)
    last_end = start - hop_samples + window_samples if start else 0
    if last_end < end:
        yield max(0, end - window_samples), kept[max(0, end - window_samples) - kept_from :]
