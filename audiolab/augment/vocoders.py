"""Classic vocoders that take speech apart and make it again: copy-synthesised spoofs of bona fide speech.

Each is ``vocoder(waveform, sample_rate, generator) -> waveform``: NumPy (time,) in, float32 of the same length and RMS
level out (a lower level only where the peak would pass 1.0). `VOCODERS` has them by name. For 8 to 24 kHz.

>>> speech = np.random.default_rng(0).normal(0, 0.1, 8000)
>>> copy = lpc(speech, 16000, np.random.default_rng(1))
>>> copy.shape, copy.dtype.name
((8000,), 'float32')

Shapes: t frames, n samples of a frame, f frequency bins, b bands, k coefficients or lags.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal
import scipy.sparse
from numpy.lib.stride_tricks import sliding_window_view

from audiolab.audio.level import SILENCE_DBFS, normalize_rms, rms_dbfs
from audiolab.audio.resample import resample
from audiolab.errors import InputError

Vocoder = Callable[..., np.ndarray]
VOCODERS: dict[str, Vocoder] = {}

_TINY = 1e-9


def _vocoder(make: Vocoder) -> Vocoder:
    """What all share: the input is checked, silence stays silence, and length and level are those of the input."""

    @wraps(make)
    def vocoder(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator, **options: Any) -> np.ndarray:
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim != 1 or waveform.size == 0 or sample_rate < 8000:
            raise InputError(
                f"{make.__name__} got a waveform of shape {waveform.shape} at {sample_rate} Hz: give one channel "
                "(time,) at 8000 Hz or more."
            )
        level_dbfs = float(rms_dbfs(waveform))
        if level_dbfs <= SILENCE_DBFS:
            return waveform.copy()
        result = make(waveform, sample_rate, generator, **options)[: len(waveform)].astype(np.float32)
        return normalize_rms(result, level_dbfs)

    VOCODERS[make.__name__] = vocoder
    return vocoder


@_vocoder
def griffin_lim(
    waveform: np.ndarray, sample_rate: int, generator: np.random.Generator, num_bands: int = 80, num_steps: int = 16
) -> np.ndarray:
    """Phases found again for a mel spectrogram, from a random start.

    Source: Perraudin, Balazs, Søndergaard, "A fast Griffin-Lim algorithm", WASPAA 2013, algorithm 2, alpha 0.99.
    """
    hop = sample_rate // 100
    size = 4 * hop
    bands_bf = _mel_bands(num_bands, size // 2 + 1, sample_rate)
    mel_tb = np.abs(_stft(waveform, size, hop)) @ bands_bf.T / (bands_bf.sum(axis=1) + _TINY)
    magnitude_tf = mel_tb @ bands_bf
    estimate_tf = magnitude_tf * np.exp(2j * np.pi * generator.random(magnitude_tf.shape, dtype=np.float32))
    previous_tf = estimate_tf
    for _ in range(num_steps):
        consistent_tf = _stft(_istft(estimate_tf, size, hop, len(waveform)), size, hop)
        estimate_tf = consistent_tf + 0.99 * (consistent_tf - previous_tf)
        estimate_tf *= magnitude_tf / (np.abs(estimate_tf) + _TINY)
        previous_tf = consistent_tf
    return _istft(estimate_tf, size, hop, len(waveform))


@_vocoder
def lpc(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Linear prediction (a pole pair for each kHz and one for the slope) driven by pulses or by noise.

    Source: Atal and Hanauer, "Speech analysis and synthesis by linear prediction of the speech wave", JASA 50, 1971.
    """
    hop = sample_rate // 200
    frames_tn = _frames(waveform, 5 * hop, hop) * _hann(5 * hop)
    autocorrelation_tk = _autocorrelation(frames_tn, sample_rate // 1000 + 3)
    autocorrelation_tk[:, 0] = autocorrelation_tk[:, 0] * (1 + 1e-5) + _TINY  # a floor at -50 dB damps the poles
    predictor_tk, error_t = _levinson(autocorrelation_tk)
    filter_tf = np.sqrt(error_t)[:, None] / scipy.fft.rfft(predictor_tk, _fft_size(sample_rate))
    excitation = _excitation(_pitch(waveform, hop, sample_rate), hop, sample_rate, len(waveform), generator)
    return _filter_frames(excitation, filter_tf, hop)


@_vocoder
def cepstral(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Cepstrally smoothed spectrum with minimum phase, driven by pulses below 3.5 kHz and noise above.

    Sources: Oppenheim, "Speech analysis-synthesis system based on homomorphic filtering", JASA 45, 1969; the mixed
    excitation: Makhoul et al., "A mixed-source model for speech compression and synthesis", JASA 64, 1978.
    """
    hop, fft_size = sample_rate // 200, _fft_size(sample_rate)
    power_tf = np.abs(scipy.fft.rfft(_frames(waveform, 5 * hop, hop) * _hann(5 * hop), fft_size)) ** 2 + _TINY
    cepstrum_tk = scipy.fft.irfft(np.log(power_tf) / 2)
    # 3 ms of quefrency keep the formants and drop the harmonics; a doubled causal half makes the phase minimum.
    num_kept = 3 * sample_rate // 1000
    lifter_k = np.zeros(fft_size, np.float32)
    lifter_k[:num_kept] = 1 + np.cos(np.pi * np.arange(num_kept) / num_kept)
    lifter_k[0] = 1
    filter_tf = np.exp(scipy.fft.rfft(cepstrum_tk * lifter_k))
    filter_tf *= np.sqrt(power_tf.mean(axis=1) / (np.abs(filter_tf) ** 2).mean(axis=1))[:, None]
    pulses = _excitation(_pitch(waveform, hop, sample_rate), hop, sample_rate, len(waveform), generator)
    noise = generator.standard_normal(len(waveform), dtype=np.float32)
    low_pass = scipy.signal.firwin(63, 3500, fs=sample_rate).astype(np.float32)
    excitation = noise + scipy.ndimage.convolve1d(pulses - noise, low_pass, mode="constant")
    return _filter_frames(excitation, filter_tf, hop)


@_vocoder
def harmonic_noise(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Sinusoids at the harmonics below 4 kHz of voiced frames, with smooth phases, and shaped noise elsewhere.

    Source: Stylianou, "Applying the harmonic plus noise model in concatenative speech synthesis", IEEE Trans. Speech
    and Audio Processing 9, 2001; here with a fixed maximum voiced frequency.
    """
    hop = sample_rate // 200
    size = 8 * hop
    window_n = _hann(size)
    magnitude_tf = np.abs(scipy.fft.rfft(_frames(waveform, size, hop) * window_n, 2 * size))
    bin_hz = sample_rate / (2 * size)
    limit_hz = min(4000.0, 0.45 * sample_rate)
    pitch_t = _pitch(waveform, hop, sample_rate)
    phase, _ = _phase(pitch_t, hop, sample_rate, len(waveform))
    rotation = np.exp(1j * phase).astype(np.complex64)
    harmonic = np.ones_like(rotation)
    result = np.zeros(len(waveform), np.float32)
    for number in range(1, int(limit_hz / pitch_t[pitch_t > 0].min(initial=limit_hz)) + 1):
        bins_t = np.minimum(np.rint(number * pitch_t / bin_hz).astype(int), magnitude_tf.shape[1] - 1)
        amplitude_t = magnitude_tf[np.arange(len(bins_t)), bins_t] * (2 / window_n.sum())
        amplitude_t[(pitch_t == 0) | (number * pitch_t > limit_hz)] = 0
        harmonic *= rotation
        offset = np.complex64(np.exp(1j * generator.uniform(-1.3, 1.3)))
        result += _per_sample(amplitude_t, hop, len(waveform)) * (harmonic * offset).real
    noise_tf = np.sqrt(scipy.ndimage.uniform_filter(magnitude_tf**2, (1, 9)))[:, ::2]
    noise_tf[(pitch_t > 0)[:, None] & (np.arange(size // 2 + 1) * 2 * bin_hz < limit_hz)] = 0
    noise = generator.standard_normal(len(waveform), dtype=np.float32) / np.sqrt((window_n**2).sum())
    return result + _istft(_stft(noise, size, hop) * noise_tf, size, hop, len(waveform))


@_vocoder
def channel(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator, num_bands: int = 24) -> np.ndarray:
    """Pulses or noise that get the speech's energy in mel-spaced bands every 5 ms.

    Source: Dudley, "Remaking speech", JASA 11, 1939; the bands are gains on a short-time spectrum here.
    """
    hop = sample_rate // 200
    size = 4 * hop
    bands_bf = _mel_bands(num_bands, size // 2 + 1, sample_rate)
    excitation = _excitation(_pitch(waveform, hop, sample_rate), hop, sample_rate, len(waveform), generator)
    # Low frequencies 4 ms before high ones: pulses with all harmonics in phase would peak unlike a voice.
    dispersion_f = np.exp(-0.004j * np.pi * np.linspace(0, 1, size // 2 + 1) ** 2 * sample_rate / 2)
    excitation_tf = _stft(excitation, size, hop) * dispersion_f.astype(np.complex64)
    wanted_tb = np.abs(_stft(waveform, size, hop)) ** 2 @ bands_bf.T
    present_tb = np.abs(excitation_tf) ** 2 @ bands_bf.T
    gain_tf = np.sqrt(wanted_tb / (present_tb + _TINY)) @ bands_bf
    return _istft(excitation_tf * gain_tf, size, hop, len(waveform))


@_vocoder
def shift(
    waveform: np.ndarray, sample_rate: int, generator: np.random.Generator, max_semitones: float = 3.0
) -> np.ndarray:
    """Pitch and formants moved together by 1 to ``max_semitones`` up or down: resampling, then WSOLA to the length.

    Source: Verhelst and Roelands, "An overlap-add technique based on waveform similarity (WSOLA) for high quality
    time-scale modification of speech", ICASSP 1993.
    """
    if not 0 < max_semitones <= 12:
        raise InputError(f"max_semitones is {max_semitones}: it must be above 0 and at most 12.")
    semitones = generator.uniform(min(1.0, max_semitones), max_semitones) * generator.choice((-1, 1))
    moved = resample(waveform, round(sample_rate * 2 ** (semitones / 12)), sample_rate)
    hop = sample_rate // 100
    reach = hop // 2
    window_n = _hann(2 * hop)
    num_frames = -(-len(waveform) // hop) + 1
    padded = np.pad(moved, (hop + reach, 4 * hop + reach))
    energy = np.cumsum(np.concatenate(([0.0], padded.astype(np.float64) ** 2)))
    result = np.zeros((num_frames + 1) * hop, np.float32)
    start = reach
    for index in range(num_frames):
        if index > 0:
            # the piece near its place in time that looks most like what followed the piece before
            wanted = padded[start + hop : start + 3 * hop]
            first = round(index * hop * len(moved) / len(waveform))
            match = np.correlate(padded[first : first + 2 * reach + 2 * hop], wanted, "valid")
            lengths = energy[first + 2 * hop :][: len(match)] - energy[first:][: len(match)]
            start = first + int(np.argmax(match / np.sqrt(lengths + _TINY)))
        result[index * hop : (index + 2) * hop] += window_n * padded[start : start + 2 * hop]
    return result[hop:]


def _hann(size: int) -> np.ndarray:
    """Periodic Hann window, so that copies half a length apart sum to one."""
    return scipy.signal.get_window("hann", size).astype(np.float32)


def _fft_size(sample_rate: int) -> int:
    """Power of two that holds 50 ms."""
    return 1 << (sample_rate // 20 - 1).bit_length()


def _frames(waveform: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Frames (t, n) centred on samples 0, hop, 2 hop ... up to the first centre at or after the end."""
    num_frames = -(-len(waveform) // hop) + 1
    padded = np.pad(waveform, (size // 2, num_frames * hop + size - len(waveform)))
    return sliding_window_view(padded, size)[: num_frames * hop : hop]


def _overlap_add(frames_tn: np.ndarray, hop: int) -> np.ndarray:
    num_frames, size = frames_tn.shape
    num_parts = -(-size // hop)
    parts_tpn = np.pad(frames_tn, ((0, 0), (0, num_parts * hop - size))).reshape(num_frames, num_parts, hop)
    result = np.zeros((num_frames + num_parts, hop), frames_tn.dtype)
    for part in range(num_parts):
        result[part : part + num_frames] += parts_tpn[:, part]
    return result.reshape(-1)


def _stft(waveform: np.ndarray, size: int, hop: int) -> np.ndarray:
    return scipy.fft.rfft(_frames(waveform, size, hop) * np.sqrt(_hann(size)))


def _istft(spectrum_tf: np.ndarray, size: int, hop: int, num_samples: int) -> np.ndarray:
    """Inverse of `_stft`."""
    frames_tn = scipy.fft.irfft(spectrum_tf, size) * np.sqrt(_hann(size))
    result = _overlap_add(frames_tn, hop)[size // 2 : size // 2 + num_samples]
    return result / _window_sum(len(spectrum_tf), size, hop)[size // 2 : size // 2 + num_samples]


@lru_cache(maxsize=4)
def _window_sum(num_frames: int, size: int, hop: int) -> np.ndarray:
    """Sum of the squared windows of `_stft`: constant but for the ends."""
    return _overlap_add(np.broadcast_to(_hann(size), (num_frames, size)), hop)


def _filter_frames(excitation: np.ndarray, filter_tf: np.ndarray, hop: int) -> np.ndarray:
    """The excitation through a filter that changes every hop: windowed pieces, each with its own causal response."""
    pieces_tn = _frames(excitation, 2 * hop, hop) * _hann(2 * hop)
    num_samples = 2 * (filter_tf.shape[1] - 1)
    return _overlap_add(scipy.fft.irfft(scipy.fft.rfft(pieces_tn, num_samples) * filter_tf, num_samples), hop)[hop:]


def _mel_bands(num_bands: int, num_bins: int, sample_rate: int) -> scipy.sparse.csr_array:
    """Triangles (b, f) evenly spaced in mel from 0 Hz to half the rate, whose sum is one in every bin."""
    mel_f = 2595 * np.log10(1 + np.linspace(0, sample_rate / 2, num_bins) / 700)
    position_f = mel_f / mel_f[-1] * (num_bands - 1)
    triangles_bf = np.maximum(0, 1 - np.abs(position_f - np.arange(num_bands)[:, None]))
    return scipy.sparse.csr_array(triangles_bf.astype(np.float32))


def _autocorrelation(frames_tn: np.ndarray, num_lags: int, steps_per_lag: int = 1) -> np.ndarray:
    """Lags 0 to num_lags - 1 of each frame, (t, k), with interpolated values between them where asked for."""
    fft_size = scipy.fft.next_fast_len(frames_tn.shape[1] + num_lags, real=True)
    power_tf = np.abs(scipy.fft.rfft(frames_tn, fft_size)) ** 2 * steps_per_lag
    return scipy.fft.irfft(power_tf, fft_size * steps_per_lag)[:, : num_lags * steps_per_lag]


def _levinson(autocorrelation_tk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levinson-Durbin recursion on all frames at once: predictor (t, k) with k = 0 being 1, and error power (t,)."""
    r_tk = autocorrelation_tk.astype(np.float64)
    predictor_tk = np.zeros_like(r_tk)
    predictor_tk[:, 0] = 1
    error_t = r_tk[:, 0].copy()
    for order in range(1, r_tk.shape[1]):
        reflection_t = -(predictor_tk[:, :order] * r_tk[:, order:0:-1]).sum(axis=1) / error_t
        predictor_tk[:, 1 : order + 1] += reflection_t[:, None] * predictor_tk[:, order - 1 :: -1][:, :order]
        error_t *= 1 - reflection_t**2
    return predictor_tk.astype(np.float32), error_t.astype(np.float32)


def _pitch(waveform: np.ndarray, hop: int, sample_rate: int) -> np.ndarray:
    """Fundamental frequency (t,) in Hz every hop, 0 where unvoiced.

    Peaks of the autocorrelation over that of the window (Boersma, 1993) at about 4 kHz, joined by dynamic programming.
    """
    slow = resample(waveform, hop, 20)  # 20 samples a hop
    slow_hz = 20 * sample_rate / hop
    frames_tn = _frames(slow, 180, 20) * _hann(180)
    min_lag, max_lag = int(slow_hz / 420), int(slow_hz / 60)
    # quarter lags: between whole ones a short period would lose against its double, which is nearer to a whole lag
    autocorrelation_tk = _autocorrelation(frames_tn, max_lag + 2, 4)
    energy_t = autocorrelation_tk[:, 0]
    window_k = _autocorrelation(_hann(180)[None], max_lag + 2, 4)[0]
    strength_tk = autocorrelation_tk / (energy_t[:, None] + _TINY) / (window_k / window_k[0])
    lags_k = np.arange(min_lag, max_lag + 1)
    quarters_tkn = strength_tk[:, 4 * min_lag - 2 : 4 * max_lag + 2].reshape(len(strength_tk), len(lags_k), 4)
    path_t = _best_path(
        quarters_tkn.max(axis=2) - 0.03 * np.log2(lags_k / min_lag),
        0.6 * np.abs(np.log2(lags_k[:, None] / lags_k)).astype(np.float32),
    )
    rows_t = np.arange(len(path_t))
    at_t = 4 * lags_k[path_t] - 2 + quarters_tkn[rows_t, path_t].argmax(axis=1)
    left_t, peak_t, right_t = (strength_tk[rows_t, at_t + step] for step in (-1, 0, 1))
    parabola_t = np.minimum(left_t - 2 * peak_t + right_t, -_TINY)
    lag_t = (at_t + np.clip((left_t - right_t) / (2 * parabola_t), -0.5, 0.5)) / 4
    voiced_t = scipy.ndimage.median_filter((peak_t > 0.5) & (energy_t > 1e-4 * energy_t.max()), 5)
    num_frames = -(-len(waveform) // hop) + 1
    return np.where(voiced_t, slow_hz / lag_t, 0)[np.minimum(np.arange(num_frames), len(voiced_t) - 1)]


def _best_path(gain_tk: np.ndarray, jump_kk: np.ndarray) -> np.ndarray:
    """State (t,) of the path with the largest sum of gains less the costs of its jumps (Viterbi)."""
    best_k = gain_tk[0]
    came_from_tk = np.zeros(gain_tk.shape, int)
    for index in range(1, len(gain_tk)):
        total_kk = best_k[:, None] - jump_kk
        came_from_tk[index] = total_kk.argmax(axis=0)
        best_k = total_kk.max(axis=0) + gain_tk[index]
    path_t = np.zeros(len(gain_tk), int)
    path_t[-1] = best_k.argmax()
    for index in range(len(gain_tk) - 1, 0, -1):
        path_t[index - 1] = came_from_tk[index, path_t[index]]
    return path_t


def _per_sample(values_t: np.ndarray, hop: int, num_samples: int) -> np.ndarray:
    """Values given every hop, at every sample by straight lines."""
    ramp_n = np.arange(hop, dtype=values_t.dtype) / hop
    return (values_t[:-1, None] + np.diff(values_t)[:, None] * ramp_n).reshape(-1)[:num_samples]


def _phase(pitch_t: np.ndarray, hop: int, sample_rate: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Phase of the fundamental in radians and its frequency in Hz at every sample; unvoiced parts are bridged."""
    voiced = np.flatnonzero(pitch_t)
    if len(voiced) == 0:
        return np.zeros(num_samples), np.zeros(num_samples)
    pitch = _per_sample(np.interp(np.arange(len(pitch_t)), voiced, pitch_t[voiced]), hop, num_samples)
    return 2 * np.pi * np.cumsum(pitch) / sample_rate, pitch


def _excitation(
    pitch_t: np.ndarray, hop: int, sample_rate: int, num_samples: int, generator: np.random.Generator
) -> np.ndarray:
    """Unit power: band-limited pulses at the pitch where voiced (sum of all harmonics), white noise elsewhere."""
    excitation = generator.standard_normal(num_samples, dtype=np.float32)
    phase, pitch = _phase(pitch_t, hop, sample_rate, num_samples)
    voiced = pitch_t[np.minimum(np.arange(num_samples) / hop + 0.5, len(pitch_t) - 1).astype(int)] > 0
    phase, num_harmonics = phase[voiced], np.floor(0.5 * sample_rate / np.maximum(pitch[voiced], 1))
    half_sine = np.sin(phase / 2)
    at_pulse = np.abs(half_sine) < 1e-9
    dirichlet = np.sin((num_harmonics + 0.5) * phase) / np.where(at_pulse, 1, half_sine)
    dirichlet = np.where(at_pulse, 2 * num_harmonics + 1, dirichlet) - 1  # twice the sum of all harmonics
    excitation[voiced] = dirichlet / np.sqrt(2 * num_harmonics)
    return excitation
