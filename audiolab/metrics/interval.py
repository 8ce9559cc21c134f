"""The interval of a mean over recordings that share talkers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from audiolab.errors import InputError
from audiolab.metrics.det import FloatArray

_ROWS_AT_ONCE = 1024  # of the table of which recording shares a talker with which


def mean_interval(values: ArrayLike, members: Sequence[Collection[str]], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of `values`, of which those with a common member depend on one another.

    `members[i]` are the talkers of recording i. Recordings of one talker are easy or hard together, so the variance
    of the mean sums the products of the residuals of all pairs that share a talker (Aronow, Samii and Assenova 2015,
    "Cluster-robust variance estimation for dyadic data", here with any number of talkers a recording). It is never
    taken for smaller than that of independent recordings, and the quantile is Student's with as many degrees of freedom
    as there are talkers less one. Where nothing is known of the talkers give each recording one of its own. NaN for
    fewer than two values.

    >>> values = [1.0, 2.0, 3.0, 4.0]
    >>> low, high = mean_interval(values, [["a"], ["b"], ["c"], ["d"]])
    >>> round(low, 2), round(high, 2)
    (0.45, 4.55)
    >>> low, high = mean_interval([1.0, 1.0, 4.0, 4.0], [["a", "b"], ["a", "c"], ["d", "e"], ["d", "f"]])
    >>> round(low, 2), round(high, 2)
    (-0.49, 5.49)
    """
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (len(members),) or not 0 < level < 1:
        raise InputError(
            f"there are values of shape {column.shape}, members of {len(members)} recordings and a level of {level}: "
            "give one value and the members of each recording, and a level between 0 and 1"
        )
    names = {name: index for index, name in enumerate(sorted({name for those in members for name in those}))}
    if column.size < 2 or len(names) < 2:
        return math.nan, math.nan
    residual = column - column.mean()
    alone = float(residual @ residual) / (column.size * (column.size - 1))
    together = _shared(residual, _incidence(members, names)) / column.size**2 * len(names) / (len(names) - 1)
    half = student.ppf((1 + level) / 2, len(names) - 1) * math.sqrt(max(alone, together))
    return float(column.mean() - half), float(column.mean() + half)


def _incidence(members: Sequence[Collection[str]], names: dict[str, int]) -> FloatArray:
    """Return a table (recording, member) of ones and zeros."""
    table = np.zeros((len(members), len(names)), dtype=np.float32)
    for row, those in enumerate(members):
        table[row, [names[name] for name in those]] = 1
    return table


def _shared(residual: FloatArray, incidence: FloatArray) -> float:
    """Return the sum of residual_i residual_j over all pairs i, j that share a member, i = j included."""
    total = 0.0
    for first in range(0, len(residual), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        total += float(residual[rows] @ ((incidence[rows] @ incidence.T > 0) @ residual))
    return total
