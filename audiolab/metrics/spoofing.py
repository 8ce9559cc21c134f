"""Metrics of speech anti-spoofing: the public face, and `evaluate`, which gives all of them from one sorted pass.

Scores: higher is more bona fide, one a trial, float64 inside. Rates are fractions, never percent. The conventions
(order inside ties, no interpolation, costs) are those of the official ASVspoof packages, whose numbers these equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from audiolab.metrics.breakdown import Breakdown, asv_table, attack_table
from audiolab.metrics.costs import ADCF_PAPER_COSTS, ASVSPOOF_COSTS, SpoofingCosts
from audiolab.metrics.dcf import act_dcf, bits, cllr, log_loss, min_dcf, sorted_act_dcf
from audiolab.metrics.det import compute_det
from audiolab.metrics.eer import SortedTrials, compute_eer
from audiolab.metrics.tandem import (
    PUBLISHED_ASV_RATES,
    TDCF_VERSIONS,
    AsvErrorRates,
    a_dcf,
    asv_error_rates,
    min_tdcf,
    sorted_min_tdcf,
    tdcf_weights,
)
from audiolab.metrics.teer import t_eer

__all__ = [
    "ADCF_PAPER_COSTS",
    "ASVSPOOF_COSTS",
    "PUBLISHED_ASV_RATES",
    "AsvErrorRates",
    "Breakdown",
    "SpoofingCosts",
    "SpoofingMetrics",
    "a_dcf",
    "act_dcf",
    "asv_error_rates",
    "asv_table",
    "attack_table",
    "cllr",
    "compute_det",
    "compute_eer",
    "evaluate",
    "min_dcf",
    "min_tdcf",
    "t_eer",
]


@dataclass(frozen=True)
class SpoofingMetrics:
    """All metrics of one score set; None where the scores a metric needs were not given.

    `eer_ties_spoof_first` is the EER with the other order inside ties: with `eer` it brackets what ties can do.
    `eer_negated` is the EER of the scores with their sign turned, given only when `eer` is above one half.
    """

    num_bonafide: int
    num_spoof: int
    eer: float
    eer_threshold: float
    eer_ties_spoof_first: float
    eer_negated: float | None
    min_dcf: float
    min_dcf_threshold: float
    act_dcf: float
    cllr: float
    min_tdcf_2019: float | None
    min_tdcf_2019_threshold: float | None
    min_tdcf_2021: float | None
    min_tdcf_2021_threshold: float | None
    a_dcf: float | None
    t_eer: float | None

    def warnings(self) -> list[str]:
        """Sentences a reader of these numbers must see: turned polarity, and ties that decide the EER.

        >>> evaluate([0.0, 1.0, 2.0], [3.0, 4.0, 5.0]).warnings()
        ['EER 100.00 % is above 50 %; with the sign of the scores turned it is 0.00 %: check which class scores high.']
        """
        sentences = []
        if self.eer_negated is not None and self.eer_negated < self.eer:
            sentences.append(
                f"EER {100 * self.eer:.2f} % is above 50 %; with the sign of the scores turned it is "
                f"{100 * self.eer_negated:.2f} %: check which class scores high."
            )
        if self.eer_ties_spoof_first != self.eer:
            sentences.append(
                f"Tied scores decide the EER: {100 * self.eer:.2f} % with bona fide first inside ties, "
                f"{100 * self.eer_ties_spoof_first:.2f} % with spoof first; save finer scores (float32 logits)."
            )
        return sentences


def evaluate(
    bonafide: ArrayLike,
    spoof: ArrayLike,
    asv: AsvErrorRates | None = None,
    *,
    asv_scores: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    sasv_scores: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    costs: SpoofingCosts = ASVSPOOF_COSTS,
) -> SpoofingMetrics:
    """All metrics of a set of CM scores, sorted once.

    `asv` gives both t-DCFs. `asv_scores` (target, nontarget, spoof) give the t-EER and, without `asv`, the t-DCFs
    at their own EER threshold. `sasv_scores` (target, nontarget, spoof) of a joint system give the a-DCF.

    Raises InputError for empty, non-finite or hard (fewer than 3 distinct) scores and for an undefined t-DCF.

    >>> metrics = evaluate([1.0, 3.0, 4.0], [0.0, 0.5, 2.0], PUBLISHED_ASV_RATES["asvspoof5"])
    >>> round(metrics.eer, 4), round(metrics.min_dcf, 4), round(metrics.min_tdcf_2021, 4), metrics.warnings()
    (0.3333, 0.3333, 0.3853, [])
    """
    trials = SortedTrials.of(bonafide, spoof, min_trials=2)
    eer, eer_threshold = trials.eer()
    lowest_dcf, min_dcf_threshold = trials.lowest_cost(*costs.dcf_weights)
    if asv is None and asv_scores is not None:
        asv = asv_error_rates(*asv_scores)
    tdcf: dict[str, tuple[float | None, float | None]] = dict.fromkeys(TDCF_VERSIONS, (None, None))
    if asv is not None:
        tdcf = {version: sorted_min_tdcf(trials, tdcf_weights(asv, version, costs)) for version in TDCF_VERSIONS}
    return SpoofingMetrics(
        num_bonafide=trials.bonafide.size,
        num_spoof=trials.spoof.size,
        eer=eer,
        eer_threshold=eer_threshold,
        eer_ties_spoof_first=trials.eer(spoof_first=True)[0],
        eer_negated=trials.negated().eer()[0] if eer > 0.5 else None,
        min_dcf=lowest_dcf,
        min_dcf_threshold=min_dcf_threshold,
        act_dcf=sorted_act_dcf(trials, costs),
        cllr=bits(log_loss(-trials.bonafide).mean(), log_loss(trials.spoof).mean()),
        min_tdcf_2019=tdcf["2019"][0],
        min_tdcf_2019_threshold=tdcf["2019"][1],
        min_tdcf_2021=tdcf["2021"][0],
        min_tdcf_2021_threshold=tdcf["2021"][1],
        a_dcf=None if sasv_scores is None else a_dcf(*sasv_scores, costs=costs)[0],
        t_eer=None if asv_scores is None else t_eer(bonafide, spoof, *asv_scores)[0],
    )
