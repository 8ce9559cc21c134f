"""Change of the sampling rate."""

from __future__ import annotations

import numpy as np
import soxr

from audiolab.errors import InputError


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample (time,) or (channel, time) to float32 with soxr's high quality (linear phase, no delay).

    The length is round(num_samples x to_hz / from_hz), halves upward. Equal rates return the waveform as it is, in
    float32. Peaks may rise above those of the input by a few per cent (Gibbs overshoot); nothing is clipped.

    >>> resample(np.zeros((2, 22050), np.float32), 22050, 16000).shape
    (2, 16000)
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim not in (1, 2):
        raise InputError(f"a waveform of shape {waveform.shape} cannot be resampled: give (time,) or (channel, time).")
    if from_hz <= 0 or to_hz <= 0:
        raise InputError(f"cannot resample from {from_hz} Hz to {to_hz} Hz: both rates must be positive.")
    if from_hz == to_hz:
        return waveform
    return np.ascontiguousarray(soxr.resample(np.ascontiguousarray(waveform.T), from_hz, to_hz, quality="HQ").T)
