"""Tandem equal error rate (t-EER) of a countermeasure and a speaker verification system."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from audiolab.errors import InputError
from audiolab.metrics.det import (
    FloatArray,
    IntArray,
    as_scores,
    compute_det,
    count_rejected,
    merged_thresholds,
    refuse_decisions,
)

# The concurrent point is the same for every spoof share; the official code searches along this one.
SPOOF_SHARE = 0.5


def t_eer(
    bonafide: ArrayLike, spoof: ArrayLike, asv_target: ArrayLike, asv_nontarget: ArrayLike, asv_spoof: ArrayLike
) -> tuple[float, float, float]:
    """Concurrent t-EER as a fraction, its CM threshold and its ASV threshold.

    The point where a trial that must pass both systems is missed, accepted as a nontarget and accepted as a spoof
    with the same probability (Kinnunen et al., "t-EER: parameter-free tandem evaluation ...", IEEE TPAMI 46, 2024).
    `bonafide` and `spoof` are CM scores, the others ASV scores. Computed on the full curves: the official code thins
    sets of more than 3,000 trials and can differ there in the last digits.

    Raises InputError as `compute_det` does, and where the CM rejects all bona fide trials wherever the systems balance.

    >>> generator = np.random.default_rng(0)
    >>> draw = lambda mean: generator.normal(mean, 1.0, 500)
    >>> value, cm_threshold, asv_threshold = t_eer(draw(2), draw(-2), draw(3), draw(-3), draw(1))
    >>> round(value, 3)
    0.022
    """
    cm_miss, cm_false_alarm, cm_thresholds = compute_det(bonafide, spoof)
    named = ((asv_target, "ASV target"), (asv_nontarget, "ASV nontarget"), (asv_spoof, "ASV spoof"))
    classes = [np.sort(as_scores(values, kind)) for values, kind in named]
    refuse_decisions(*classes)
    asv_miss, rejected_nontarget, rejected_spoof = (
        counts / scores.size for counts, scores in zip(count_rejected(*classes), classes, strict=True)
    )
    asv_fa_nontarget, asv_fa_spoof = 1.0 - rejected_nontarget, 1.0 - rejected_spoof

    # Only ASV thresholds below the ASV system's own EER point leave room for the CM to add misses.
    usable = np.flatnonzero(asv_miss < (1 - SPOOF_SHARE) * asv_fa_nontarget + SPOOF_SHARE * asv_fa_spoof)
    asv = np.stack((asv_miss, asv_fa_nontarget, asv_fa_spoof))[:, usable]
    point = _balanced_points(cm_miss, cm_false_alarm, asv)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(asv[1] / asv[2] - cm_false_alarm[point] / (1.0 - cm_miss[point]))
    distance[np.isnan(distance)] = np.inf
    if np.isinf(distance.min()):
        raise InputError(
            "The t-EER is undefined: wherever the two systems balance, the CM rejects every bona fide trial, so check "
            "that higher scores mean target (ASV) and bona fide (CM)."
        )
    best = int(np.argmin(distance))
    value = float(asv[2, best] * cm_false_alarm[point[best]])
    return value, float(cm_thresholds[point[best]]), float(merged_thresholds(*classes)[usable[best]])


def _balanced_points(cm_miss: FloatArray, cm_false_alarm: FloatArray, asv: FloatArray) -> IntArray:
    """For each ASV operating point (column of `asv`), the first CM point with the nearest tandem miss and false accept.

    Their difference rises along the CM's curve, so all columns are bisected at once.
    """
    asv_miss, asv_fa_nontarget, asv_fa_spoof = asv

    def imbalance(point: IntArray) -> FloatArray:
        passed = 1.0 - cm_miss[point]
        nontarget_accept, spoof_accept = passed * asv_fa_nontarget, cm_false_alarm[point] * asv_fa_spoof
        false_accept = (1 - SPOOF_SHARE) * nontarget_accept + SPOOF_SHARE * spoof_accept
        return (cm_miss[point] + passed * asv_miss) - false_accept

    def first_point_at_least(level: FloatArray | float) -> IntArray:
        low = np.zeros(asv_miss.size, dtype=np.int64)
        high = np.full(asv_miss.size, cm_miss.size - 1)  # at the last point everything is rejected
        while np.any(low < high):
            middle = (low + high) // 2
            reached = imbalance(middle) >= level
            high = np.where(reached, middle, high)
            low = np.where(reached, low, np.minimum(middle + 1, high))
        return low

    above = first_point_at_least(0.0)
    below = np.maximum(above - 1, 0)
    gap_above, level_below = imbalance(above), imbalance(below)
    return np.where(np.abs(level_below) <= np.abs(gap_above), first_point_at_least(level_below), above)
