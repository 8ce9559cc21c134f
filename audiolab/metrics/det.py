"""Detection error trade-off of bona fide against spoof scores, and what is asked of scores.

The convention is that of every official ASVspoof package. All scores in one ascending order, bona fide before spoof
inside a tie; operating point k = 0..N rejects the first k. Nothing is interpolated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audiolab.errors import InputError, UndefinedMetricError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FIRST_THRESHOLD_MARGIN = 0.001  # operating point 0 accepts all; the official packages name it min - 0.001


def as_scores(values: ArrayLike, kind: str) -> FloatArray:
    """The scores of one class of trials as a float64 vector; `kind` names the class in error messages.

    Raises InputError for scores that are missing, not numbers, half precision, not one a trial, or not finite.

    >>> as_scores([1, 2], "bona fide")
    array([1., 2.])
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(
            f"The {kind} scores have shape {array.shape}: pass a one-dimensional array with one score a trial, "
            "for two logits their difference."
        )
    if array.size == 0:
        raise InputError(f"There are no {kind} scores: every class needs some, so check the labels of the trial list.")
    if array.dtype.kind not in "biuf":
        raise InputError(f"The {kind} scores are of type {array.dtype}: pass numbers.")
    if array.dtype == np.float16:
        raise InputError(
            f"The {kind} scores are half precision, which ties scores that differ: "
            "compute the model's last layer and save its logits in float32."
        )
    scores = array.astype(np.float64)
    finite = np.isfinite(scores)
    if not finite.all():
        raise InputError(
            f"{scores.size - np.count_nonzero(finite)} of {scores.size} {kind} scores are nan or inf, the first at "
            f"index {int(np.argmin(finite))}: look for a diverged model or an overflow before scoring."
        )
    return scores


def as_labels(values: ArrayLike, num_trials: int) -> NDArray[np.bool_]:
    """Labels, one a trial, True for bona fide, from booleans or 1 and 0; InputError for others or another number.

    >>> as_labels([1, 0, 0], 3)
    array([ True, False, False])
    """
    labels = np.asarray(values)
    if labels.shape != (num_trials,):
        raise InputError(f"There are {num_trials} scores and labels of shape {labels.shape}: pass one label a trial.")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise InputError("Labels must be True or 1 for bona fide and False or 0 for spoof.")
    return labels.astype(bool)


def refuse_decisions(*classes: FloatArray, min_trials: int = 3) -> None:
    """Raise InputError (UndefinedMetricError) when `min_trials` or more trials hold fewer than three distinct scores.

    `classes` are sorted ascending. With `min_trials=3` the single pair of trials that a cell of a breakdown table may
    hold passes, as it does in the official EER; the official t-DCF refuses it (`min_trials=2`).
    """
    num_trials = sum(scores.size for scores in classes)
    if num_trials >= min_trials and not has_soft_scores(*classes):
        raise UndefinedMetricError(
            f"The {num_trials} scores hold fewer than 3 distinct values, like decisions: "
            "pass soft scores, for example the log-likelihood ratio or the difference of the two logits."
        )


def has_soft_scores(*classes: FloatArray) -> bool:
    """Whether sorted classes hold three or more distinct scores between them."""
    low = min(scores[0] for scores in classes)
    high = max(scores[-1] for scores in classes)
    return any(np.searchsorted(scores, low, "right") < np.searchsorted(scores, high, "left") for scores in classes)


def sorted_classes(bonafide: ArrayLike, spoof: ArrayLike, min_trials: int = 3) -> tuple[FloatArray, FloatArray]:
    """Both classes checked (`as_scores`, `refuse_decisions`) and sorted ascending."""
    classes = np.sort(as_scores(bonafide, "bona fide")), np.sort(as_scores(spoof, "spoof"))
    refuse_decisions(*classes, min_trials=min_trials)
    return classes


def count_rejected(*classes: FloatArray) -> list[IntArray]:
    """For each class, how many of its trials are among the first k of all, k = 0..N.

    `classes` are sorted ascending; inside a tie an earlier class comes first. Merging sorted classes costs a binary
    search for each trial of the smaller ones, a fraction of a stable argsort of all.

    >>> [counts.tolist() for counts in count_rejected(np.array([1.0, 3.0]), np.array([0.0, 1.0]))]
    [[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]]
    """
    num_trials = sum(scores.size for scores in classes)
    largest = max(range(len(classes)), key=lambda index: classes[index].size)
    rest = np.arange(num_trials + 1)
    rejected = []
    for own, scores in enumerate(classes):
        if own == largest:
            rejected.append(rest)  # what the other classes leave over
            continue
        position = np.arange(1, scores.size + 1)
        for other, other_scores in enumerate(classes):
            if other != own:
                position += np.searchsorted(other_scores, scores, "right" if other < own else "left")
        counts = np.zeros(num_trials + 1, dtype=np.int64)
        counts[position] = 1
        np.cumsum(counts, out=counts)
        rest -= counts
        rejected.append(counts)
    return rejected


def merged_thresholds(*classes: FloatArray) -> FloatArray:
    """Thresholds t_0 = min - 0.001, t_k = k-th smallest score; `classes` are sorted ascending."""
    scores = np.concatenate((np.empty(1), *classes))
    scores[1:].sort(kind="stable")  # merges sorted runs in linear time
    scores[0] = scores[1] - FIRST_THRESHOLD_MARGIN
    return scores


def compute_det(bonafide: ArrayLike, spoof: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Miss rate, false-alarm rate and threshold at the N + 1 operating points of N trials, as fractions.

    Higher scores mean more bona fide. Raises InputError for empty, non-finite or hard (fewer than 3 values) scores.

    >>> miss, false_alarm, thresholds = compute_det([1.0, 3.0], [0.0, 2.0])
    >>> miss.tolist(), false_alarm.tolist(), thresholds.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0, 0.0], [-0.001, 0.0, 1.0, 2.0, 3.0])
    """
    classes = sorted_classes(bonafide, spoof)
    rejected_bonafide, rejected_spoof = count_rejected(*classes)
    num_bonafide, num_spoof = classes[0].size, classes[1].size
    return rejected_bonafide / num_bonafide, (num_spoof - rejected_spoof) / num_spoof, merged_thresholds(*classes)
