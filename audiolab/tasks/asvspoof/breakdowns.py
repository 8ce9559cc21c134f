"""A score table broken down by attack, codec, vocoder, source and corpus: cells `group/member/metric`.

EERs and their intervals are in %, costs as they are. An attack's or vocoder's row is its spoofs against all bona fide
trials; a codec's, source's or corpus' row is its own trials only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from audiolab.metrics.bootstrap import eer_interval
from audiolab.metrics.breakdown import POOLED, Breakdown, attack_table
from audiolab.metrics.eer import SortedTrials
from audiolab.metrics.tandem import TDCF_VERSIONS
from audiolab.tasks.asvspoof.asv_scores import rates_of
from audiolab.tasks.asvspoof.protocols import BONAFIDE, UNKNOWN

Cells = Iterator[tuple[str, float]]

_BOOTSTRAP_SEED = 20190415
_NUM_RESAMPLES = 500


def breakdowns_of(table: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Return the cells of all breakdowns that a table has columns for.

    Several corpora are told apart by corpus only, each with its own EER and its error rates at the common `threshold`;
    what is inside a corpus is for that corpus' own table.
    """
    if varies(table, "corpus"):
        return dict(_by_corpus(table, threshold))
    genuine, score = columns_of(table)
    codecs = _codecs(table)
    codec, word = table["codec"] if codecs else None, table.attrs.get("codec_word", "codec")
    rates = {cell: asv for cell, asv in rates_of(table.attrs).items() if cell[1] == POOLED or cell[1] in codecs}
    attacks = {
        version: attack_table(score, genuine, table["attack"], codec, rates or None, version, codecs or None)
        for version in TDCF_VERSIONS
    }
    first = attacks[TDCF_VERSIONS[0]]
    cells: dict[str, float] = {}
    if first.attacks[:-1] != (UNKNOWN,):
        cells |= _by_attack(table, attacks)
    if codecs:
        cells |= _by_column(table, "codec", word, codecs)
    if varies(table, "vocoder"):
        vocoders = attack_table(score, genuine, table["vocoder"], codec, conditions=codecs or None)
        for index, vocoder in enumerate(vocoders.attacks[:-1]):
            cells[f"vocoder/{vocoder}/trials"] = int(vocoders.num_spoof[index, -1])
            cells[f"vocoder/{vocoder}/eer"] = 100 * vocoders.eer[index, -1]
        cells |= _crossed("eer", f"vocoder_and_{word}", vocoders, 100 * vocoders.eer)
    elif codecs and first.attacks[:-1] != (UNKNOWN,):
        cells |= _crossed("eer", f"attack_and_{word}", first, 100 * first.eer)
        if "asv_by_codec" in table.attrs:  # 2021 LA, whose official table is of the 2021 form
            cells |= _crossed("min_tdcf_2021", f"attack_and_{word}", attacks["2021"], attacks["2021"].min_tdcf)
    if varies(table, "source"):
        cells |= _by_column(table, "source", "source", sorted(set(table["source"])))
    return cells


def columns_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each trial is bona fide, and its score in float64."""
    return (table["label"] == BONAFIDE).to_numpy(), table["score"].to_numpy(np.float64)


def varies(table: pd.DataFrame, column: str) -> bool:
    """Whether a table has a column with more than one value."""
    return column in table and table[column].nunique() > 1


def interval_of(table: pd.DataFrame) -> tuple[float, float]:
    """Return the 95 % interval of the EER in %, by speaker; NaN with one speaker or one class only."""
    genuine, score = columns_of(table)
    if table["speaker"].nunique() < 2 or genuine.all() or not genuine.any():
        return math.nan, math.nan
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    low, high = eer_interval(score, genuine, table["speaker"], generator, _NUM_RESAMPLES)
    return 100 * low, 100 * high


def _codecs(table: pd.DataFrame) -> list[str]:
    """Return the codecs of a table, in the order of its corpus; none where there is only one."""
    if not varies(table, "codec"):
        return []
    there = set(table["codec"])
    ordered = [codec for codec in table.attrs.get("codecs", []) if codec in there]
    return ordered + sorted(there - set(ordered))


def _by_attack(table: pd.DataFrame, by_version: dict[str, Breakdown]) -> Cells:
    genuine, _ = columns_of(table)
    breakdown = by_version[TDCF_VERSIONS[0]]
    for index, attack in enumerate(breakdown.attacks[:-1]):
        row = f"attack/{attack}"
        low, high = interval_of(table[genuine | (table["attack"] == attack).to_numpy()])
        yield f"{row}/trials", int(breakdown.num_spoof[index, -1])
        yield f"{row}/eer", 100 * breakdown.eer[index, -1]
        yield f"{row}/eer_low", low
        yield f"{row}/eer_high", high
        yield f"{row}/min_dcf", breakdown.min_dcf[index, -1]
        for version, tables in by_version.items():
            yield f"{row}/min_tdcf_{version}", tables.min_tdcf[index, -1]


def _by_column(table: pd.DataFrame, column: str, word: str, members: list[str]) -> Cells:
    for member in members:
        yield from _own_trials(f"{word}/{member}", table[(table[column] == member).to_numpy()])


def _own_trials(row: str, part: pd.DataFrame) -> Cells:
    """Number of trials of each class and, where there are both, EER with interval."""
    genuine, score = columns_of(part)
    yield f"{row}/bonafide", int(genuine.sum())
    yield f"{row}/spoof", int((~genuine).sum())
    if genuine.any() and not genuine.all():
        low, high = interval_of(part)
        yield f"{row}/eer", 100 * SortedTrials.of(score[genuine], score[~genuine]).eer()[0]
        yield f"{row}/eer_low", low
        yield f"{row}/eer_high", high


def _by_corpus(table: pd.DataFrame, threshold: float) -> Cells:
    for name in dict.fromkeys(table["corpus"]):
        part = table[(table["corpus"] == name).to_numpy()]
        genuine, score = columns_of(part)
        yield from _own_trials(f"corpus/{name}", part)
        yield f"corpus/{name}/pooled_miss_percent", 100 * np.mean(score[genuine] <= threshold)
        yield f"corpus/{name}/pooled_false_alarm_percent", 100 * np.mean(score[~genuine] > threshold)


def _crossed(metric: str, factors: str, breakdown: Breakdown, values: np.ndarray) -> Cells:
    """The cells of one metric over rows and columns, "Pooled" included; NaN where a class has no trials."""
    for i, row in enumerate(breakdown.attacks):
        for j, column in enumerate(breakdown.conditions):
            yield f"{metric}_by_{factors}/{row}/{column}", float(values[i, j])
