"""Mixtures of talkers: levels against one another, one gain for a mixture and its sources, who talks when.

Pure functions on floating-point arrays with full scale 1.0; shapes: s source, t time, f frame. Silence (RMS below
`audiolab.audio.level.SILENCE_DBFS`) gets the gain 1, so nothing is divided by zero or blown up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiolab.audio.level import SILENCE_DBFS, peak_gain, rms_gain
from audiolab.errors import InputError

FRAME_S = 0.02  # frames on which speech is told from pauses
ACTIVE_RANGE_DB = 25.0  # a frame this far below the loud ones is a pause


def mean_power(wave_st: np.ndarray) -> np.ndarray:
    """Return the mean power over the last axis in float64.

    >>> float(mean_power(np.array([3.0, 4.0])))
    12.5
    """
    if wave_st.shape[-1:] in ((), (0,)):
        raise InputError(f"a waveform of shape {wave_st.shape} has no level: give (..., time) with time > 0")
    return np.einsum("...t,...t->...", wave_st, wave_st, dtype=np.float64) / wave_st.shape[-1]


def snr_gains(powers_s: Sequence[float] | np.ndarray, snrs_db: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return gains (source,) that put each source but the first, of mean power `powers_s`, `snrs_db` below the first.

    1 where it or the first is silent. Raises InputError where not each but the first has its SNR.

    >>> snr_gains([1.0, 4.0], [0.0]).round(6).tolist()
    [1.0, 0.5]
    """
    if len(snrs_db) != len(powers_s) - 1:
        raise InputError(f"{len(powers_s)} sources were given {len(snrs_db)} SNRs: each but the first needs one")
    first, *others = np.asarray(powers_s, np.float64)
    silent = 10 ** (SILENCE_DBFS / 10)
    gains = [
        1.0 if first <= silent or power <= silent else np.sqrt(first / power * 10 ** (-snr_db / 10))
        for power, snr_db in zip(others, snrs_db, strict=True)
    ]
    return np.array([1.0, *gains])


def common_gain(mixture_t: np.ndarray, sources_st: np.ndarray, level_dbfs: float) -> float:
    """Return the one gain for a mixture and its sources that brings the mixture to `level_dbfs` RMS.

    Where a sample of any of them would then pass 0.99, all are lowered until the largest is there: nothing is ever
    clamped, so the mixture stays the sum of its sources.

    >>> round(common_gain(np.full(4, 0.1), np.full((2, 4), 0.05), -20.0), 6)
    1.0
    """
    return _common_gain(mixture_t, _peak(sources_st), level_dbfs)


def mixing_gains(
    sources_st: np.ndarray,
    snrs_db: Sequence[float] | np.ndarray,
    level_dbfs: float | None,
    powers_s: np.ndarray | None = None,
) -> np.ndarray:
    """Return one gain a source, float64: each but the first `snrs_db` below the first, and the mixture at `level_dbfs`.

    The common gain is that of `common_gain` (level None: the first source keeps its level). `powers_s` are the powers
    that the SNRs are between, where they are not those of the whole sources.

    >>> mixing_gains(np.array([[0.1, -0.1], [0.3, 0.3]]), [0.0], None).round(6).tolist()
    [1.0, 0.333333]
    """
    gains_s = snr_gains(mean_power(sources_st) if powers_s is None else powers_s, snrs_db)
    if level_dbfs is None:
        return gains_s
    mixture_t = np.einsum("s,st->t", gains_s, sources_st, dtype=np.float64)
    largest = float((gains_s * np.abs(sources_st).max(axis=-1)).max())
    return gains_s * _common_gain(mixture_t, largest, level_dbfs)


def mix(sources_st: np.ndarray, gains_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mixture (time,) of sources at their gains and the sources as they are in it, in the dtype given.

    >>> mix(np.ones((2, 3)), np.array([0.25, 0.5]))[0].tolist()
    [0.75, 0.75, 0.75]
    """
    scaled_st = sources_st * gains_s[:, None].astype(sources_st.dtype)
    return scaled_st.sum(axis=0), scaled_st


def fit_lengths(waves: Sequence[np.ndarray], length: str) -> np.ndarray:
    """Stack waveforms (time,) of different lengths: cut to the shortest (`min`) or padded to the longest (`max`).

    >>> fit_lengths([np.ones(2), np.ones(3)], "max").tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if length == "min":
        shortest = min(map(len, waves))
        return np.stack([wave[:shortest] for wave in waves])
    longest = max(map(len, waves))
    return np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])


def round_to_steps(wave: np.ndarray, steps: int) -> np.ndarray:
    """Round samples to multiples of `steps` 16-bit steps, halves to even; float32.

    >>> (round_to_steps(np.array([5.0, -13.0]) / 32768, 8) * 32768).tolist()
    [8.0, -16.0]
    """
    return (np.rint(wave.astype(np.float64) * (32768 / steps)) * (steps / 32768)).astype(np.float32)


def active_frames(wave_st: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which frames (..., frame) of 20 ms are speech, not pause, and the powers (..., frame) of all.

    Speech is what lies within 25 dB of the 95th percentile of the frames' powers and is no digital silence.
    """
    num_samples = min(wave_st.shape[-1], max(1, round(FRAME_S * sample_rate_hz)))
    num_frames = wave_st.shape[-1] // num_samples
    framed = wave_st[..., : num_frames * num_samples].reshape(*wave_st.shape[:-1], num_frames, num_samples)
    powers = np.einsum("...t,...t->...", framed, framed) / num_samples
    loud = np.sort(powers, axis=-1)[..., [round(0.95 * (num_frames - 1))]]
    return (powers >= loud * 10 ** (-ACTIVE_RANGE_DB / 10)) & (powers > 10 ** (SILENCE_DBFS / 10)), powers


def active_power(wave_st: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Return the mean power over the active frames alone: pauses do not make a talker quieter; 0 for silence.

    >>> speech_then_pause = np.concatenate([np.full(320, 0.1), np.zeros(320)])
    >>> round(float(active_power(speech_then_pause, 16000)), 6)
    0.01
    """
    active, powers = active_frames(wave_st, sample_rate_hz)
    return np.where(active, powers, 0.0).sum(axis=-1) / np.maximum(active.sum(axis=-1), 1)


def overlap(sources_st: np.ndarray, sample_rate_hz: int) -> float:
    """Return the share of time in which all sources are active.

    >>> late = np.concatenate([np.zeros(320), np.full(320, 0.1)])
    >>> overlap(np.stack([np.full(640, 0.1), late]), 16000)
    0.5
    """
    return float(active_frames(sources_st, sample_rate_hz)[0].all(axis=0).mean())


def input_snr_db(mixture_t: np.ndarray, source_t: np.ndarray) -> float:
    """Return the level of a source against all else in a mixture, in dB; NaN where either is silent.

    >>> round(input_snr_db(np.array([1.1, 1.1]), np.array([1.0, 1.0])), 6)
    20.0
    """
    silent = 10 ** (SILENCE_DBFS / 10)
    power, rest = float(mean_power(source_t)), float(mean_power(mixture_t - source_t))
    return 10 * float(np.log10(power / rest)) if power > silent and rest > silent else float("nan")


def _peak(wave: np.ndarray) -> float:
    return float(np.abs(wave).max(initial=0.0))


def _common_gain(mixture_t: np.ndarray, largest: float, level_dbfs: float) -> float:
    """`common_gain`, by the largest magnitude of the sources."""
    gain = float(rms_gain(np.asarray(mixture_t, np.float64), level_dbfs, peak_limit=np.inf)[0])
    return gain * peak_gain(gain * max(_peak(mixture_t), largest))
