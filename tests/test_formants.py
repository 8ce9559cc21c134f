"""Formants go where they are moved to; pitch, level of silence and length stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from audiolab.audio.io import read_audio
from audiolab.augment.formants import move_formants

RATE_HZ = 16000


def recordings(shared: Path) -> list[np.ndarray]:
    paths = sorted((shared / "data/mix_mini").rglob("*.flac"))[:3]
    assert len(paths) == 3
    return [read_audio(path)[0] for path in paths]


def envelope_peak_hz(wave: np.ndarray) -> float:
    frequencies_hz, power = scipy.signal.welch(wave, RATE_HZ, nperseg=256)
    return float((frequencies_hz * power).sum() / power.sum())


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_vowel_has_its_resonance_elsewhere_and_its_harmonics_where_they_were(factor: float):
    pulses = np.zeros(RATE_HZ, np.float32)
    pulses[::160] = 1  # 100 Hz
    pole = 0.9 * np.exp(2j * np.pi * 1000 / RATE_HZ)
    vowel = scipy.signal.lfilter([1], np.poly([pole, pole.conj()]).real, pulses).astype(np.float32)
    moved = move_formants(vowel, factor, RATE_HZ)
    levels, before = np.abs(np.fft.rfft(np.stack([moved, vowel])))  # 1 Hz a bin
    harmonics = np.arange(200, 4000, 100)
    for spectrum in (levels, before):
        between = np.abs(spectrum[harmonics + 50])
        assert between.max() < 0.05 * spectrum[harmonics].max()
    place = harmonics[levels[harmonics].argmax()] / harmonics[before[harmonics].argmax()]
    assert abs(place - factor) <= 0.1


def test_speech_is_brighter_or_darker_and_as_long_and_unchanged_by_factor_one(shared: Path):
    for wave in recordings(shared):
        assert np.abs(move_formants(wave, 1.0, RATE_HZ) - wave).max() < 1e-6
        darker, brighter = (move_formants(wave, factor, RATE_HZ) for factor in (0.8, 1.25))
        assert darker.shape == brighter.shape == wave.shape and darker.dtype == wave.dtype
        assert envelope_peak_hz(darker) < envelope_peak_hz(wave) < envelope_peak_hz(brighter)


@pytest.mark.parametrize("num_samples", [1, 127, 128, 511, 513, 3000])
def test_any_length_and_silence(num_samples: int):
    wave = np.random.default_rng(0).normal(size=num_samples).astype(np.float32)
    assert np.isfinite(move_formants(wave, 1.2, RATE_HZ)).all()
    assert np.abs(move_formants(wave, 1.0, 8000) - wave).max() < 1e-5
    assert not move_formants(0 * wave, 1.2, RATE_HZ).any()


def test_level_moves_with_the_input(shared: Path):
    wave = recordings(shared)[0]
    for gain in (1e-3, 10.0):
        moved = move_formants((gain * wave).astype(np.float32), 1.2, RATE_HZ)
        assert np.allclose(moved, gain * move_formants(wave, 1.2, RATE_HZ), atol=2e-4 * gain)
