"""Vocoders on real recordings: the words stay, the level and length stay, the waveform does not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from audiolab.audio.io import read_audio
from audiolab.audio.level import peak_dbfs, rms_dbfs
from audiolab.audio.resample import resample
from audiolab.augment import vocoders
from audiolab.augment.vocoders import VOCODERS, griffin_lim, shift
from audiolab.errors import InputError

RATE = 16000


@pytest.fixture(scope="module")
def recordings(shared: Path) -> list[np.ndarray]:
    """Bona fide speech of six talkers."""
    root = shared / "data/la_mini/LA"
    lines = (root / "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt").read_text().split("\n")
    rows = [line.split() for line in lines if line.endswith("bonafide")]
    names = list({speaker: name for speaker, name, *_ in rows}.values())[::10]
    return [read_audio(root / f"ASVspoof2019_LA_train/flac/{name}.flac")[0] for name in names[:6]]


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    _, _, spectrum_ft = scipy.signal.stft(waveform, RATE, nperseg=400, noverlap=240)
    mel_f = 2595 * np.log10(1 + np.linspace(0, RATE / 2, 201) / 700)
    bands_bf = np.maximum(0, 1 - np.abs(mel_f / mel_f[-1] * 23 - np.arange(24)[:, None]))
    return 10 * np.log10(bands_bf @ np.abs(spectrum_ft) ** 2 + 1e-9)


def _word_likeness(original: np.ndarray, copy: np.ndarray) -> float:
    """Mean over 24 mel bands of the correlation of their levels over time: 1 for the same words at the same time."""
    return float(
        np.mean([np.corrcoef(one, two)[0, 1] for one, two in zip(_log_mel(original), _log_mel(copy), strict=True)])
    )


@pytest.mark.parametrize("name", VOCODERS)
def test_words_level_and_length_stay_and_the_waveform_does_not(name, recordings):
    likeness, waveform_correlation = [], []
    for waveform in recordings:
        copy = VOCODERS[name](waveform, RATE, _generator())
        assert copy.shape == waveform.shape and copy.dtype == np.float32
        assert float(rms_dbfs(copy)) == pytest.approx(float(rms_dbfs(waveform)), abs=0.01)
        likeness.append(_word_likeness(waveform, copy))
        waveform_correlation.append(abs(np.corrcoef(waveform, copy)[0, 1]))
    assert np.mean(likeness) > (0.6 if name == "shift" else 0.85), (name, likeness)
    assert np.mean(waveform_correlation) < 0.6, (name, waveform_correlation)


def test_the_measure_of_words_tells_other_words(recordings):
    length = min(map(len, recordings))
    other = [_word_likeness(one[:length], two[:length]) for one, two in itertools.pairwise(recordings)]
    assert np.mean(other) < 0.3


@pytest.mark.parametrize("name", VOCODERS)
def test_the_generator_alone_decides(name, recordings):
    part = recordings[0][:8000]
    first = VOCODERS[name](part, RATE, _generator(1))
    np.testing.assert_array_equal(first, VOCODERS[name](part, RATE, _generator(1)))
    assert not np.array_equal(first, VOCODERS[name](part, RATE, _generator(2)))


@pytest.mark.parametrize("name", VOCODERS)
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000])
def test_any_length_rate_and_kind_of_signal(name, rate):
    for num_samples in (1, 2, 79, 161, 1001):
        noise = 0.1 * _generator(num_samples).standard_normal(num_samples).astype(np.float32)
        click = np.zeros(num_samples, np.float32)
        click[num_samples // 2] = 0.5
        for signal in (noise, click):
            copy = VOCODERS[name](signal, rate, _generator())
            assert copy.shape == signal.shape and np.isfinite(copy).all()
    silence = np.zeros(rate, np.float32)
    np.testing.assert_array_equal(VOCODERS[name](silence, rate, _generator()), silence)
    loud = np.sign(np.sin(2 * np.pi * 150 * np.arange(rate) / rate)).astype(np.float32)
    assert float(peak_dbfs(VOCODERS[name](loud, rate, _generator()))) <= 1e-4


@pytest.mark.parametrize("name", ["lpc", "cepstral", "harmonic_noise", "channel"])
def test_copies_keep_pitch_and_voicing(name, recordings):
    hop = RATE // 200
    agree, cents = [], []
    for waveform in recordings:
        pitch_t = vocoders._pitch(waveform, hop, RATE)
        copy_t = vocoders._pitch(VOCODERS[name](waveform, RATE, _generator()), hop, RATE)
        agree.append(np.mean((pitch_t > 0) == (copy_t > 0)))
        both = (pitch_t > 0) & (copy_t > 0)
        cents.append(np.median(np.abs(1200 * np.log2(copy_t[both] / pitch_t[both]))))
    assert np.mean(agree) > 0.85 and max(cents) < 25, (agree, cents)


@pytest.mark.parametrize("pitch_hz", [80.0, 123.4, 200.0, 330.0])
def test_pitch_of_a_pulse_train_through_a_formant(pitch_hz):
    harmonics = np.arange(1, int(7500 / pitch_hz))[:, None] * pitch_hz
    pulses = np.cos(2 * np.pi * harmonics * np.arange(RATE) / RATE).sum(axis=0) + _generator().standard_normal(RATE)
    voice = scipy.signal.lfilter([1], [1, -1.6, 0.8], pulses).astype(np.float32)
    pitch_t = vocoders._pitch(voice, 80, RATE)[10:-10]
    assert (np.abs(pitch_t / pitch_hz - 1) < 0.01).mean() > 0.98
    noise_t = vocoders._pitch(_generator().standard_normal(RATE).astype(np.float32), 80, RATE)
    assert (noise_t > 0).mean() < 0.05


def test_excitation_has_unit_power_and_the_pitch_asked_for():
    pitch_t = np.concatenate([np.full(100, 125.0), np.zeros(101)])
    excitation = vocoders._excitation(pitch_t, 80, RATE, 16000, _generator())
    voiced, unvoiced = excitation[:7680], excitation[8200:]
    assert np.mean(voiced**2) == pytest.approx(1.0, rel=0.05) and np.mean(unvoiced**2) == pytest.approx(1.0, rel=0.05)
    spectrum = np.abs(np.fft.rfft(voiced)) ** 2  # 60 periods of 128 samples: harmonics on every 60th bin
    assert spectrum[60::60].sum() > 0.99 * spectrum.sum()
    assert spectrum[60:-60:60].min() > 0.9 * spectrum[60:-60:60].max()  # flat up to half the rate


def test_levinson_solves_the_normal_equations():
    frames_tn = _generator().standard_normal((5, 400)).astype(np.float32)
    r_tk = vocoders._autocorrelation(frames_tn, 13)
    direct = np.array([[frame[: 400 - lag] @ frame[lag:] for lag in range(13)] for frame in frames_tn])
    np.testing.assert_allclose(r_tk, direct, atol=1e-3)
    predictor_tk, error_t = vocoders._levinson(r_tk)
    for r_k, predictor_k, error in zip(r_tk.astype(float), predictor_tk, error_t, strict=True):
        wanted = scipy.linalg.solve_toeplitz(r_k[:-1], -r_k[1:])
        np.testing.assert_allclose(predictor_k, np.concatenate(([1], wanted)), atol=1e-5)
        assert error == pytest.approx(r_k[0] + wanted @ r_k[1:], rel=1e-5)


def test_stft_inverts(recordings):
    for size, hop in ((640, 160), (320, 80)):
        spectrum_tf = vocoders._stft(recordings[0], size, hop)
        back = vocoders._istft(spectrum_tf, size, hop, len(recordings[0]))
        np.testing.assert_allclose(back, recordings[0], atol=1e-6)


def test_griffin_lim_comes_nearer_with_every_step(recordings):
    """Distance between the mel spectrograms of original and copy, in dB over the frames with speech."""

    def distance(num_steps: int) -> float:
        waveform = recordings[1]
        wanted, got = _log_mel(waveform), _log_mel(griffin_lim(waveform, RATE, _generator(), num_steps=num_steps))
        active = wanted.max(axis=0) > wanted.max() - 30
        return float(np.sqrt(np.mean((wanted - got)[:, active] ** 2)))

    few, some, many = distance(0), distance(4), distance(16)
    assert many < some < few and many < 2.5


def test_shift_moves_a_tone_by_one_to_three_semitones():
    time_s = np.arange(2 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)
    moved = []
    for seed in range(8):
        spectrum = np.abs(np.fft.rfft(shift(tone, RATE, _generator(seed))[4000:-4000] * np.hanning(24000)))
        peak = int(np.argmax(spectrum))
        # WSOLA joins the pieces of a tone in phase, so nearly all power stays in one line
        assert (spectrum[peak - 4 : peak + 5] ** 2).sum() > 0.95 * (spectrum**2).sum()
        moved.append(12 * np.log2(peak * RATE / 24000 / 440))
    assert min(np.abs(moved)) > 0.9 and max(np.abs(moved)) < 3.1 and min(moved) < 0 < max(moved)


def test_shift_keeps_the_time_of_events(recordings):
    waveform = recordings[2]
    copy = shift(waveform, RATE, _generator(), max_semitones=2.0)
    envelopes = [scipy.signal.savgol_filter(np.abs(signal), 801, 1) for signal in (waveform, copy)]
    one, two = (envelope - envelope.mean() for envelope in envelopes)
    lag = int(np.argmax(scipy.signal.correlate(two, one, "full"))) - (len(one) - 1)
    assert abs(lag) < 0.015 * RATE


def test_wrong_input():
    for waveform, rate in ((np.zeros((2, 100)), RATE), (np.zeros(0), RATE), (np.ones(100), 4000)):
        with pytest.raises(InputError, match="give one channel"):
            griffin_lim(waveform, rate, _generator())
    with pytest.raises(InputError, match="max_semitones is 24"):
        shift(np.ones(100, np.float32), RATE, _generator(), max_semitones=24)


def test_other_rates_sound_the_same(recordings):
    """A vocoder at 8 kHz keeps the words of the band that 8 kHz has."""
    narrow = resample(recordings[3], RATE, 8000)
    for name in ("lpc", "cepstral", "harmonic_noise", "channel", "griffin_lim"):
        copy = resample(VOCODERS[name](narrow, 8000, _generator()), 8000, RATE)
        wanted = resample(narrow, 8000, RATE)
        below = slice(0, 17)  # bands below 3.4 kHz
        bands = zip(_log_mel(wanted)[below], _log_mel(copy)[below], strict=True)
        assert np.mean([np.corrcoef(one, two)[0, 1] for one, two in bands]) > 0.85, name
