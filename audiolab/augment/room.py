"""Reverberation of rooms that do not exist: exponentially decaying noise after the direct sound."""

from __future__ import annotations

import numpy as np
import scipy.fft

DECAY = 3 * np.log(10)  # of the amplitude by 60 dB within the reverberation time


def room_response(
    reverberation_s: float, direct_db: float, sample_rate_hz: int, generator: np.random.Generator
) -> np.ndarray:
    """Return an impulse response (tap,), float32: 1 at time 0, then decaying noise `direct_db` below it in energy.

    The noise falls by 60 dB within `reverberation_s`, where it is cut off (Polack's model of late reverberation).

    >>> response = room_response(0.2, 6.0, 16000, np.random.default_rng(0))
    >>> len(response), round(float(10 * np.log10(1 / np.sum(response[1:] ** 2))), 3)
    (3200, 6.0)
    """
    num_taps = max(2, round(reverberation_s * sample_rate_hz))
    tail = generator.standard_normal(num_taps, dtype=np.float32)
    tail *= np.exp(np.arange(num_taps, dtype=np.float32) * np.float32(-DECAY / num_taps))
    tail[0] = 0.0
    tail *= np.float32(10 ** (-direct_db / 20)) / np.linalg.norm(tail)
    tail[0] = 1.0
    return tail


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return a waveform (time,) in a room, of the same length; what rings on after its end is cut off.

    >>> reverberate(np.array([1.0, 0.0, 2.0]), np.array([1.0, 0.5])).round(6).tolist()
    [1.0, 0.5, 2.0]
    """
    num_samples = len(wave) + len(response) - 1
    size = scipy.fft.next_fast_len(num_samples, real=True)
    spectrum = scipy.fft.rfft(wave, size) * scipy.fft.rfft(response, size)
    return scipy.fft.irfft(spectrum, size)[: len(wave)].astype(wave.dtype, copy=False)
