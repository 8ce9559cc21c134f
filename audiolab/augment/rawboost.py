"""RawBoost: convolutive, impulsive and stationary noise on raw waveforms, as telephony adds them.

Source: Tak, Kamble, Patino, Todisco, Evans, "RawBoost: A Raw Data Boosting and Augmentation Method Applied to Automatic
Speaker Verification Anti-Spoofing", ICASSP 2022 (arXiv 2111.04433), and the authors' code where that is more definite.
Three stages, combined by nine numbered algorithms (`ALGORITHMS`):

- LnL, linear and non-linear convolutive noise (`lnl`),
- ISD, impulsive signal-dependent additive noise (`isd`),
- SSI, stationary signal-independent additive noise (`ssi`).

Drawing (`draw_params`) is separate from applying (`apply`), which is pure. Filters are designed in float64; waveforms
are processed in their own precision. Training runs in float32, which stays within 1e-6 of float64 on speech of peak 1:
a thirtieth of the step of 16-bit audio. On the CPU rows are processed one by one, which keeps the work in the
cache and makes a row bit-identical alone and in any batch; on other devices the rows of a batch run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from audiolab.augment.fir import filter_powers, stack_filters
from audiolab.augment.notch import NotchBanks, notch_filter, notch_filters
from audiolab.augment.rawboost_params import (
    ALGORITHMS,
    DEFAULT_RANGES,
    RawBoostParams,
    check_ranges,
    draw_checked,
    draw_params,
)
from audiolab.augment.rows import Waveforms, as_rows
from audiolab.errors import InputError

__all__ = [
    "ALGORITHMS",
    "DEFAULT_RANGES",
    "RawBoost",
    "RawBoostParams",
    "apply",
    "draw_params",
    "isd",
    "lnl",
    "notch_filter",
    "ssi",
]


class RawBoost:
    """RawBoost with one algorithm (0..8) and set of ranges, applied to each waveform with probability `p`.

    `ranges` replace entries of `DEFAULT_RANGES`; InputError names the nearest valid one if a name is unknown.

    >>> boost = RawBoost(algo=5, P=5)
    >>> boost(torch.zeros(2, 1000), [np.random.default_rng(seed) for seed in (1, 2)]).shape
    torch.Size([2, 1000])
    """

    def __init__(self, algo: int = 5, sample_rate: int = 16000, p: float = 1.0, **ranges: float) -> None:
        self.ranges = check_ranges(algo, sample_rate, ranges)
        if not 0.0 <= p <= 1.0:
            raise InputError(f"RawBoost is to be applied with probability {p}: give a number from 0 to 1.")
        self.algo, self.sample_rate, self.p = algo, sample_rate, p

    def __call__(
        self, waveforms: Waveforms, generators: np.random.Generator | Sequence[np.random.Generator]
    ) -> Waveforms:
        """Noisy copies of `waveforms`, (batch, time) or (time,), of the same kind, dtype and device.

        One generator for each row (or the generator, for one row), and a row's result depends on nothing else. With
        `p` below 1 it first decides whether the row is changed at all.
        """
        rows = [generators] if isinstance(generators, np.random.Generator) else generators
        return apply(waveforms, [self.draw(waveforms.shape[-1], generator) for generator in rows])

    def draw(self, num_samples: int, generator: np.random.Generator) -> RawBoostParams:
        """The random numbers for one waveform: `draw_params`, or algorithm 0 where `p` decides against a change."""
        algo = self.algo if self.p == 1.0 or generator.random() < self.p else 0
        return draw_checked(algo, num_samples, generator, self.sample_rate, self.ranges)

    def apply(self, waveforms: Waveforms, draws: Sequence[RawBoostParams]) -> Waveforms:
        """The function `apply`, as a method: what a chain of augmentations calls."""
        return apply(waveforms, draws)

    def describe(self, draw: RawBoostParams) -> dict[str, Any]:
        """What was drawn, for a record."""
        return draw.summary()


def apply(waveforms: Waveforms, params: RawBoostParams | Sequence[RawBoostParams]) -> Waveforms:
    """Noisy copies of `waveforms`, (batch, time) or (time,), by numbers drawn before: `params` of each row, or for all.

    Kind, dtype and device are kept; 16-bit floats are processed in float32. No random number is used.

    >>> wave = np.sin(np.arange(800) / 10)
    >>> apply(wave, draw_params(1, 800, np.random.default_rng(0))).shape
    (800,)
    """
    wave_bt, restore = as_rows(waveforms, "RawBoost")
    num_rows, num_samples = wave_bt.shape
    of_row = [params] * num_rows if isinstance(params, RawBoostParams) else list(params)
    if len(of_row) != num_rows:
        raise InputError(
            f"RawBoost got {num_rows} waveforms and {len(of_row)} sets of random numbers: give one for each."
        )
    for row, drawn in enumerate(of_row):
        if drawn.num_samples != num_samples:
            raise InputError(
                f"Row {row} has {num_samples} samples, but its RawBoost parameters were drawn for {drawn.num_samples}: "
                "draw them for the length they are applied to."
            )
    if wave_bt.device.type == "cpu":
        return restore(torch.cat([_run(wave_bt[row : row + 1], [drawn]) for row, drawn in enumerate(of_row)]))
    boosted_bt = torch.empty_like(wave_bt)
    for rows in _groups(of_row):
        boosted_bt[rows] = _run(wave_bt[rows], [of_row[row] for row in rows])
    return restore(boosted_bt)


def lnl(waveforms: Waveforms, filters: Sequence[np.ndarray]) -> Waveforms:
    """Linear and non-linear convolutive noise: the sum over i of filters[i] on waveforms ** (i + 1).

    The output of an FIR filter of L taps is advanced by (L + 1) // 2 samples, one more than centres a filter of odd
    length, as in the official code. Then the mean is taken off, and the result divided by its peak if that is above 1.

    >>> lnl(np.array([0.0, 0.5, 0.0, 0.0]), [np.array([1.0])])
    array([ 0.375, -0.125, -0.125, -0.125])
    """
    wave_bt, restore = as_rows(waveforms, "RawBoost")
    return restore(_lnl(wave_bt, stack_filters(filters)[None]))


def isd(waveforms: Waveforms, positions: np.ndarray, gains: np.ndarray) -> Waveforms:
    """Impulsive signal-dependent noise: sample positions[j] times gains[j], then all divided by a peak above 1.

    Positions are distinct. RawBoost draws gains 1 + g_sd u1 u2 with u1, u2 uniform in (-1, 1).

    >>> isd(np.array([0.5, 0.5, 0.5]), positions=np.array([1]), gains=np.array([0.2]))
    array([0.5, 0.1, 0.5])
    """
    wave_bt, restore = as_rows(waveforms, "RawBoost")
    num_samples = wave_bt.shape[-1]
    if len(positions) != len(gains) or np.any(np.asarray(positions) // num_samples):
        raise InputError(
            f"isd got {len(positions)} positions and {len(gains)} gains for {num_samples} samples: "
            f"give a gain for each, and positions from 0 to {num_samples - 1}."
        )
    return restore(_isd(wave_bt, [positions] * len(wave_bt), [gains] * len(wave_bt)))


def ssi(waveforms: Waveforms, noise: np.ndarray, filter_taps: np.ndarray, snr_db: float) -> Waveforms:
    """Stationary noise: white `noise` (time,) through an FIR filter, added `snr_db` below the waveform.

    >>> wave = np.array([1.0, -1.0, 1.0, -1.0])
    >>> ssi(wave, noise=np.ones(4), filter_taps=np.array([0.0, 1.0, 0.0]), snr_db=20.0).shape
    (4,)
    """
    wave_bt, restore = as_rows(waveforms, "RawBoost")
    num_rows, num_samples = wave_bt.shape
    if np.shape(noise) != (num_samples,):
        raise InputError(f"ssi got noise of shape {np.shape(noise)} for {num_samples} samples: give as many of each.")
    return restore(_ssi(wave_bt, [noise] * num_rows, stack_filters([filter_taps])[None], [snr_db] * num_rows))


def _groups(params: Sequence[RawBoostParams]) -> list[list[int]]:
    """Rows that can run together: those whose draws have the same shapes."""
    groups: dict[tuple, list[int]] = {}
    for row, drawn in enumerate(params):
        shapes = [drawn.lnl and drawn.lnl.fc_hz.shape, drawn.ssi and drawn.ssi.bank.fc_hz.shape]
        groups.setdefault((drawn.algo, drawn.sample_rate, *shapes), []).append(row)
    return list(groups.values())


def _run(wave_bt: torch.Tensor, params: list[RawBoostParams]) -> torch.Tensor:
    """One algorithm on rows whose draws have the same shapes."""
    algo, sample_rate = params[0].algo, params[0].sample_rate

    def _with_lnl(x_bt: torch.Tensor) -> torch.Tensor:
        return _lnl(x_bt, _design([drawn.lnl for drawn in params if drawn.lnl], sample_rate))

    def _with_isd(x_bt: torch.Tensor) -> torch.Tensor:
        impulses = [drawn.isd for drawn in params if drawn.isd]
        return _isd(x_bt, [noise.positions for noise in impulses], [noise.gains for noise in impulses])

    def _with_ssi(x_bt: torch.Tensor) -> torch.Tensor:
        noises = [drawn.ssi for drawn in params if drawn.ssi]
        filters_bkl = _design([noise.bank for noise in noises], sample_rate)
        return _ssi(x_bt, [noise.white for noise in noises], filters_bkl, [noise.snr_db for noise in noises])

    if algo == 8:
        return _limit_peak(_with_lnl(wave_bt) + _with_isd(wave_bt))
    for stage in ALGORITHMS[algo]:
        wave_bt = {"lnl": _with_lnl, "isd": _with_isd, "ssi": _with_ssi}[stage](wave_bt)
    return wave_bt


def _lnl(wave_bt: torch.Tensor, filters_bkl: np.ndarray) -> torch.Tensor:
    filtered_bt = filter_powers(wave_bt, filters_bkl)
    return _limit_peak(filtered_bt - filtered_bt.mean(dim=-1, keepdim=True))


def _isd(wave_bt: torch.Tensor, positions: Sequence[np.ndarray], gains: Sequence[np.ndarray]) -> torch.Tensor:
    num_samples = wave_bt.shape[-1]
    flat = np.concatenate([row * num_samples + position for row, position in enumerate(positions)])
    index = torch.from_numpy(flat.astype(np.int64)).to(wave_bt.device)
    noisy = wave_bt.reshape(-1).clone()
    noisy[index] *= torch.from_numpy(np.concatenate(gains)).to(wave_bt)
    return _limit_peak(noisy.view_as(wave_bt))


def _ssi(
    wave_bt: torch.Tensor, noise: Sequence[np.ndarray], filters_bkl: np.ndarray, snr_db: Sequence[float]
) -> torch.Tensor:
    # The official code scales the noise to peak 1 before it scales it to the ratio, which undoes the first.
    noise_bt = filter_powers(torch.from_numpy(np.stack(noise)).to(wave_bt), filters_bkl)
    ratio_b = torch.from_numpy(10.0 ** (-0.05 * np.asarray(snr_db, dtype=np.float64))).to(wave_bt)
    smallest = torch.finfo(wave_bt.dtype).tiny  # noise of zeros stays zeros
    unit_noise_bt = noise_bt / torch.linalg.vector_norm(noise_bt, dim=-1, keepdim=True).clamp_min(smallest)
    return wave_bt + unit_noise_bt * (torch.linalg.vector_norm(wave_bt, dim=-1) * ratio_b)[:, None]


def _limit_peak(wave_bt: torch.Tensor) -> torch.Tensor:
    return wave_bt / wave_bt.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)


def _design(banks: Sequence[NotchBanks], sample_rate: int) -> np.ndarray:
    """The filters of each row's banks, (row, bank, tap), centred in a common width."""
    fields = ("fc_hz", "bw_hz", "taps", "gain_db")
    joined = NotchBanks(*(np.concatenate([getattr(bank, field) for bank in banks]) for field in fields))
    filters = notch_filters(joined, sample_rate)
    return filters.reshape(len(banks), -1, filters.shape[-1])
