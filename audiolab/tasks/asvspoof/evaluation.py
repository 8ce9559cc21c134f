"""What a table of scored trials means: metrics, pictures and score files in the official formats.

A table has one row a trial with the columns id, speaker, attack (`-` for bona fide), label and score; `table.attrs`
holds the set's name and, where there are ASV scores, the ASV error rates by attack.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiolab.metrics.bootstrap import eer_interval
from audiolab.metrics.spoofing import AsvErrorRates, attack_table, evaluate
from audiolab.reporting.plots import attack_bars, det_plot, score_histogram
from audiolab.tasks.asvspoof.protocols import BONAFIDE

log = logging.getLogger(__name__)

_BOOTSTRAP_SEED = 20190415
_NUM_RESAMPLES = 500


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Compute EER in % with a bootstrap interval over speakers, DCFs, Cllr, both t-DCFs, and rows by attack."""
    genuine, score = _columns(table)
    asv = {attack: AsvErrorRates(**rates) for attack, rates in table.attrs.get("asv", {}).items()}
    pooled = evaluate(score[genuine], score[~genuine], asv.get("Pooled"))
    for warning in pooled.warnings():
        log.warning("%s: %s", table.attrs.get("set", "scores"), warning)
    low, high = _interval(table, np.ones(len(table), dtype=bool))
    values = {
        "eer": 100 * pooled.eer,
        "eer_low": low,
        "eer_high": high,
        "eer_threshold": pooled.eer_threshold,
        "eer_ties_spoof_first": 100 * pooled.eer_ties_spoof_first,
        "min_dcf": pooled.min_dcf,
        "act_dcf": pooled.act_dcf,
        "cllr": pooled.cllr,
        "min_tdcf_2019": pooled.min_tdcf_2019,
        "min_tdcf_2021": pooled.min_tdcf_2021,
        "num_bonafide": pooled.num_bonafide,
        "num_spoof": pooled.num_spoof,
        "num_skipped": table.attrs.get("skipped", 0),
    }
    cells = {(attack, "Pooled"): rates for attack, rates in asv.items()}
    by_version = {
        version: attack_table(score, genuine, table["attack"], asv=cells or None, version=version)
        for version in ("2019", "2021")
    }
    breakdown = by_version["2019"]
    for index, attack in enumerate(breakdown.attacks[:-1]):
        low, high = _interval(table, genuine | (table["attack"] == attack).to_numpy())
        values |= {
            f"attack/{attack}/trials": int(breakdown.num_spoof[index, -1]),
            f"attack/{attack}/eer": 100 * breakdown.eer[index, -1],
            f"attack/{attack}/eer_low": low,
            f"attack/{attack}/eer_high": high,
            f"attack/{attack}/min_dcf": breakdown.min_dcf[index, -1],
        }
        if asv:
            for version, tables in by_version.items():
                values[f"attack/{attack}/min_tdcf_{version}"] = tables.min_tdcf[index, -1]
    return {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}


def figures_of(table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
    """Draw the DET curve, the score histogram and the error by attack."""
    genuine, score = _columns(table)
    set_name = table.attrs.get("set", "scores")
    attacks = sorted(set(table.loc[~genuine, "attack"]))
    ends = [[metrics.get(f"attack/{a}/eer_{end}", math.nan) / 100 for end in ("low", "high")] for a in attacks]
    return {
        "det": det_plot({set_name: (score[genuine], score[~genuine])}, title=f"DET, {set_name}"),
        "histogram": score_histogram(
            score[genuine], score[~genuine], metrics["eer_threshold"], title=f"Scores, {set_name}"
        ),
        "attacks": attack_bars(
            attacks,
            [metrics[f"attack/{a}/eer"] / 100 for a in attacks],
            None if np.isnan(ends).any() else ends,
            overall=metrics["eer"] / 100,
            title=f"EER by attack, {set_name}",
        ),
    }


def score_files_of(table: pd.DataFrame) -> dict[str, str]:
    """Return the official two-column (`utterance score`) and four-column (`utterance attack key score`) files."""
    two = "".join(f"{row.id} {row.score!r}\n" for row in table.itertuples())
    four = "".join(f"{row.id} {row.attack} {row.label} {row.score!r}\n" for row in table.itertuples())
    return {"2col.txt": two, "4col.txt": four}


def _columns(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (table["label"] == BONAFIDE).to_numpy(), table["score"].to_numpy(np.float64)


def _interval(table: pd.DataFrame, where: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the EER in %, NaN where there is one speaker only."""
    part = table[where]
    if part["speaker"].nunique() < 2:
        return math.nan, math.nan
    genuine, score = _columns(part)
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    low, high = eer_interval(score, genuine, part["speaker"], generator, _NUM_RESAMPLES)
    return 100 * low, 100 * high
