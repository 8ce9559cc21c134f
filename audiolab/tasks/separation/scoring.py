"""What is measured of one batch of estimates: for each mixture the numbers of its row.

Axes: b batch, e estimate, r reference, t time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from audiolab.metrics.separation import best_permutation, sdr, si_sdr, snr


def order_of(estimate_bet: Tensor, reference_brt: Tensor) -> tuple[Tensor, Tensor]:
    """Return SI-SDR in dB (batch, estimate, reference), and the estimate of each reference (batch, reference).

    The order has the largest sum; a silent reference (NaN) counts for nothing. Of more estimates than references, as a
    model of mixture-invariant training has, those that fit no reference are left out.
    """
    values_ber = si_sdr(estimate_bet[:, :, None], reference_brt[:, None])
    known_ber = values_ber.nan_to_num(nan=0.0)
    if estimate_bet.shape[1] == reference_brt.shape[1]:
        return values_ber, best_permutation(known_ber)
    found = [linear_sum_assignment(value, maximize=True)[1] for value in known_ber.mT.cpu().numpy()]
    return values_ber, torch.as_tensor(np.stack(found), device=values_ber.device)


def numbers_of(
    estimate_bet: Tensor, reference_brt: Tensor, mixture_bt: Tensor, *, bss_eval: bool
) -> list[dict[str, Any]]:
    """Return the measured columns of each mixture, as `evaluation` describes them; computed in float64.

    With `bss_eval` there are SDR and SDRi of BSS-eval too, in the order that SI-SDR gives. They take 16 ms a pair of
    two-second signals.

    >>> s = torch.eye(2, 40)[None]
    >>> row = numbers_of(s.flip(1), s, s.sum(1), bss_eval=False)[0]
    >>> row["permutation"], row["si_sdr_mixture_1"] == row["si_sdr_mixture_2"], row["silent_references"]
    ('2-1', True, 0)
    """
    estimate_bet, reference_brt, mixture_bt = (_exact(signal) for signal in (estimate_bet, reference_brt, mixture_bt))
    values_ber, order_br = order_of(estimate_bet, reference_brt)
    matched_brt = estimate_bet.gather(1, order_br[..., None].expand_as(reference_brt))
    mixture_b1t = mixture_bt[:, None]
    columns = {
        "si_sdr": values_ber.gather(1, order_br[:, None])[:, 0],
        "si_sdr_mixture": si_sdr(mixture_b1t, reference_brt),
        "snr": snr(matched_brt, reference_brt),
    }
    columns["si_sdri"] = columns["si_sdr"] - columns["si_sdr_mixture"]
    if bss_eval:
        columns["sdr"] = sdr(matched_brt, reference_brt)
        columns["sdri"] = columns["sdr"] - sdr(mixture_b1t, reference_brt)
    plain = {name: values_br.tolist() for name, values_br in columns.items()}
    rows = []
    for index, order in enumerate(order_br.tolist()):
        own = {name: values[index] for name, values in plain.items()}
        row: dict[str, Any] = {"permutation": "-".join(str(estimate + 1) for estimate in order)}
        for number in range(len(order)):
            row[f"si_sdr_{number + 1}"] = own["si_sdr"][number]
            row[f"si_sdr_mixture_{number + 1}"] = own["si_sdr_mixture"][number]
        heard = [not math.isnan(value) for value in own["si_sdr_mixture"]]
        row |= {name: _mean([v for v, one in zip(values, heard, strict=True) if one]) for name, values in own.items()}
        rows.append({**row, "silent_references": heard.count(False)})
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _exact(signal: Tensor) -> Tensor:
    """Return a signal in float64, on the CPU where its device has no such numbers."""
    return signal.cpu().double() if signal.device.type == "mps" else signal.double()
