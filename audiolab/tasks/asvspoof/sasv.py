"""Spoofing-robust speaker verification as in ASVspoof 5, track 2: a-DCF, t-DCF with the own ASV system, t-EER.

The official script of track 2, given own ASV scores, passes the share of spoofs that the ASV system rejects where its
t-DCF needs the share that it accepts. The t-DCF here uses the accepted share, so it differs from the printed one
(0.2722 against 0.4742 on one reference set).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiolab.errors import InputError
from audiolab.metrics.breakdown import POOLED
from audiolab.metrics.spoofing import a_dcf, evaluate
from audiolab.reporting.plots import det_plot, score_histogram
from audiolab.tasks.asvspoof.asv_scores import rates_of
from audiolab.tasks.asvspoof.layouts import Lines, numbers, read_table, refuse_duplicates
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF

_ASV_KEYS = ("target", "nontarget", SPOOF)


def read_sasv(lines: Lines, key_path: Path, published: dict[str, Any] | None) -> pd.DataFrame:
    """Return the trials (speaker, utterance) of a key with their CM, ASV and joint scores, NaN for a `-`.

    `published` facts of an ASV system replace the error rates of the file's ASV scores. Raises InputError for an
    unknown key, and for trials that are missing, extra or listed twice.
    """
    key = read_table(key_path, "SASV keys", ("speaker", "id", "label", "asv_label"))
    trials, scored = _pairs(key), _pairs(lines)
    row_of = {pair: row for row, pair in enumerate(scored)}
    if set(trials) != set(scored):
        pair, one, other = min(set(trials) ^ set(scored)), lines.path, key_path
        one, other = (other, one) if pair in set(trials) else (one, other)
        raise InputError(f"SASV trial {pair} is in {one} and not in {other}: both must have the same trials")
    asv_labels = key.column("asv_label")
    for row, (label, asv_label) in enumerate(zip(key.column("label"), asv_labels, strict=True)):
        if asv_label not in _ASV_KEYS:
            raise InputError(f"{key.where(row, 'asv_label')}: {asv_label!r} is none of target, nontarget, spoof")
        if label not in (BONAFIDE, SPOOF) or (label == SPOOF) != (asv_label == SPOOF):
            raise InputError(f"{key.where(row, 'label')}: label {label!r} does not go with {asv_label}")
    rows = [row_of[pair] for pair in trials]
    columns = {"id": trials, "speaker": key.column("speaker"), "label": key.column("label"), "asv_label": asv_labels}
    for column in ("score", "asv_score", "sasv_score"):
        if column not in lines.layout:
            raise InputError(
                f"{lines.path} has no column {column}: its header should be spk filename cm-score asv-score sasv-score"
            )
        values = numbers(lines, column, absent="-" if column != "sasv_score" else None)
        columns[column] = [values[row] for row in rows]
    table = pd.DataFrame(columns).sort_values("id", ignore_index=True)
    table.attrs = {"sources": {str(lines.path): lines.described(), str(key_path): key.described()}}
    table.attrs |= published or {}
    return table


def sasv_metrics(table: pd.DataFrame) -> dict[str, float]:
    """a-DCF of the joint scores and, where every trial has both scores, t-EER, both t-DCFs and the CM's own metrics."""
    joint = _classes(table, "sasv_score")
    counts = dict(zip(("num_target", "num_nontarget", "num_spoof"), map(len, joint), strict=True))
    values = {"a_dcf": a_dcf(*joint)[0], **counts}
    if has_cm_scores(table):
        published = rates_of(table.attrs).get((POOLED, POOLED))
        metrics = evaluate(*_cm_classes(table), published, asv_scores=_classes(table, "asv_score"))
        values |= {"eer": 100 * metrics.eer, "t_eer": 100 * (metrics.t_eer or 0.0)}
        names = ("eer_threshold", "min_tdcf_2019", "min_tdcf_2021", "min_dcf", "act_dcf", "cllr")
        values |= {name: getattr(metrics, name) for name in names}
    return {name: float(value) for name, value in values.items()}


def has_cm_scores(table: pd.DataFrame) -> bool:
    """Whether every trial has a countermeasure and an ASV score, which the tandem metrics need."""
    return not table[["score", "asv_score"]].isna().to_numpy().any()


def sasv_figures(table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
    """Draw DET curve and histogram of the countermeasure, where there are its scores."""
    if not has_cm_scores(table):
        return {}
    bonafide, spoof = _cm_classes(table)
    title = table.attrs.get("set", "scores")
    return {
        "det": det_plot({title: (bonafide, spoof)}, title=f"DET, {title}"),
        "histogram": score_histogram(bonafide, spoof, metrics["eer_threshold"], title=f"Scores, {title}"),
    }


def _pairs(lines: Lines) -> list[str]:
    if "speaker" not in lines.layout:
        raise InputError(f"{lines.path} has no column spk: a SASV trial is a speaker and an utterance")
    pairs = [f"{speaker}/{name}" for speaker, name in zip(lines.column("speaker"), lines.column("id"), strict=True)]
    refuse_duplicates(lines, pairs)
    return pairs


def _classes(table: pd.DataFrame, column: str) -> tuple[np.ndarray, ...]:
    return tuple(table.loc[table["asv_label"] == key, column].to_numpy(np.float64) for key in _ASV_KEYS)


def _cm_classes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    score, genuine = table["score"].to_numpy(np.float64), (table["label"] == BONAFIDE).to_numpy()
    return score[genuine], score[~genuine]
