"""How well talkers were separated: SI-SDR, SNR, BSS-eval SDR, and the order of the estimates that fits best.

Signals are (..., time), estimates and references broadcast against each other, values are in dB over the last axis. A
silent reference has no value: NaN, for the caller to leave out and count. A silent or orthogonal estimate has the worst
value there is, a perfect one the best: the square of the precision of the dtype, -138 and 138 dB in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import permutations

import numpy as np
import torch
from scipy.fft import irfft, rfft
from scipy.linalg import matmul_toeplitz, solve_toeplitz, toeplitz
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from audiolab.errors import InputError

Metric = Callable[[Tensor, Tensor], Tensor]
_SDR_TAPS = 512  # of BSS-eval, Vincent et al. 2006
_SDR_FFT = 4096
_SDR_BLOCK = _SDR_FFT - _SDR_TAPS  # of the reference, beside as many lags
_SOLVED = 1e-8  # what may be left of the right-hand side where a solution counts as one
_MOST_ENUMERATED = 6  # talkers up to which all 720 orders are tried; the assignment problem beyond is solved


def si_sdr(estimate: Tensor, reference: Tensor, zero_mean: bool = True) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, equation 4).

    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2. With `zero_mean` both signals lose their mean first, as in
    the Conv-TasNet paper. No constant is added to energies, so the level of the signals does not matter.

    >>> s = torch.sin(torch.arange(800.0))
    >>> round(si_sdr(3 * (s + 0.1 * torch.cos(torch.arange(800.0))), s).item(), 1)
    20.0
    """
    estimate, reference = _pair(estimate, reference)
    if zero_mean:
        estimate, reference = (signal - signal.mean(-1, keepdim=True) for signal in (estimate, reference))
    reference, energy = _unit(reference)
    estimate, _ = _unit(estimate)
    target = (estimate * reference).sum(-1, keepdim=True) * reference
    return _ratio_db(target.square().sum(-1), (estimate - target).square().sum(-1), energy)


def snr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return the signal-to-noise ratio in dB, 10 log10(|s|^2 / |s - e|^2): level and sign of the estimate count.

    >>> s = torch.sin(torch.arange(800.0))
    >>> round(snr(0.9 * s, s).item(), 3)
    20.0
    """
    estimate, reference = _pair(estimate, reference)
    peak = reference.abs().amax(-1, keepdim=True)
    scale = torch.where(peak > 0, peak, 1)
    energy = (reference / scale).square().sum(-1)
    return _ratio_db(energy, ((reference - estimate) / scale).square().sum(-1), energy)


def sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return the signal-to-distortion ratio of BSS-eval version 3 in dB (Vincent et al. 2006), computed in float64.

    What a filter of 512 taps can make of the reference counts as signal, the rest of the estimate as distortion.
    Published SDRi values are differences of this one. It has no gradients.

    >>> s = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)), torch.zeros(600)])
    >>> bool(sdr(torch.roll(s, 5), s) > 100)
    True
    """
    estimate, reference = (_at_peak(signal.detach().double()) for signal in _pair(estimate, reference))
    blocks = rfft(_windows(reference, _SDR_BLOCK), _SDR_FFT).conj()
    ahead, ahead_of_estimate = (rfft(_windows(signal, _SDR_FFT)) for signal in (reference, estimate))
    autocorrelation, correlation = (
        irfft((blocks * spectra).sum(-2), _SDR_FFT)[..., :_SDR_TAPS] for spectra in (ahead, ahead_of_estimate)
    )
    explained = torch.as_tensor(_explained(autocorrelation, correlation)).to(estimate)
    rest = estimate.square().sum(-1) - explained
    return _ratio_db(explained.clamp(min=0), rest, reference.abs().amax(-1))


def si_sdr_improvement(estimate: Tensor, reference: Tensor, mixture: Tensor) -> Tensor:
    """Return SI-SDR of (batch, speaker, time) estimates minus that of the mixture (batch, time), in dB.

    Estimates are taken in their order; `pit` finds the one that fits the references.

    >>> s = torch.eye(2)[None]
    >>> si_sdr_improvement(s.sum(1, keepdim=True).expand(1, 2, 2), s, s.sum(1)).tolist()
    [[0.0, 0.0]]
    """
    return si_sdr(estimate, reference) - si_sdr(mixture.unsqueeze(-2), reference)


def pit(estimate: Tensor, reference: Tensor, metric: Metric = si_sdr) -> tuple[Tensor, Tensor]:
    """Return the best mean of a metric over speakers and the order of the estimates that gives it.

    Both signals are (batch, speaker, time). `best` is (batch,); `permutation` (batch, speaker), and
    `permutation[b, r]` is the index of the estimate for reference r. All orders are tried for up to six speakers,
    the Hungarian method finds the best beyond (Kolbaek et al. 2017: utterance-level permutation invariance). A silent
    reference counts for nothing; where all are silent the best is NaN.

    >>> s = torch.eye(3)[None]
    >>> pit(s[:, [2, 0, 1]], s, metric=snr)[1].tolist()
    [[1, 2, 0]]
    """
    if estimate.shape != reference.shape or estimate.ndim != 3:
        raise InputError(
            f"estimates of shape {tuple(estimate.shape)} cannot be matched with references of shape "
            f"{tuple(reference.shape)}: both must be (batch, speaker, time) and alike"
        )
    values_ber = metric(estimate[:, :, None], reference[:, None])
    heard_br = ~values_ber.isnan().all(1)
    permutation_br = best_permutation(values_ber.nan_to_num(nan=0.0))
    matched_br = values_ber.gather(1, permutation_br[:, None])[:, 0]
    best_b = torch.where(heard_br, matched_br, 0).sum(-1) / heard_br.sum(-1)  # 0 / 0 where all are silent
    return best_b, permutation_br


