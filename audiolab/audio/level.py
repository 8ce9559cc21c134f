"""Levels in dBFS: 0 dBFS is RMS 1.0 (a full-scale square wave), so a full-scale sine is at -3.01 dBFS.

Every function takes a floating-point NumPy array or torch tensor (..., time), works over time and keeps the dtype.
Silence (RMS below `SILENCE_DBFS`) is left as it is rather than amplified.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

from audiolab.errors import InputError

Waveform = TypeVar("Waveform", np.ndarray, torch.Tensor)

LOUDEST = 10.0  # float files may exceed full scale, 1.0, somewhat; beyond this theirs is another one
PEAK_LIMIT = 0.99  # of full scale: room for the rounding of samples, and of their sums, to 16 bits
SILENCE_DBFS = -100.0  # about the quantisation noise of 16 bits (-101 dBFS), so no recording lies below


def rms_dbfs(waveform: Waveform) -> Waveform:
    """Root mean square in dBFS, shape (...); -inf for digital silence.

    >>> round(float(rms_dbfs(np.full(100, 0.1))), 6)
    -20.0
    """
    return _decibel(_rms(waveform)[..., 0])


def peak_dbfs(waveform: Waveform) -> Waveform:
    """Largest magnitude in dBFS, shape (...); -inf for digital silence.

    >>> float(peak_dbfs(torch.tensor([0.0, -1.0])))
    0.0
    """
    return _decibel(_peak(waveform)[..., 0])


def rms_gain(waveform: Waveform, target_dbfs: float, peak_limit: float = 1.0) -> Waveform:
    """Factor, shape (..., 1), that brings the RMS to ``target_dbfs``, or the peak to ``peak_limit`` if that is less.

    For one gain on several signals (a mixture and its sources), take it from the one and multiply all.

    >>> rms_gain(np.full(4, 0.1), -40.0).round(6).tolist()
    [0.1]
    """
    library, rms, peak = _library(waveform), _rms(waveform), _peak(waveform)
    to_level = 10 ** (target_dbfs / 20) / _divisor(rms, rms)
    to_peak = peak_limit / _divisor(peak, rms)
    return library.where(_audible(rms), to_level.clip(max=to_peak), library.ones_like(rms))


def peak_gain(peak: float) -> float:
    """Factor that keeps a largest magnitude within 0.99 of full scale: 1 where it is already.

    >>> peak_gain(0.5), peak_gain(1.98)
    (1.0, 0.5)
    """
    return PEAK_LIMIT / peak if peak > PEAK_LIMIT else 1.0


def normalize_rms(waveform: Waveform, target_dbfs: float, peak_limit: float = 1.0) -> Waveform:
    """Scale to ``target_dbfs`` RMS; where the peak would pass ``peak_limit``, to that peak (a lower level) instead.

    >>> speech = normalize_rms(np.array([0.1, -0.1]), -26.0)
    >>> round(float(rms_dbfs(speech)), 6)
    -26.0
    """
    return waveform * rms_gain(waveform, target_dbfs, peak_limit)


def normalize_peak(waveform: Waveform, target_dbfs: float = 0.0) -> Waveform:
    """Scale so that the largest magnitude is at ``target_dbfs``.

    >>> normalize_peak(np.array([0.0, 0.25, -0.5])).tolist()
    [0.0, 0.5, -1.0]
    """
    library, rms = _library(waveform), _rms(waveform)
    to_peak = 10 ** (target_dbfs / 20) / _divisor(_peak(waveform), rms)
    return waveform * library.where(_audible(rms), to_peak, library.ones_like(rms))


def _library(waveform: Waveform) -> ModuleType:
    """numpy or torch: the functions used here have the same names and keywords in both."""
    return torch if isinstance(waveform, torch.Tensor) else np


def _rms(waveform: Waveform) -> Waveform:
    library = _library(waveform)
    if isinstance(waveform, torch.Tensor):
        is_float = waveform.is_floating_point()
    else:
        is_float = np.issubdtype(waveform.dtype, np.floating)
    if not is_float or waveform.shape[-1:] in ((), (0,)):
        raise InputError(
            f"no level for a waveform of {waveform.dtype} and shape {tuple(waveform.shape)}: give floating-point "
            "samples with full scale 1.0 and at least one sample over the last axis."
        )
    return library.sqrt(library.mean(waveform * waveform, axis=-1, keepdims=True))


def _peak(waveform: Waveform) -> Waveform:
    return _library(waveform).amax(abs(waveform), axis=-1, keepdims=True)


def _audible(rms: Waveform) -> Waveform:
    return rms > 10 ** (SILENCE_DBFS / 20)


def _divisor(value: Waveform, rms: Waveform) -> Waveform:
    """The value, or one for silence."""
    return _library(rms).where(_audible(rms), value, _library(rms).ones_like(rms))


def _decibel(value: Waveform) -> Waveform:
    with np.errstate(divide="ignore"):
        return 20 * _library(value).log10(value)
