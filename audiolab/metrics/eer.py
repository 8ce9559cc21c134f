"""Equal error rate and lowest detection cost from scores that were sorted once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from audiolab.metrics.det import FIRST_THRESHOLD_MARGIN, FloatArray, IntArray, sorted_classes


@dataclass(frozen=True)
class SortedTrials:
    """Bona fide and spoof scores, each sorted ascending: what every metric starts from.

    The DET curve of `compute_det` has N + 1 points, but its lower-left corners are enough: corner i = 0..Nb rejects
    the i lowest bona fide trials and every spoof before the next one. A detection cost is lowest at a corner, and the
    EER lies between two neighbours. Finding the corners costs one binary search a bona fide trial.
    """

    bonafide: FloatArray
    spoof: FloatArray

    @classmethod
    def of(cls, bonafide: ArrayLike, spoof: ArrayLike, min_trials: int = 3) -> SortedTrials:
        """Check and sort; InputError as in `sorted_classes`."""
        return cls(*sorted_classes(bonafide, spoof, min_trials))

    def negated(self) -> SortedTrials:
        """The same trials with the sign of their scores turned."""
        return SortedTrials(-self.bonafide[::-1], -self.spoof[::-1])

    @cached_property
    def rejected_spoof(self) -> IntArray:
        """Number of spoofs rejected at corner i = 0..Nb, bona fide first inside ties."""
        return self._rejected_spoof("left")

    def _rejected_spoof(self, side: Literal["left", "right"]) -> IntArray:
        return np.append(np.searchsorted(self.spoof, self.bonafide, side), self.spoof.size)

    @cached_property
    def rates(self) -> tuple[FloatArray, FloatArray]:
        """Miss and false-alarm rate at the corners."""
        num_bonafide, num_spoof = self.bonafide.size, self.spoof.size
        return np.arange(num_bonafide + 1) / num_bonafide, (num_spoof - self.rejected_spoof) / num_spoof

    def threshold(self, rejected_bonafide: int, rejected_spoof: int) -> float:
        """The highest rejected score, as in `compute_det`."""
        if rejected_bonafide == rejected_spoof == 0:
            return float(min(self.bonafide[0], self.spoof[0])) - FIRST_THRESHOLD_MARGIN
        rejected = self.bonafide[:rejected_bonafide][-1:], self.spoof[:rejected_spoof][-1:]
        return float(np.concatenate(rejected).max())

    def eer(self, spoof_first: bool = False) -> tuple[float, float]:
        """EER and threshold: first point of the DET curve with the smallest |miss - false alarm|, mean of the two.

        `spoof_first` turns the order inside ties.
        """
        num_bonafide, num_spoof = self.bonafide.size, self.spoof.size
        rejected_spoof = self._rejected_spoof("right") if spoof_first else self.rejected_spoof
        # miss - false alarm rises along the curve; the first corner where it is not negative, in integers:
        balance = np.arange(num_bonafide + 1) * num_spoof + rejected_spoof * num_bonafide
        turn = int(np.searchsorted(balance, num_bonafide * num_spoof))
        # The points from the corner before (or the start) to this one: one bona fide trial, then spoofs.
        start = int(rejected_spoof[turn - 1]) if turn else 0
        spoofs = np.concatenate(([start], np.arange(start, rejected_spoof[turn] + 1)))
        bonafides = np.full(spoofs.size, turn)
        bonafides[0] = max(turn - 1, 0)
        miss, false_alarm = bonafides / num_bonafide, (num_spoof - spoofs) / num_spoof
        point = int(np.argmin(np.abs(miss - false_alarm)))
        eer = float(miss[point] + false_alarm[point]) / 2
        return eer, self.threshold(int(bonafides[point]), int(spoofs[point]))

    def lowest_cost(self, c_miss: float, c_false_alarm: float, c_floor: float = 0.0) -> tuple[float, float]:
        """First minimum of the normalised detection cost over all points of the DET curve, and its threshold.

        (c_floor + c_miss Pmiss + c_false_alarm Pfa) / (c_floor + min(c_miss, c_false_alarm)): 1 is the better of
        accepting all and rejecting all.
        """
        miss, false_alarm = self.rates
        cost = (c_floor + c_miss * miss + c_false_alarm * false_alarm) / (c_floor + min(c_miss, c_false_alarm))
        corner = int(np.argmin(cost))
        return float(cost[corner]), self.threshold(corner, int(self.rejected_spoof[corner]))


def compute_eer(bonafide: ArrayLike, spoof: ArrayLike) -> tuple[float, float]:
    """Equal error rate as a fraction, and its threshold; not interpolated (ASVspoof 2019, 2021 and 5).

    Raises InputError as `compute_det` does.

    >>> compute_eer([1.0, 3.0, 4.0], [0.0, 0.5, 2.0])
    (0.3333333333333333, 1.0)
    """
    return SortedTrials.of(bonafide, spoof).eer()
