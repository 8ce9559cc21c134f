"""Waveforms of a fixed length: a window of a long one, repetitions of a short one."""

from __future__ import annotations

import numpy as np

from audiolab.errors import InputError


def fixed_length(waveform: np.ndarray, num_samples: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Return `num_samples` of a waveform (time,): a window at a drawn start, or the first; a short one is repeated.

    >>> fixed_length(np.array([1.0, 2.0, 3.0]), 5).tolist()
    [1.0, 2.0, 3.0, 1.0, 2.0]
    """
    if waveform.ndim != 1 or len(waveform) == 0:
        raise InputError(f"a waveform of shape {waveform.shape} has no samples to cut: give (time,) with time > 0")
    if len(waveform) < num_samples:
        return np.tile(waveform, -(-num_samples // len(waveform)))[:num_samples]
    start = int(generator.integers(len(waveform) - num_samples + 1)) if generator is not None else 0
    return waveform[start : start + num_samples]
