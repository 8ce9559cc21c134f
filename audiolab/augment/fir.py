"""FIR filters on the powers of a waveform, summed: the polynomial system of RawBoost's convolutive noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from audiolab.errors import InputError

MIN_FFT_LENGTH = 2048  # fastest of 1024 to 8192 on one CPU core for filters of 150 to 450 taps


def filter_powers(wave_bt: torch.Tensor, filters_bkl: np.ndarray) -> torch.Tensor:
    """Sum over k of filter k on wave ** (k + 1), (batch, time), a filter of L taps advanced by (L + 1) // 2 samples.

    `filters_bkl` is (batch or 1, power, tap). Outside its ends the waveform is 0. Works in the waveform's precision, by
    overlap-save in blocks that fit the cache; the powers are added as spectra, so all share one inverse transform.

    >>> wave_bt = torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    >>> filter_powers(wave_bt, np.array([[[1.0, 0.0], [0.0, 10.0]]])).round(decimals=4) + 0.0
    tensor([[ 0.,  1., 12., 40.]])
    """
    num_samples, width = wave_bt.shape[-1], filters_bkl.shape[-1]
    fft_length = MIN_FFT_LENGTH
    while fft_length < 4 * width:
        fft_length *= 2
    step = fft_length - width + 1
    num_blocks = -(-num_samples // step)
    before = width - 1 - (width + 1) // 2  # -1 for a single tap: padding by less than nothing cuts
    after = num_blocks * step + width - 1 - before - num_samples
    blocks = F.pad(wave_bt, (before, after)).unfold(-1, fft_length, step).contiguous()
    response_bkf = torch.fft.rfft(torch.from_numpy(filters_bkl).to(wave_bt), n=fft_length)
    power = blocks
    spectrum = torch.fft.rfft(power) * response_bkf[:, 0, None]
    for k in range(1, response_bkf.shape[1]):
        power = power * blocks
        spectrum += torch.fft.rfft(power) * response_bkf[:, k, None]
    filtered = torch.fft.irfft(spectrum, n=fft_length)[..., width - 1 :]
    return filtered.reshape(len(wave_bt), -1)[:, :num_samples]


def stack_filters(filters: Sequence[np.ndarray]) -> np.ndarray:
    """Filters of any lengths as one array (filter, tap) in float64, zeros around, advanced by the same (L + 1) // 2.

    >>> stack_filters([np.array([1.0, 2.0, 3.0]), np.array([4.0])])
    array([[1., 2., 3., 0.],
           [0., 4., 0., 0.]])
    """
    if len(filters) == 0 or any(np.ndim(taps) != 1 or not len(taps) for taps in filters):
        raise InputError(
            f"FIR filters have the shapes {[np.shape(taps) for taps in filters]}: give some, each (taps,)."
        )
    advances = [(len(taps) + 1) // 2 for taps in filters]
    advance = max(advances)  # of a filter of 2 * advance taps
    stacked = np.zeros((len(filters), 2 * advance))
    for row, taps, own_advance in zip(stacked, filters, advances, strict=True):
        start = advance - own_advance
        row[start : start + len(taps)] = taps
    return stacked
