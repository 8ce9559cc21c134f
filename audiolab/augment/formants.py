"""Formants moved, pitch kept: another vocal tract, from one recording."""

from __future__ import annotations

import numpy as np
import scipy.fft

_WINDOW_S = 0.032
_OVERLAP = 4  # windows over each sample
_ENVELOPE_S = 0.0015  # what of the cepstrum is the tract's: below the pitch periods of all voices
_MOST_NEPERS = 2.3  # 20 dB either way


def move_formants(wave: np.ndarray, factor: float, sample_rate_hz: int) -> np.ndarray:
    """Return a waveform (time,) whose spectral envelope is `factor` times as high in frequency, without delay.

    In each window of 32 ms the envelope is the low part of the cepstrum (Oppenheim & Schafer 1968); phases and
    harmonics stay where they are. As vocal-tract length perturbation (Jaitly & Hinton 2013), but of the sound itself.

    >>> wave = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    >>> bool(np.abs(move_formants(wave, 1.0, 16000) - wave).max() < 1e-5)
    True
    """
    size = round(_WINDOW_S * sample_rate_hz / _OVERLAP) * _OVERLAP
    hop = size // _OVERLAP
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(wave.dtype)
    num_frames = -(-len(wave) // hop) + _OVERLAP - 1
    padded = np.zeros((num_frames + _OVERLAP - 1) * hop, wave.dtype)
    padded[size - hop : size - hop + len(wave)] = wave
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    spectra = scipy.fft.rfft(frames)

    power = spectra.real**2 + spectra.imag**2
    level = 0.5 * np.log(power + (1e-6 * power.max() + np.finfo(wave.dtype).tiny))
    cepstra = scipy.fft.irfft(level, size)[:, : round(_ENVELOPE_S * sample_rate_hz)]
    cepstra[:, 1:] *= 2
    quefrency = np.arange(cepstra.shape[1])
    bins = np.arange(spectra.shape[1])
    # the envelope is a sum of few cosines: where it is to be taken is a matter of their matrix alone
    moved = np.cos(2 * np.pi * np.outer(quefrency, np.minimum(bins / factor, bins[-1])) / size)
    here = np.cos(2 * np.pi * np.outer(quefrency, bins) / size)
    gain = cepstra @ (moved - here).astype(wave.dtype)
    spectra *= np.exp(gain.clip(-_MOST_NEPERS, _MOST_NEPERS))

    frames = scipy.fft.irfft(spectra, size) * (window * (2 / _OVERLAP))
    out = np.zeros_like(padded)
    for shift in range(_OVERLAP):  # frames that do not overlap are laid side by side
        part = frames[shift::_OVERLAP]
        out[shift * hop : shift * hop + part.size] += part.ravel()
    return out[size - hop : size - hop + len(wave)]
