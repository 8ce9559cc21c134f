"""What a table of scored trials means: metrics, pictures and score files in the official formats.

A table has one row a trial with the columns id, speaker, attack (`-` for bona fide), label and score, and where the set
tells them codec, vocoder, source and corpus. `table.attrs` holds the set's name, the ASV error rates by attack (`asv`)
and by codec and attack (`asv_by_codec`) where there are ASV scores, the order of the `codecs`, and in `codec_word` what
they are called.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiolab.metrics.breakdown import POOLED
from audiolab.metrics.spoofing import evaluate
from audiolab.reporting.plots import attack_bars, det_plot, heat_map, score_histogram
from audiolab.reporting.tables import breakdowns
from audiolab.tasks.asvspoof.asv_scores import rates_of
from audiolab.tasks.asvspoof.breakdowns import breakdowns_of, columns_of, interval_of, varies
from audiolab.tasks.asvspoof.calibration import calibrated_metrics, llr_of

log = logging.getLogger(__name__)


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Compute EER in % with a bootstrap interval over speakers, DCFs, Cllr, both t-DCFs, and the breakdowns."""
    genuine, score = columns_of(table)
    pooled = evaluate(score[genuine], score[~genuine], rates_of(table.attrs).get((POOLED, POOLED)))
    for warning in pooled.warnings():
        log.warning("%s: %s", table.attrs.get("set", "scores"), warning)
    low, high = interval_of(table)
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
        **calibrated_metrics(table),
        "num_bonafide": pooled.num_bonafide,
        "num_spoof": pooled.num_spoof,
        "num_skipped": table.attrs.get("skipped", 0),
    }
    if not table.attrs.get("headline_only"):
        values |= breakdowns_of(table, pooled.eer_threshold)
    return {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}


def figures_of(table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
    """Draw the DET curve, the score histogram, the error by attack, and tables over two factors as heat maps."""
    genuine, score = columns_of(table)
    set_name = table.attrs.get("set", "scores")
    systems = {set_name: (score[genuine], score[~genuine])}
    parts = "corpus" if varies(table, "corpus") else "codec" if table.attrs.get("codec_word") == "condition" else None
    if parts and table[parts].nunique() > 1:
        for name in dict.fromkeys(table[parts]):
            here = (table[parts] == name).to_numpy()
            systems[name] = (score[genuine & here], score[~genuine & here])
    figures = {
        "det": det_plot(systems, title=f"DET, {set_name}"),
        "histogram": score_histogram(
            score[genuine], score[~genuine], metrics["eer_threshold"], title=f"Scores, {set_name}"
        ),
    }
    tables = breakdowns(metrics)
    if "attack" in tables:
        attacks = tables["attack"]
        ends = attacks[["eer_low", "eer_high"]].to_numpy() / 100 if "eer_low" in attacks else np.array([math.nan])
        figures["attacks"] = attack_bars(
            list(attacks.index),
            attacks["eer"].to_numpy() / 100,
            None if np.isnan(ends).any() else ends,
            overall=metrics["eer"] / 100,
            title=f"EER by attack, {set_name}",
        )
    for group, cells in tables.items():
        metric, crossed, factors = group.partition("_by_")
        if crossed:
            quantity = {"eer": "EER (%)"}.get(metric, f"min t-DCF {metric[-4:]}")
            title = f"{quantity} by {factors.replace('_', ' ')}, {set_name}"
            decimals = 1 if metric == "eer" else 3
            figures[group] = heat_map(
                cells.to_numpy(), list(cells.index), list(cells.columns), quantity, title, decimals
            )
    return figures


def comparison_of(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the DET curves of several systems in one picture."""
    systems = {}
    for name, table in tables.items():
        genuine, score = columns_of(table)
        systems[name] = score[genuine], score[~genuine]
    return det_plot(systems, title="DET")


def score_files_of(table: pd.DataFrame) -> dict[str, str]:
    """Return the official two-column (`utterance score`) and four-column (`utterance attack key score`) files.

    With a calibration there are the log-likelihood ratios too, in two columns; the other files keep the raw scores.
    None where an id holds a space, which these formats cannot tell from a column's end: the CSV file has them.
    """
    if table["id"].str.contains(r"\s").any():
        return {}
    two = "".join(f"{row.id} {row.score!r}\n" for row in table.itertuples())
    four = "".join(f"{row.id} {row.attack} {row.label} {row.score!r}\n" for row in table.itertuples())
    files = {"2col.txt": two, "4col.txt": four}
    fitted = table.attrs.get("calibration")
    if fitted is not None:
        pairs = zip(table["id"], llr_of(table, fitted).tolist(), strict=True)
        files["llr.txt"] = "".join(f"{name} {value!r}\n" for name, value in pairs)
    return files
