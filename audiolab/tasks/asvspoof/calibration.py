"""Scores as log-likelihood ratios, by what was fitted on development scores: one system, or several fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from audiolab.metrics.calibration import fit_calibration
from audiolab.metrics.spoofing import act_dcf, cllr
from audiolab.tasks.asvspoof.breakdowns import columns_of

_P_BONAFIDE = 0.5  # the prior that a calibration serves best: equal ones minimise Cllr


def calibration_of(table: pd.DataFrame) -> dict[str, Any]:
    """Fit `llr = scale * score + offset` (natural log) on development scores, for equal priors."""
    genuine, score = columns_of(table)
    fitted = fit_calibration(score, genuine, _P_BONAFIDE)
    return {"scale": fitted.weights[0], "offset": fitted.offset, "p_bonafide": _P_BONAFIDE}


def calibrated_metrics(table: pd.DataFrame) -> dict[str, float]:
    """What the scores cost as the log-likelihood ratios that the development set makes of them, where there is one."""
    fitted = table.attrs.get("calibration")
    if fitted is None:
        return {}
    llr, (genuine, _) = llr_of(table, fitted), columns_of(table)
    return {
        "act_dcf_calibrated": act_dcf(llr[genuine], llr[~genuine]),
        "cllr_calibrated": cllr(llr[genuine], llr[~genuine]),
    }


def llr_of(table: pd.DataFrame, fitted: Mapping[str, float]) -> np.ndarray:
    """Return natural-log likelihood ratios (trials,)."""
    return fitted["scale"] * columns_of(table)[1] + fitted["offset"]


def fusion_of(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Fit `llr = sum of weight * score + offset` (natural log) on the systems' development scores, for equal priors."""
    genuine, _ = columns_of(next(iter(tables.values())))
    fitted = fit_calibration(_side_by_side(tables), genuine, _P_BONAFIDE)
    weights = dict(zip(tables, fitted.weights, strict=True))
    return {"weights": weights, "offset": fitted.offset, "p_bonafide": _P_BONAFIDE}


def fusion_in_words(fusion: Mapping[str, Any]) -> list[str]:
    """Return one line with the weights, and a warning for each negative one."""
    weights = fusion["weights"]
    terms = " + ".join(f"{weight:.3f} x {name}" for name, weight in weights.items())
    lines = [f"fusion, fitted on dev: {terms} + {fusion['offset']:.3f}"]
    return lines + [
        f"the weight of {name} is negative: beside the others it adds little, and the fusion may be worse without dev"
        for name, weight in weights.items()
        if weight < 0
    ]


def fused_of(tables: Mapping[str, pd.DataFrame], fusion: Mapping[str, Any]) -> pd.DataFrame:
    """Return the first system's table with the fused score, a log-likelihood ratio already."""
    first = next(iter(tables.values()))
    weights = np.array([fusion["weights"][name] for name in tables])
    table = first.assign(score=_side_by_side(tables) @ weights + fusion["offset"])
    table.attrs = {**first.attrs, "calibration": {"scale": 1.0, "offset": 0.0}}
    return table


def _side_by_side(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    return np.column_stack([columns_of(table)[1] for table in tables.values()])
