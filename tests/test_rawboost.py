"""RawBoost keeps to its ranges, depends on nothing but each row's generator, and refuses what it cannot use."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import lfilter

from audiolab.augment import rawboost
from audiolab.augment.notch import NotchBanks, notch_filters
from audiolab.augment.rawboost import (
    DEFAULT_RANGES,
    RawBoost,
    RawBoostParams,
    apply,
    draw_params,
    isd,
    lnl,
    notch_filter,
    ssi,
)
from audiolab.errors import InputError


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def limited(wave: np.ndarray) -> np.ndarray:
    return wave / max(1.0, np.abs(wave).max())


# Draws


def test_draws_keep_to_their_ranges():
    params = [draw_params(4, 4000, generator) for generator in generators(*range(300))]
    fc, bw, taps = (np.array([getattr(p.lnl, name) for p in params]) for name in ("fc_hz", "bw_hz", "taps"))
    assert fc.shape == (300, 5, 5)
    assert 20 <= fc.min() < 30 and 7990 < fc.max() <= 8000
    assert 100 <= bw.min() < 102 and 998 < bw.max() <= 1000
    assert set(taps.flat) == set(range(10, 100))
    gain_db = np.array([p.lnl.gain_db for p in params])
    assert (gain_db[:, 0] == 0).all() and -20 <= gain_db[:, 1:].min() < -19.9 and -5.1 < gain_db[:, 1:].max() <= -5
    num_impulses = [len(p.isd.positions) for p in params]
    assert max(num_impulses) <= 400 and min(num_impulses) < 10 and max(num_impulses) > 390
    assert all(len(set(p.isd.positions.tolist())) == len(p.isd.positions) for p in params)
    snr_db = [p.ssi.snr_db for p in params]
    assert 10 <= min(snr_db) < 10.3 and 39.7 < max(snr_db) <= 40


def test_ranges_replace_defaults():
    params = draw_params(
        4, 1000, generators(3)[0], N_f=2, nBands=3, minF=500, maxF=500, P=0, SNRmin=7, SNRmax=7, maxG=9
    )
    assert params.lnl.fc_hz.tolist() == [[500.0] * 3] * 2
    assert params.isd.positions.size == 0 and params.ssi.snr_db == 7
    assert 0 < params.lnl.gain_db[0] < 9 and -11 < params.lnl.gain_db[1] < -5
    louder = draw_params(2, 1000, generators(3)[0], g_sd=4)
    normal = draw_params(2, 1000, generators(3)[0])
    np.testing.assert_allclose(louder.isd.gains - 1, 2 * (normal.isd.gains - 1))


# Independence


@pytest.mark.parametrize("algo", range(1, 9))
def test_row_is_the_same_alone_and_in_any_batch(algo):
    boost, waves = RawBoost(algo), 0.3 * torch.randn(8, 5000, generator=torch.Generator().manual_seed(algo))
    together = boost(waves, generators(*range(8)))
    assert together.dtype == torch.float32 and together.shape == waves.shape
    assert len({tuple(row[:50].tolist()) for row in together}) == 8
    for row in range(8):
        assert torch.equal(together[row], boost(waves[row : row + 1], generators(row))[0])
        assert torch.equal(together[row], boost(waves[row], generators(row)[0]))
    order = [3, 0, 7, 5, 1, 6, 4, 2]
    assert torch.equal(together[order], boost(waves[order], generators(*order)))
    np.testing.assert_array_equal(together.numpy(), boost(waves.numpy(), generators(*range(8))))


@pytest.mark.parametrize("algo", range(1, 9))
def test_rows_run_together_equal_rows_alone(algo):
    # How devices other than the CPU run them.
    waves = 0.3 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(algo), dtype=torch.float64)
    params = [draw_params(algo, 5000, generator) for generator in generators(*range(6))]
    np.testing.assert_allclose(rawboost._run(waves, params), apply(waves, params), rtol=0, atol=1e-12)


def test_rows_are_grouped_by_what_can_run_together():
    a, b, c, d, e = generators(*range(5))
    params = [draw_params(5, 100, a), draw_params(0, 100, b), draw_params(5, 100, c)]
    params += [draw_params(5, 100, d, N_f=2), draw_params(5, 100, e, sample_rate=8000, maxF=4000)]
    assert rawboost._groups(params) == [[0, 2], [1], [3], [4]]


def test_drawing_and_applying_equal_the_callable():
    wave = np.random.default_rng(0).normal(0, 0.1, 3000)
    params = draw_params(5, 3000, generators(11)[0], P=20)
    np.testing.assert_array_equal(apply(wave, params), RawBoost(5, P=20)(wave, generators(11)[0]))
    again = pickle.loads(pickle.dumps(RawBoost(5, P=20)))  # as a loader's worker receives it
    np.testing.assert_array_equal(apply(wave, params), again(wave[None], generators(11))[0])


def test_probability_is_decided_by_the_row_first():
    boost, waves = RawBoost(5, p=0.3), np.random.default_rng(0).normal(0, 0.1, (300, 400))
    boosted = boost(waves, generators(*range(300)))
    firsts = np.array([generator.random() for generator in generators(*range(300))])
    np.testing.assert_array_equal((boosted == waves).all(axis=1), firsts >= 0.3)
    row = int(np.argmin(firsts))
    generator = np.random.default_rng(row)
    generator.random()
    np.testing.assert_array_equal(boosted[row], apply(waves[row], draw_params(5, 400, generator)))
    np.testing.assert_array_equal(RawBoost(5, p=0.0)(waves, generators(*range(300))), waves)


@pytest.mark.parametrize("algo", range(9))
def test_recorded_params_give_the_same_waveform(algo):
    wave = np.random.default_rng(1).normal(0, 0.1, 500).astype(np.float32)
    params = draw_params(algo, 500, generators(algo)[0])
    record = json.loads(json.dumps(params.to_dict()))
    np.testing.assert_array_equal(apply(wave, RawBoostParams.from_dict(record)), apply(wave, params))


def test_input_is_left_alone():
    for algo in range(9):
        wave = torch.linspace(-1, 1, 300)
        before = wave.clone()
        result = RawBoost(algo)(wave, generators(1)[0])
        result += 1
        assert torch.equal(wave, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    wave = torch.sin(torch.arange(900) / 7).to(dtype)
    params = draw_params(4, 900, generators(2)[0])
    result = apply(wave, params)
    assert result.dtype == dtype
    exact = apply(wave.to(torch.float64), params)
    torch.testing.assert_close(result.to(torch.float64), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


# Signals


@pytest.mark.parametrize("algo", range(9))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silence_stays_silence(algo, dtype):
    result = RawBoost(algo)(np.zeros((2, 4000), dtype), generators(1, 2))
    np.testing.assert_array_equal(result, np.zeros((2, 4000), dtype))


@pytest.mark.parametrize("algo", range(9))
@pytest.mark.parametrize("num_samples", [1, 2, 30, 257, 1558, 1559, 64600])
def test_any_length_is_finite_and_limited(algo, num_samples):
    wave = np.random.default_rng(num_samples).uniform(-1, 1, (1, num_samples)).astype(np.float32)
    result = RawBoost(algo)(wave, generators(num_samples))
    assert result.shape == wave.shape and result.dtype == wave.dtype
    assert np.isfinite(result).all()
    if algo in (1, 2, 5, 8):
        assert np.abs(result).max() <= 1


@pytest.mark.parametrize("num_samples", [1, 5, 60, 300])
def test_signal_shorter_than_its_filters(num_samples):
    rng = np.random.default_rng(num_samples)
    wave, filters = rng.uniform(-0.9, 0.9, num_samples), [rng.normal(0, 0.05, length) for length in (331, 1, 96)]
    expected = np.zeros(num_samples)
    for power, b in enumerate(filters, start=1):
        advance = (len(b) + 1) // 2
        expected += lfilter(b, 1, np.append(wave**power, np.zeros(advance)))[advance:]
    expected = limited(expected - expected.mean())
    np.testing.assert_allclose(lnl(wave, filters), expected, rtol=0, atol=1e-12)


def test_float32_is_exact_enough_for_training_on_speech(shared):
    files = sorted((shared / "data/la_mini/LA/ASVspoof2019_LA_train/flac").glob("*.flac"))[::180]
    assert len(files) == 5
    for seed, file in enumerate(files):
        wave, _ = soundfile.read(file)
        wave /= np.abs(wave).max()
        for algo in (4, 5, 8):
            params = draw_params(algo, len(wave), np.random.default_rng(seed))
            assert np.abs(apply(wave.astype(np.float32), params) - apply(wave, params)).max() < 1e-6


def test_stationary_noise_has_its_level():
    wave, noise = np.random.default_rng(0).normal(0, 0.1, (2, 8000))
    added = ssi(wave, noise, notch_filter([1000.0], [200.0], [51]), snr_db=12.5) - wave
    assert 10 * np.log10((wave**2).sum() / (added**2).sum()) == pytest.approx(12.5, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_of_zeros_adds_nothing(dtype):
    wave = np.linspace(-1, 1, 50, dtype=dtype)
    np.testing.assert_array_equal(ssi(wave, np.zeros(50), np.ones(1), snr_db=0.0), wave)


def test_short_banks_are_centred_in_a_common_width():
    rows = [([1000.0, 5000.0], [300.0, 300.0], [11, 21]), ([1000.0, 5000.0], [300.0, 300.0], [51, 81])]
    stacked = notch_filters(NotchBanks(*(np.array(column) for column in zip(*rows, strict=True)), np.zeros(2)), 16000)
    assert stacked.shape == (2, 131)
    np.testing.assert_allclose(stacked[0, 50:81], notch_filter(*rows[0]), atol=1e-15)
    np.testing.assert_allclose(stacked[0, :50], 0, atol=1e-15)


# Errors


@pytest.mark.parametrize("algo", [9, -1, 5.0, True, "5", [5]])
def test_unknown_algorithm(algo):
    with pytest.raises(InputError, match=r"no algorithm .*5: lnl then isd.*8: lnl plus isd"):
        RawBoost(algo)
    with pytest.raises(InputError, match="no algorithm"):
        draw_params(algo, 100, generators(0)[0])


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("minf", "minF"), ("snr_max", "SNRmax"), ("n_bands", "nBands"), ("gsd", "g_sd"), ("Nf", "N_f")],
)
def test_unknown_range_names_the_nearest(given, nearest):
    for call in (lambda: RawBoost(5, **{given: 1}), lambda: draw_params(5, 9, generators(0)[0], **{given: 1})):
        with pytest.raises(InputError, match=f"no range '{given}'; did you mean '{nearest}'") as error:
            call()
        assert all(name in str(error.value) for name in DEFAULT_RANGES)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"minF": 900, "maxF": 800}, "minF 900 is above maxF 800"),
        ({"SNRmin": 50}, "SNRmin 50 is above SNRmax 40.0"),
        ({"maxF": 9000}, "maxF=8000"),
        ({"sample_rate": 8000}, "maxF=4000"),
        ({"minF": -5}, "-5 to 8000.0 Hz"),
        ({"minBW": 0}, "minBW is 0"),
        ({"minCoeff": 0}, "minCoeff is 0"),
        ({"N_f": 0}, "N_f is 0"),
        ({"nBands": 2.5}, "nBands is 2.5"),
        ({"P": 101}, "P is 101"),
        ({"P": float("nan")}, "P is nan"),
        ({"g_sd": "2"}, "g_sd is '2'"),
        ({"g_sd": None}, "g_sd is None"),
        ({"sample_rate": 0}, "sample rate of RawBoost is 0"),
        ({"p": 1.5}, "probability 1.5"),
    ],
)
def test_unusable_options(ranges, message):
    with pytest.raises(InputError, match=message):
        RawBoost(5, **ranges)


def test_unusable_arrays():
    wave, params = np.zeros(100), draw_params(5, 100, generators(0)[0])
    with pytest.raises(InputError, match=r"Row 0 has 99 samples.*drawn for 100"):
        apply(wave[:99], params)
    with pytest.raises(InputError, match="2 waveforms and 1 sets"):
        RawBoost(5)(np.zeros((2, 100)), generators(0))
    with pytest.raises(InputError, match="int16"):
        apply(wave.astype(np.int16), params)
    with pytest.raises(InputError, match=r"\(1, 1, 100\)"):
        apply(wave.reshape(1, 1, 100), params)
    with pytest.raises(InputError, match="0 samples"):
        draw_params(5, 0, generators(0)[0])
    with pytest.raises(InputError, match="positions from 0 to 99"):
        isd(wave, np.array([100]), np.array([1.0]))
    with pytest.raises(InputError, match="1 positions and 2 gains"):
        isd(wave, np.array([1]), np.array([1.0, 2.0]))
    with pytest.raises(InputError, match=r"noise of shape \(99,\) for 100 samples"):
        ssi(wave, np.zeros(99), np.ones(1), 10.0)
    with pytest.raises(InputError, match="give some"):
        lnl(wave, [])
