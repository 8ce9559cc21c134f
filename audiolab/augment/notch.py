"""Banks of random notch filters: the colour of the noise that RawBoost adds.

A bank is the convolution of a few linear-phase FIR band-stop filters. Every one of them is symmetric about its centre
tap, so its zero-phase response is real, and the response of the bank is their product: the whole design is one cosine
transform there and one back, for all banks of a batch at once, instead of a window design and a convolution per band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike

# The peak of a response is looked for on this many points from 0 to below half the sample rate, as the official code
# does: a finer grid would find slightly higher peaks and give other gains.
NUM_PEAK_POINTS = 512


@dataclass(frozen=True, eq=False)
class NotchBanks:
    """Parameters of some notch banks, one a row: `gain_db` is (bank,), everything else (bank, band)."""

    fc_hz: np.ndarray  # centre of a stop band
    bw_hz: np.ndarray  # its width
    taps: np.ndarray  # length of its filter; an even number means one more, since a band-stop needs a centre tap
    gain_db: np.ndarray  # largest gain of the bank


def notch_filter(
    fc_hz: ArrayLike, bw_hz: ArrayLike, taps: ArrayLike, gain_db: float = 0.0, sample_rate: int = 16000
) -> np.ndarray:
    """FIR coefficients (float64) of one notch bank whose bands have the centres, widths and lengths given.

    Band-stop filters with edges `fc_hz -+ bw_hz / 2` (kept 0.001 Hz inside 0 and half the sample rate), Hamming window
    and gain 1 at 0 Hz are convolved; the result is scaled to a peak gain of `gain_db`. Its length is
    `sum(taps - 1) + 1`, even tap counts raised by one. Source: the code of Tak et al., "RawBoost", ICASSP 2022.

    >>> b = notch_filter(fc_hz=[1000, 3000], bw_hz=[500, 200], taps=[31, 51])
    >>> b.shape, bool(np.allclose(b, b[::-1]))
    ((81,), True)
    """
    bank = NotchBanks(
        fc_hz=np.array(fc_hz, dtype=np.float64, ndmin=2),
        bw_hz=np.array(bw_hz, dtype=np.float64, ndmin=2),
        taps=np.array(taps, dtype=np.int64, ndmin=2),
        gain_db=np.array([gain_db], dtype=np.float64),
    )
    return notch_filters(bank, sample_rate)[0]


def notch_filters(banks: NotchBanks, sample_rate: int) -> np.ndarray:
    """FIR coefficients of every bank, (bank, width) in float64.

    The width is that of the longest bank and odd; shorter ones are centred in it, with zeros (to rounding) around.
    """
    half_taps = (banks.taps | 1) // 2
    bands = _half_bandstops(banks, half_taps, sample_rate)
    num_half = half_taps.sum(axis=1).max() + 1
    num_points = NUM_PEAK_POINTS
    while num_points < num_half:  # a shorter transform would fold the ends of a long filter onto each other
        num_points *= 2
    response = scipy.fft.dct(bands, type=1, n=num_points + 1, axis=-1).prod(axis=1)
    peak = np.abs(response[:, : -1 : num_points // NUM_PEAK_POINTS]).max(axis=1)  # without half the sample rate
    half = scipy.fft.idct(response, type=1, axis=-1)[:, :num_half]
    half *= (10.0 ** (banks.gain_db / 20.0) / peak)[:, None]
    return np.concatenate((half[:, :0:-1], half), axis=1)


def _half_bandstops(banks: NotchBanks, half_taps: np.ndarray, sample_rate: int) -> np.ndarray:
    """Centre tap and right half of every band-stop filter, (bank, band, tap), zero behind the filter's end."""
    low_hz = np.maximum(banks.fc_hz - banks.bw_hz / 2, 0.001)
    high_hz = np.minimum(banks.fc_hz + banks.bw_hz / 2, sample_rate / 2 - 0.001)
    radians = 2.0 * np.pi / sample_rate * np.stack((low_hz, high_hz))[..., None]
    lag = np.arange(1, max(half_taps.max(), 1) + 1)
    low, high = np.sin(radians * lag)
    window = 0.54 + 0.46 * np.cos(np.pi * lag / np.maximum(half_taps, 1)[..., None])
    side = np.where(lag <= half_taps[..., None], (low - high) / (np.pi * lag) * window, 0.0)
    centre = 1.0 + (radians[0] - radians[1]) / np.pi
    return np.concatenate((centre, side), axis=-1) / (centre + 2.0 * side.sum(axis=-1, keepdims=True))
