"""Change of the sampling rate: `resample` for arrays (soxr), `resample_tensor` for batches on any device."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import soxr
import torch

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


_PASS_BAND = 0.92  # of the lower Nyquist frequency; from there a raised cosine falls to zero at that frequency
_MARGIN_S = 0.025  # of silence between the end and the start of the period of the transform


def resample_tensor(waveforms: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """Resample (..., time) on its device, with zero phase, through one Fourier transform each way.

    The length is round(num_samples x to_hz / from_hz), halves upward. Flat to 92 % of the lower Nyquist frequency,
    nothing above that frequency is left. Equal rates return the waveforms as they are.

    >>> resample_tensor(torch.zeros(2, 22050), 22050, 16000).shape
    torch.Size([2, 16000])
    """
    if from_hz <= 0 or to_hz <= 0:
        raise InputError(f"cannot resample from {from_hz} Hz to {to_hz} Hz: both rates must be positive.")
    if from_hz == to_hz:
        return waveforms
    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    num_samples = waveforms.shape[-1]
    blocks = scipy.fft.next_fast_len(math.ceil((num_samples + _MARGIN_S * from_hz) / down), real=True)
    num_bins = min(up, down) * blocks // 2 + 1
    spectrum = torch.fft.rfft(waveforms, n=down * blocks)[..., :num_bins]
    above = (torch.linspace(0, 1, num_bins, device=waveforms.device, dtype=waveforms.dtype) - _PASS_BAND).clamp_min(0)
    weight = 0.5 + 0.5 * torch.cos(above * (math.pi / (1 - _PASS_BAND)))
    resampled = torch.fft.irfft(spectrum * weight, n=up * blocks) * (up / down)
    return resampled[..., : (2 * num_samples * up + down) // (2 * down)]
