"""RawBoost equals the official code number for number, and draws as it does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import firwin
from scipy.stats import ks_2samp

from audiolab.augment.fir import filter_powers
from audiolab.augment.notch import NotchBanks
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
from audiolab.augment.rawboost_params import ImpulsiveNoise, StationaryNoise

STAGES = {1: "L", 2: "I", 3: "S", 4: "LIS", 5: "LI", 6: "LS", 7: "IS", 8: "LI"}
NOTCH_CASES = [f"default{i}" for i in range(8)] + ["gain_nonlinear", "gain_positive", "low_edge", "high_edge"]
NOTCH_CASES += ["one_band", "two_bands", "ten_bands", "fs8000", "short_filters", "long_filters", "narrow"]
LNL_CASES = ["speech", "white", "loud_renormalised", "linear_only", "n2_gain"]


@pytest.fixture(scope="module")
def blocks(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "reference/asvspoof/rawboost_blocks.npz") as recorded:
        return dict(recorded)


@pytest.fixture(scope="module")
def drawn(shared) -> dict[str, Any]:
    return json.loads((shared / "reference/asvspoof/rawboost_params.json").read_text())


@pytest.fixture(scope="module")
def stats(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "reference/asvspoof/rawboost_stats.npz") as recorded:
        return dict(recorded)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def bank_filter(bank: dict[str, Any], sample_rate: int = 16000) -> np.ndarray:
    return notch_filter(bank["fc"], bank["bw"], bank["taps"], bank["G"], sample_rate)


def limited(wave: np.ndarray) -> np.ndarray:
    return wave / max(1.0, np.abs(wave).max())


def recorded_params(drawn: dict, blocks: dict, algo: int, kind: str) -> RawBoostParams:
    """The draws of the official code as our parameters; it draws bank by bank and band by band."""
    draws = iter([value for _, _, _, value in drawn["algos"][f"{algo}/{kind}"]["uniform_draws"]])

    def banks(num_banks: int) -> NotchBanks:
        table = np.array([[next(draws) for _ in range(16)] for _ in range(num_banks)])
        bands = table[:, :15].reshape(num_banks, 5, 3)
        return NotchBanks(bands[..., 0], bands[..., 1], bands[..., 2].astype(int), table[:, 15])

    recorded = {name: blocks.get(f"algo/{algo}/{kind}/{name}") for name in ("positions", "u1", "u2", "noise")}
    stages: dict[str, Any] = {}
    for stage in STAGES.get(algo, ""):
        if stage == "L":
            stages["lnl"] = banks(5)
        elif stage == "I":
            assert int(3200 * next(draws) / 100) == len(recorded["positions"])
            u1, u2 = (2.0 * recorded[name].astype(np.float64) - 1.0 for name in ("u1", "u2"))
            stages["isd"] = ImpulsiveNoise(recorded["positions"], 1.0 + 2.0 * u1 * u2)
        else:
            stages["ssi"] = StationaryNoise(banks(1), recorded["noise"], next(draws))
    assert next(draws, None) is None
    return RawBoostParams(algo, 3200, 16000, **stages)


# Equality with the official code


@pytest.mark.parametrize("case", NOTCH_CASES)
def test_notch_filter_equals_official(blocks, drawn, case):
    bank, expected = drawn["notch"][case], blocks[f"notch/{case}/b"]
    for taps in ("taps", "c_drawn"):  # an even number drawn means one more
        b = notch_filter(bank["fc"], bank["bw"], bank[taps], bank["G"], bank["fs"])
        assert b.shape == expected.shape
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e-12)


def test_every_recorded_notch_case_is_tested(drawn):
    assert set(drawn["notch"]) == set(NOTCH_CASES)
    assert {*LNL_CASES, "float32_input"} == set(drawn["LnL"])
    assert drawn["defaults"] == DEFAULT_RANGES


def test_long_banks_equal_scipy():
    fc, bw, taps = np.array([900.0, 3100.0, 6000.0]), np.array([300.0, 500.0, 200.0]), [901, 801, 1101]
    expected = np.ones(1)
    for centre, width, num_taps in zip(fc, bw, taps, strict=True):
        expected = np.convolve(expected, firwin(num_taps, [centre - width / 2, centre + width / 2], fs=16000))
    response = np.abs(np.fft.fft(expected, 4096)[:2048:4])
    np.testing.assert_allclose(notch_filter(fc, bw, taps), expected / response.max(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_taps", [1, 2, 9, 10, 257, 480])
def test_fir_equals_official(blocks, num_taps):
    x, b, expected = (blocks[key] for key in ("x/fir", f"filterFIR/{num_taps}/b", f"filterFIR/{num_taps}/y"))
    y = filter_powers(torch.from_numpy(x.astype(np.float64))[None], b[None, None])[0].numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(lnl(x.astype(np.float64), [b]), limited(expected - expected.mean()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", LNL_CASES)
def test_lnl_equals_official(blocks, drawn, case):
    record = drawn["LnL"][case]
    x, expected = blocks[f"x/{record['x']}"], blocks[f"LnL/{case}/y"]
    filters = [bank_filter(bank) for bank in record["banks"]]
    np.testing.assert_allclose(lnl(x.astype(np.float64), filters), expected, rtol=0, atol=1e-10)
    y32 = lnl(torch.from_numpy(x), filters)
    assert y32.dtype == torch.float32
    np.testing.assert_allclose(y32.numpy(), expected, rtol=0, atol=2e-5)


def test_lnl_of_float32_equals_official(blocks, drawn):
    record, expected = drawn["LnL"]["float32_input"], blocks["LnL/float32_input/y"]
    x, filters = blocks[f"x/{record['x']}"], [bank_filter(bank) for bank in record["banks"]]
    np.testing.assert_allclose(lnl(x.astype(np.float64), filters), expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(lnl(x, filters), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["speech", "loud_renormalised", "strong", "none"])
def test_isd_equals_official(blocks, drawn, case):
    record, g_sd = drawn["ISD"][case], drawn["ISD"][case]["overrides"].get("g_sd", 2)
    positions, u1, u2, expected = (blocks[f"ISD/{case}/{name}"] for name in ("positions", "u1", "u2", "y"))
    x, gains = blocks[f"x/{record['x']}"].astype(np.float64), 1.0 + g_sd * (2 * u1 - 1) * (2 * u2 - 1)
    np.testing.assert_allclose(isd(x, positions, gains), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(isd(x.astype(np.float32), positions, gains), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["speech", "white", "snr_fixed5"])
def test_ssi_equals_official(blocks, drawn, case):
    record, noise, expected = drawn["SSI"][case], blocks[f"SSI/{case}/noise"], blocks[f"SSI/{case}/y"]
    x, b = blocks[f"x/{record['x']}"].astype(np.float64), bank_filter(record["bank"])
    np.testing.assert_allclose(ssi(x, noise, b, record["SNR_dB"]), expected, rtol=0, atol=1e-10)
    y32 = ssi(x.astype(np.float32), noise, b, record["SNR_dB"])
    np.testing.assert_allclose(y32, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["speech", "loud"])
@pytest.mark.parametrize("algo", range(9))
def test_whole_algorithm_equals_official(blocks, drawn, algo, kind):
    x, expected = blocks[f"algo_x/{kind}"], blocks[f"algo/{algo}/{kind}/y"]
    params = recorded_params(drawn, blocks, algo, kind)
    np.testing.assert_allclose(apply(x.astype(np.float64), params), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(apply(x, params), expected, rtol=0, atol=2e-5)


# Draws


def band_levels_db(waves: np.ndarray) -> np.ndarray:
    """Levels of 32 bands of 250 Hz, (wave, band): Hann 512, hop 256, bins 1 to 256 averaged by eight."""
    frames = np.lib.stride_tricks.sliding_window_view(waves, 512, axis=-1)[:, ::256]
    window = np.hanning(512)
    power = np.stack([(np.abs(np.fft.rfft(frame * window)) ** 2).mean(axis=0) for frame in frames])
    return 10 * np.log10(power[:, 1:].reshape(-1, 32, 8).mean(axis=-1))


@pytest.mark.parametrize("algo", range(1, 9))
def test_draws_are_distributed_as_official(stats, algo):
    x = stats["x"].astype(np.float64)
    boosted = RawBoost(algo)(np.tile(x, (500, 1)), generators(*range(1000 * algo, 1000 * algo + 500)))
    difference, power_db = boosted - x, band_levels_db(boosted)
    band_power = 10 ** (power_db / 10)
    scalars = {
        "output/input dB": 10 * np.log10((boosted**2).sum(axis=1) / (x**2).sum()),
        "peak": np.abs(boosted).max(axis=1),
        "input/change dB": 10 * np.log10((x**2).sum() / np.maximum((difference**2).sum(axis=1), 1e-99)),
        "mean": boosted.mean(axis=1),
        "changed": (np.abs(difference) > 1e-12).mean(axis=1),
        "centroid Hz": (band_power * (np.arange(32) * 250 + 125)).sum(axis=1) / band_power.sum(axis=1),
    }
    for (name, ours), official in zip(scalars.items(), stats[f"algo{algo}/scalars"].T, strict=True):
        if name == "mean" and algo == 1:  # taken off last: both are rounding
            assert np.abs(ours).max() < 1e-15 and np.abs(official).max() < 1e-15
        elif name == "changed" and algo != 2:  # all samples, up to the threshold
            assert abs(ours.mean() - official.mean()) < 1e-4
        else:
            assert ks_2samp(ours, official).pvalue > 1e-4, name

    change_db, official_std_db = power_db - stats["input_band_dB"], stats[f"algo{algo}/band_std_dB"]
    mean_error = np.abs(change_db.mean(axis=0) - stats[f"algo{algo}/band_mean_dB"])
    assert (mean_error / (official_std_db * np.sqrt(2 / 500))).max() < 4


def test_notch_banks_are_distributed_as_official(stats):
    params = [draw_params(3, 1, generator) for generator in generators(*range(500))]
    filters = [notch_filter(b.fc_hz[0], b.bw_hz[0], b.taps[0], b.gain_db[0]) for b in (p.ssi.bank for p in params)]
    assert ks_2samp([len(b) for b in filters], stats["notch/length"]).pvalue > 1e-4
    peaks = [np.abs(np.fft.rfft(b, 1024)[:512]).max() for b in filters]
    np.testing.assert_allclose(peaks, 1.0, rtol=0, atol=1e-12)
    finer_peaks = [np.abs(np.fft.rfft(b, 8192)).max() for b in filters]  # what lies between the points of the design
    assert ks_2samp(np.round(finer_peaks, 6), np.round(stats["notch/peak_gain"], 6)).pvalue > 1e-4
    response_db = 20 * np.log10([np.abs(np.fft.rfft(b, 512))[1:] for b in filters])
    # Twice the mean distance between 500 of our draws and 500 of the official ones; the stop bands vary most.
    for row, percent, tolerance_db in ((1, 25, 2.0), (2, 50, 0.8), (3, 75, 0.04), (4, 95, 0.008)):
        distance_db = np.abs(np.percentile(response_db, percent, axis=0) - stats["notch/response_dB_quantiles"][row])
        assert distance_db.mean() < tolerance_db, percent
