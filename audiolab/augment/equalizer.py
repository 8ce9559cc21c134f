"""Random smooth equalisation: another microphone, another distance, another voice, from one recording."""

from __future__ import annotations

import numpy as np
import scipy.fft

NUM_KNOTS = 10  # frequencies at which the level is drawn, closer together at the bottom, as hearing has them


def equalize(wave: np.ndarray, knots_db: np.ndarray) -> np.ndarray:
    """Return a waveform (time,) with its spectrum raised by a smooth curve, without delay.

    The levels of `knots_db` lie at equal steps of the square root of frequency, from 0 Hz to half the sampling rate;
    between them the curve is straight.

    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / 16000)
    >>> round(float(np.abs(equalize(tone, np.full(10, 6.0))).max()), 3)  # 6 dB everywhere
    1.995
    """
    size = scipy.fft.next_fast_len(len(wave), real=True)
    spectrum = scipy.fft.rfft(wave, size)
    place = np.sqrt(np.linspace(0, 1, len(spectrum))) * (len(knots_db) - 1)
    spectrum *= (10 ** (np.interp(place, np.arange(len(knots_db)), knots_db) / 20)).astype(wave.dtype)
    return scipy.fft.irfft(spectrum, size)[: len(wave)].astype(wave.dtype, copy=False)
