"""Uncertainty of the EER: bootstrap over speakers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from audiolab.errors import InputError
from audiolab.metrics.det import IntArray, as_labels, as_scores

SMALLEST_NUM_RESAMPLES = 40  # the 2.5 % point of fewer resamples is one of their extremes


def eer_interval(
    scores: ArrayLike,
    is_bonafide: ArrayLike,
    speakers: ArrayLike,
    generator: np.random.Generator,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the EER, as fractions, from resampling speakers with replacement.

    Trials of a speaker stand or fall together, so resampling trials would give intervals that are too narrow
    (Bolle et al., "The subsets bootstrap", Computer Vision and Image Understanding 93, 2004). Each resample's EER is
    exactly `compute_eer` of its trials; resamples without bona fide or without spoof trials are drawn again.

    `scores`, `is_bonafide`, `speakers` have one entry a trial. Raises InputError for columns of different lengths, one
    class only, fewer than two speakers, fewer than 40 resamples, or a level outside 0..1.

    >>> generator = np.random.default_rng(0)
    >>> is_bonafide = np.arange(400) < 100
    >>> scores = generator.normal(np.where(is_bonafide, 2.0, 0.0), 1.0)
    >>> low, high = eer_interval(scores, is_bonafide, np.arange(400) % 20, generator, num_resamples=200)
    >>> round(low, 3), round(high, 3)
    (0.1, 0.19)
    """
    values = as_scores(scores, "trial")
    genuine = as_labels(is_bonafide, values.size)
    names, speaker = np.unique(np.asarray(speakers), return_inverse=True)
    if speaker.shape != values.shape:
        raise InputError(f"There are {values.size} scores and speakers of shape {speaker.shape}: pass one a trial.")
    if genuine.all() or not genuine.any():
        raise InputError("All trials are of one class: an EER needs bona fide and spoof trials.")
    if names.size < 2:
        raise InputError("All trials are of one speaker: resampling needs at least two, better twenty.")
    if num_resamples < SMALLEST_NUM_RESAMPLES or not 0 < level < 1:
        raise InputError(
            f"num_resamples is {num_resamples} and level {level}: take at least {SMALLEST_NUM_RESAMPLES} resamples and "
            "a level between 0 and 1."
        )
    order = np.lexsort((~genuine, values))  # bona fide first inside ties
    kind = 2 * speaker[order] + genuine[order]
    eers = [_resampled_eer(kind, _draw_copies(kind, names.size, generator)) for _ in range(num_resamples)]
    low, high = np.quantile(eers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw_copies(kind: IntArray, num_speakers: int, generator: np.random.Generator) -> IntArray:
    """How often each speaker is drawn, such that both classes have trials."""
    trials_sc = np.bincount(kind, minlength=2 * num_speakers).reshape(num_speakers, 2)
    while True:
        drawn = generator.integers(num_speakers, size=num_speakers)
        copies = np.bincount(drawn, minlength=num_speakers)
        if (copies @ trials_sc).all():
            return copies


def _resampled_eer(kind: IntArray, copies: IntArray) -> float:
    """EER of sorted trials of `kind` 2 speaker + is_bonafide where each speaker's trials stand `copies` times.

    miss - false alarm rises along the trials, so the EER lies within the copies of the trial that turns its sign.
    """
    num_kinds = 2 * copies.size
    num_spoof, num_bonafide = copies @ np.bincount(kind, minlength=num_kinds).reshape(-1, 2)
    step = np.outer(copies, (num_bonafide, num_spoof)).ravel()  # of a trial in miss - false alarm, times Nb Ns
    turn = int(np.searchsorted(np.cumsum(step[kind]), num_bonafide * num_spoof))
    spoof, bonafide = copies @ np.bincount(kind[:turn], minlength=num_kinds).reshape(-1, 2)
    turning_speaker, is_bonafide = divmod(int(kind[turn]), 2)
    rejected = np.arange(copies[turning_speaker] + 1)
    miss = (bonafide + rejected * is_bonafide) / num_bonafide
    false_alarm = (num_spoof - spoof - rejected * (1 - is_bonafide)) / num_spoof
    nearest = int(np.argmin(np.abs(miss - false_alarm)))
    return float(miss[nearest] + false_alarm[nearest]) / 2
