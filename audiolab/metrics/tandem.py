"""Spoofing countermeasure and speaker verification together: ASV error rates, t-DCF and a-DCF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from audiolab.errors import InputError
from audiolab.metrics.costs import ASVSPOOF_COSTS, SpoofingCosts
from audiolab.metrics.det import FloatArray, as_scores, refuse_decisions
from audiolab.metrics.eer import SortedTrials

TdcfVersion = Literal["2019", "2021"]
TDCF_VERSIONS: tuple[TdcfVersion, ...] = ("2019", "2021")

ADCF_FIRST_THRESHOLD_MARGIN = 1e-8  # as in the public a-DCF code


@dataclass(frozen=True)
class AsvErrorRates:
    """Error rates, as fractions, of a speaker verification system at one threshold.

    `p_fa`: nontargets accepted; `p_miss`: targets rejected; `p_miss_spoof`: spoofs rejected; `p_fa_spoof`: spoofs
    accepted, 1 - `p_miss_spoof`. The two spoof rates are easily confused (the official ASVspoof 5 script passes the
    first where the t-DCF needs the second), so both are kept and must sum to one. InputError when they do not, or
    when a rate lies outside 0..1.
    """

    p_fa: float
    p_miss: float
    p_miss_spoof: float
    p_fa_spoof: float
    threshold: float

    def __post_init__(self) -> None:
        for name in ("p_fa", "p_miss", "p_miss_spoof", "p_fa_spoof"):
            rate = getattr(self, name)
            if not 0.0 <= rate <= 1.0:
                raise InputError(f"ASV error rate {name} is {rate}: give it as a fraction between 0 and 1.")
        if not math.isclose(self.p_miss_spoof + self.p_fa_spoof, 1.0, abs_tol=1e-9):
            raise InputError(
                f"ASV rates p_miss_spoof = {self.p_miss_spoof} and p_fa_spoof = {self.p_fa_spoof} must sum to one: "
                "spoofs are either rejected or accepted."
            )


PUBLISHED_ASV_RATES: Mapping[str, AsvErrorRates] = MappingProxyType(
    {
        "asvspoof5": AsvErrorRates(
            p_fa=0.01881016557566423,
            p_miss=0.01880141010575793,
            p_miss_spoof=1.0 - 0.4607082907604729,
            p_fa_spoof=0.4607082907604729,
            threshold=math.nan,
        )
    }
)
"""Rates of organisers' ASV systems for those who have no ASV scores, by corpus; the organisers published no threshold.

