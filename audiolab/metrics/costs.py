"""Priors and costs of the ASVspoof detection cost functions, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from audiolab.errors import InputError


@dataclass(frozen=True)
class SpoofingCosts:
    """Priors of the three kinds of trial and the costs of the errors on them.

    The defaults are those of the ASVspoof 2019, 2021 and 5 evaluation plans; every cost function of
    `audiolab.metrics.spoofing` takes its numbers from here:

    - t-DCF of 2019 (Kinnunen et al., Odyssey 2018): Cmiss_asv = Cmiss_cm = `c_miss`, Cfa_asv = `c_fa`,
      Cfa_cm = `c_fa_spoof`;
    - t-DCF of 2021 (Kinnunen et al., IEEE/ACM TASLP 28, 2020): Cmiss, Cfa, Cfa_spoof;
    - minDCF and actDCF of ASVspoof 5 (Wang et al., 2024): bona fide prior 1 - `p_spoof`, `c_miss`, `c_fa_spoof`;
    - a-DCF of ASVspoof 5, track 2: all six.

    Raises InputError for priors that are not positive or do not sum to one, or costs that are not positive.
    """

    p_target: float = 0.9405
    p_nontarget: float = 0.0095
    p_spoof: float = 0.05
    c_miss: float = 1.0
    c_fa: float = 10.0
    c_fa_spoof: float = 10.0

    def __post_init__(self) -> None:
        priors = (self.p_target, self.p_nontarget, self.p_spoof)
        if min(priors) <= 0 or not math.isclose(sum(priors), 1.0, abs_tol=1e-10):
            raise InputError(
                f"The priors (target, nontarget, spoof) are {priors}: they must be positive and sum to one."
            )
        costs = (self.c_miss, self.c_fa, self.c_fa_spoof)
        if not 0 < min(costs) <= max(costs) < math.inf:
            raise InputError(f"The costs (miss, false accept, spoof accept) are {costs}: they must be positive.")

    @property
    def dcf_weights(self) -> tuple[float, float]:
        """Weights of the miss and the false-alarm rate in the countermeasure's own DCF.

        >>> miss, false_alarm = ASVSPOOF_COSTS.dcf_weights
        >>> round(miss, 12), round(false_alarm, 12)
        (0.95, 0.5)
        """
        return self.c_miss * (1.0 - self.p_spoof), self.c_fa_spoof * self.p_spoof

    @property
    def bayes_threshold(self) -> float:
        """Log-likelihood ratio above which accepting costs less than rejecting: -ln(1.9) for ASVspoof 5."""
        miss, false_alarm = self.dcf_weights
        return -math.log(miss / false_alarm)


ASVSPOOF_COSTS = SpoofingCosts()
"""The evaluation plans of ASVspoof 2019, 2021 and 5."""

ADCF_PAPER_COSTS = SpoofingCosts(p_target=0.9, p_nontarget=0.05, p_spoof=0.05, c_miss=1, c_fa=10, c_fa_spoof=20)
"""The defaults of Shim et al., "a-DCF: an architecture agnostic metric ...", Odyssey 2024 (not those of track 2)."""
