"""Levels of mixtures: against reference numbers, and what must hold for any sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from audiolab.audio import mixing
from audiolab.augment.room import reverberate, room_response
from audiolab.errors import InputError


def test_gains_levels_and_sums_are_those_of_the_reference(shared: Path):
    folder = shared / "reference" / "separation"
    pairs = json.loads((folder / "mixing_expected.json").read_text())["pairs"]
    signals = load_file(folder / "mixing_signals.safetensors")
    assert len(pairs) == 5
    assert any(expected["peak_limit_gain"] < 1 for expected in pairs)
    for number, expected in enumerate(pairs):
        sources_st = signals[f"p{number}.sources_in"]
        powers = mixing.mean_power(sources_st)
        gain = mixing.snr_gains(powers, [expected["snr_db"]])[1]
        assert gain == pytest.approx(expected["gain_source2"], rel=1e-6)
        scaled_st = sources_st * np.array([[1.0], [gain]])
        common = mixing.common_gain(scaled_st.sum(axis=0), scaled_st, -25.0)
        assert common == pytest.approx(expected["common_gain"] * expected["peak_limit_gain"], rel=1e-6)

        gains_s = mixing.mixing_gains(sources_st, [expected["snr_db"]], -25.0)
        assert gains_s == pytest.approx([common, common * gain], rel=1e-6)
        mixture_t, in_mixture_st = mixing.mix(sources_st, gains_s)
        assert mixture_t.dtype == in_mixture_st.dtype == np.float32
        assert np.abs(mixture_t - in_mixture_st.sum(axis=0)).max() <= 1e-6
        assert np.allclose(mixture_t, signals[f"p{number}.mixture_out"], rtol=1e-6, atol=1e-6)
        assert np.allclose(in_mixture_st, signals[f"p{number}.sources_out"], rtol=1e-6, atol=1e-6)
        snr_db = mixing.input_snr_db(mixture_t.astype(np.float64), in_mixture_st[0].astype(np.float64))
        assert snr_db == pytest.approx(expected["achieved_snr_db"], abs=1e-4)
        assert 10 * np.log10(mixing.mean_power(mixture_t)) == pytest.approx(expected["mixture_rms_dbfs"], abs=1e-4)
        assert max(np.abs(mixture_t).max(), np.abs(in_mixture_st).max()) == pytest.approx(expected["peak"], rel=1e-5)


def test_silence_is_neither_divided_by_nor_blown_up():
    speech = np.full((1, 100), 0.1)
    for sources_st in (np.concatenate([speech, 0 * speech]), np.concatenate([0 * speech, speech])):
        mixture_t, in_mixture_st = mixing.mix(sources_st, mixing.mixing_gains(sources_st, [3.0], -25.0))
        assert 10 * np.log10(mixing.mean_power(mixture_t)) == pytest.approx(-25.0)
        assert np.isfinite(in_mixture_st).all()
        assert np.isnan(mixing.input_snr_db(mixture_t, in_mixture_st[0]))
    silence_st = np.zeros((3, 100))
    mixture_t, in_mixture_st = mixing.mix(silence_st, mixing.mixing_gains(silence_st, [0.0, 0.0], -25.0))
    assert not mixture_t.any() and not in_mixture_st.any()
    assert mixing.overlap(np.zeros((2, 640)), 16000) == 0.0


def test_pauses_do_not_change_a_level_on_active_frames():
    generator = np.random.default_rng(0)
    speech = 0.1 * generator.standard_normal(16000)
    paused = np.concatenate([speech, np.zeros(16000)])
    assert mixing.active_power(paused, 16000) == pytest.approx(mixing.active_power(speech, 16000))
    assert mixing.mean_power(paused) == pytest.approx(mixing.mean_power(speech) / 2)
    late = np.concatenate([np.zeros(8000), speech, np.zeros(8000)])
    assert mixing.overlap(np.stack([paused, late]), 16000) == pytest.approx(0.25, abs=0.01)
    assert np.isfinite(mixing.active_power(speech[:5], 16000))  # shorter than a frame


def test_a_room_has_the_reverberation_time_and_level_asked_for():
    response = room_response(0.4, 3.0, 16000, np.random.default_rng(0)).astype(np.float64)
    tail = response[1:] ** 2
    assert 10 * np.log10(response[0] ** 2 / tail.sum()) == pytest.approx(3.0, abs=1e-3)
    decay_db = 10 * np.log10(tail[::-1].cumsum()[::-1] / tail.sum())
    time_s = np.arange(len(tail)) / 16000
    fitted = (decay_db < -5) & (decay_db > -25)
    slope = np.polyfit(time_s[fitted], decay_db[fitted], 1)[0]
    assert -60 / slope == pytest.approx(0.4, rel=0.1)
    wave = np.random.default_rng(1).standard_normal(5000)
    assert np.allclose(reverberate(wave, response), np.convolve(wave, response)[:5000], atol=1e-9)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: mixing.mean_power(np.zeros((2, 0))), "time > 0"),
        (lambda: mixing.mixing_gains(np.ones((3, 8)), [0.0], None), "3 sources were given 1 SNRs"),
    ],
)
def test_what_cannot_be_mixed_is_refused(call, expected: str):
    with pytest.raises(InputError, match=expected):
        call()