def best_permutation(values_ber: Tensor) -> Tensor:
    """Return, for values (batch, estimate, reference), the estimate of each reference with the largest sum.

    >>> best_permutation(torch.tensor([[[0.0, 5.0], [1.0, 2.0]]])).tolist()
    [[1, 0]]
    """
    num_speakers = values_ber.shape[-1]
    if num_speakers > _MOST_ENUMERATED:
        found = [linear_sum_assignment(value, maximize=True) for value in values_ber.mT.detach().cpu().double().numpy()]
        return torch.stack([torch.as_tensor(estimates) for _, estimates in found]).to(values_ber.device)
    orders_pr = _orders(num_speakers, values_ber.device)
    sums_bp = values_ber[:, orders_pr, torch.arange(num_speakers, device=values_ber.device)].sum(-1)
    return orders_pr[sums_bp.argmax(-1)]


@cache
def _orders(num_speakers: int, device: torch.device) -> Tensor:
    return torch.tensor(list(permutations(range(num_speakers))), device=device)


def _pair(estimate: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    estimate, reference = torch.as_tensor(estimate), torch.as_tensor(reference)
    if estimate.shape[-1:] != reference.shape[-1:]:
        raise InputError(
            f"an estimate of shape {tuple(estimate.shape)} cannot be judged against a reference of shape "
            f"{tuple(reference.shape)}: both must have as many samples"
        )
    dtype = torch.promote_types(estimate.dtype, reference.dtype)
    dtype = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return estimate.to(dtype), reference.to(dtype)


def _at_peak(signal: Tensor) -> Tensor:
    """Return the signal with peak 1, so that squares neither vanish nor overflow; silence stays what it is."""
    peak = torch.maximum(signal.amax(-1, keepdim=True), -signal.amin(-1, keepdim=True))
    return signal / torch.where(peak > 0, peak, 1)


def _unit(signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signal with energy 1 and its energy relative to its peak; silence stays what it is."""
    signal = _at_peak(signal)
    energy = signal.square().sum(-1, keepdim=True)
    return signal / torch.where(energy > 0, energy, 1).sqrt(), energy[..., 0]


def _ratio_db(signal: Tensor, noise: Tensor, reference_energy: Tensor) -> Tensor:
    worst = torch.finfo(signal.dtype).eps ** 2
    noise = torch.maximum(noise, signal * worst)  # before dividing, so that gradients stay finite as well
    ratio = signal / torch.where(noise > 0, noise, 1)
    value_db = 10 * torch.log10(ratio.clamp(min=worst))
    return torch.where(reference_energy > 0, value_db, torch.nan)


def _windows(signal: Tensor, length: int) -> np.ndarray:
    """Return (..., block, length): windows that begin every `_SDR_BLOCK` samples, zeros after the end.

    Blocks of the reference, and what of a signal lies from their beginning to 512 samples after their end, give all
    lags that the filter needs, by transforms that stay in the cache.
    """
    num_blocks = max(1, -(-signal.shape[-1] // _SDR_BLOCK))
    missing = (num_blocks - 1) * _SDR_BLOCK + length - signal.shape[-1]
    padded = np.pad(signal.cpu().numpy(), [(0, 0)] * (signal.ndim - 1) + [(0, missing)])
    return np.lib.stride_tricks.sliding_window_view(padded, length, axis=-1)[..., ::_SDR_BLOCK, :]


def _explained(autocorrelation: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Return the energy of projections on the span of delayed references, from (..., taps): c^T R^-1 c."""
    rows = (pair.reshape(-1, _SDR_TAPS) for pair in np.broadcast_arrays(autocorrelation, correlation))
    return np.reshape([_projected(*row) for row in zip(*rows, strict=True)], correlation.shape[:-1])


def _projected(autocorrelation: np.ndarray, correlation: np.ndarray) -> float:
    """Solve by Levinson's recursion; a matrix that rounding leaves singular (silence, a pure tone) by least squares."""
    if not np.isfinite(correlation).all():
        return math.nan
    with suppress(np.linalg.LinAlgError), np.errstate(all="ignore"):
        taps = solve_toeplitz(autocorrelation, correlation)
        rest = matmul_toeplitz(autocorrelation, taps, check_finite=False) - correlation
        if np.linalg.norm(rest) <= _SOLVED * np.linalg.norm(correlation):
            return float(taps @ correlation)
    return float(correlation @ np.linalg.pinv(toeplitz(autocorrelation), hermitian=True) @ correlation)