"asvspoof5" is the default of the official evaluation package (asvspoof-challenge/asvspoof5), pooled over conditions.
"""


def asv_error_rates(target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike) -> AsvErrorRates:
    """ASV error rates at the EER threshold of target against nontarget scores, as the t-DCF fixes them.

    Raises InputError for empty or non-finite scores.

    >>> asv_error_rates([2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.5, 1.5], [1.0, 3.0])
    AsvErrorRates(p_fa=0.25, p_miss=0.0, p_miss_spoof=0.5, p_fa_spoof=0.5, threshold=2.0)
    """
    targets, nontargets = np.sort(as_scores(target, "target")), np.sort(as_scores(nontarget, "nontarget"))
    refuse_decisions(targets, nontargets)
    _, threshold = SortedTrials(targets, nontargets).eer()
    return rates_at(threshold, targets, nontargets, np.sort(as_scores(spoof, "ASV spoof")))


def rates_at(threshold: float, target: FloatArray, nontarget: FloatArray, spoof: FloatArray) -> AsvErrorRates:
    """ASV error rates at a given threshold; all scores sorted ascending. A trial is accepted at score >= threshold."""
    rejected = [int(np.searchsorted(scores, threshold, "left")) for scores in (target, nontarget, spoof)]
    return AsvErrorRates(
        p_fa=(nontarget.size - rejected[1]) / nontarget.size,
        p_miss=rejected[0] / target.size,
        p_miss_spoof=rejected[2] / spoof.size,
        p_fa_spoof=(spoof.size - rejected[2]) / spoof.size,
        threshold=threshold,
    )


class TdcfWeights(NamedTuple):
    """The t-DCF at CM rates (Pmiss, Pfa) is c0 + c1 Pmiss + c2 Pfa, normalised by c0 + min(c1, c2)."""

    c0: float
    c1: float
    c2: float


def tdcf_weights(
    asv: AsvErrorRates, version: TdcfVersion = "2019", costs: SpoofingCosts = ASVSPOOF_COSTS
) -> TdcfWeights:
    """Weights of the t-DCF for a fixed ASV system, not checked for sign.

    "2019" is the legacy form of the 2019 evaluation plan (c0 = 0), "2021" the ASV-constrained form of Kinnunen et
    al., IEEE/ACM TASLP 28, 2020, eqs. 10-11, used by ASVspoof 2021 and 5. Raises InputError for another version.
    """
    if version == "2019":
        c1 = costs.p_target * (costs.c_miss - costs.c_miss * asv.p_miss) - costs.p_nontarget * costs.c_fa * asv.p_fa
        return TdcfWeights(0.0, c1, costs.c_fa_spoof * costs.p_spoof * (1.0 - asv.p_miss_spoof))
    if version == "2021":
        c0 = costs.p_target * costs.c_miss * asv.p_miss + costs.p_nontarget * costs.c_fa * asv.p_fa
        return TdcfWeights(c0, costs.p_target * costs.c_miss - c0, costs.p_spoof * costs.c_fa_spoof * asv.p_fa_spoof)
    raise InputError(f'There is no t-DCF version "{version}": choose "2019" (legacy) or "2021" (revised).')


def sorted_min_tdcf(trials: SortedTrials, weights: TdcfWeights) -> tuple[float, float]:
    """`min_tdcf` of trials that are sorted already; InputError where c1 or c2 is not positive."""
    if weights.c1 <= 0:
        raise InputError(
            f"The t-DCF is undefined (C1 = {weights.c1:.6g}): this ASV system errs so often that rejecting everybody "
            "is cheaper, so check its target and nontarget scores."
        )
    if weights.c2 <= 0:
        raise InputError(
            f"The t-DCF is undefined (C2 = {weights.c2:.6g}): this ASV system rejects every spoof, so a countermeasure "
            "cannot help it; check the ASV scores' spoof rows or report the EER and the minDCF alone."
        )
    return trials.lowest_cost(weights.c1, weights.c2, weights.c0)


def min_tdcf(
    bonafide: ArrayLike,
    spoof: ArrayLike,
    asv: AsvErrorRates,
    version: TdcfVersion = "2019",
    costs: SpoofingCosts = ASVSPOOF_COSTS,
) -> tuple[float, float]:
    """Minimum normalised tandem detection cost of CM scores for a fixed ASV system, and its CM threshold.

    Version and sources: `tdcf_weights`. Raises InputError for empty, non-finite or hard (fewer than 3 distinct)
    scores, and where C1 or C2 is not positive.

    >>> asv = AsvErrorRates(p_fa=0.02, p_miss=0.02, p_miss_spoof=0.5, p_fa_spoof=0.5, threshold=0.0)
    >>> value, threshold = min_tdcf([1.0, 3.0, 4.0], [0.0, 0.5, 2.0], asv, version="2021")
    >>> round(value, 6), threshold
    (0.384335, 0.5)
    """
    weights = tdcf_weights(asv, version, costs)
    return sorted_min_tdcf(SortedTrials.of(bonafide, spoof, min_trials=2), weights)


def a_dcf(
    target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike, costs: SpoofingCosts = ASVSPOOF_COSTS
) -> tuple[float, float]:
    """Minimum normalised a-DCF of a spoofing-robust speaker verification system, and its threshold.

    Cmiss Ptar Pmiss + Cfa Pnon Pfa_nontarget + Cfa_spoof Pspoof Pfa_spoof over the cheaper of accepting and rejecting
    all (Shim et al., Odyssey 2024); `target`, `nontarget`, `spoof` are the system's single score a trial. The default
    costs are those of ASVspoof 5, track 2; the paper's are `ADCF_PAPER_COSTS`. InputError as `compute_det`.

    >>> value, threshold = a_dcf([1.0, 3.0, 4.0], [0.0, -1.0], [0.5, 2.0])
    >>> round(value, 6), threshold
    (0.420168, 0.5)
    """
    named = ((target, "target"), (nontarget, "nontarget"), (spoof, "spoof"))
    classes = [np.sort(as_scores(values, kind)) for values, kind in named]
    refuse_decisions(*classes)
    # As in SortedTrials: the cost is lowest where i targets and everything before the next target are rejected.
    targets = classes[0]
    rejected = [np.arange(targets.size + 1)]
    rejected += [np.append(np.searchsorted(scores, targets), scores.size) for scores in classes[1:]]
    rate_miss, *rejected_rates = (counts / scores.size for counts, scores in zip(rejected, classes, strict=True))
    weight_miss = costs.c_miss * costs.p_target
    weights_fa = costs.c_fa * costs.p_nontarget, costs.c_fa_spoof * costs.p_spoof
    cost = weight_miss * rate_miss
    for weight, rejected_rate in zip(weights_fa, rejected_rates, strict=True):
        cost += weight * (1.0 - rejected_rate)
    cost /= min(weight_miss, sum(weights_fa))
    corner = int(np.argmin(cost))
    highest = [scores[: counts[corner]][-1:] for scores, counts in zip(classes, rejected, strict=True)]
    lowest = min(scores[0] for scores in classes) - ADCF_FIRST_THRESHOLD_MARGIN
    return float(cost[corner]), float(np.concatenate(highest).max(initial=lowest))
