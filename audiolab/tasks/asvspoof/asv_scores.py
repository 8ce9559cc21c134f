"""Scores of speaker verification systems in their published formats, and the error rates that a t-DCF needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from audiolab.errors import InputError
from audiolab.metrics.breakdown import POOLED
from audiolab.metrics.spoofing import PUBLISHED_ASV_RATES, AsvErrorRates, asv_table
from audiolab.metrics.tandem import tdcf_weights
from audiolab.tasks.asvspoof.protocols import SPOOF, Trial
from audiolab.training.text_files import fail, finite_number, read_lines


def read_2019_asv_scores(path: Path) -> pd.DataFrame:
    """Read ASVspoof 2019 ASV scores `source key score` into the columns attack, key, score.

    The first column names the attack of spoof rows only; of the others, columns 2 and 3 are relied on.
    """
    rows = []
    for number, (source, key, score) in read_lines(path, "source key score"):
        _check_key(path, number, 1, key)
        rows.append((source if key == SPOOF else "-", key, finite_number(path, number, 2, score)))
    return pd.DataFrame(rows, columns=["attack", "key", "score"])


def read_2021_asv_scores(metadata: Path, scores: Path) -> pd.DataFrame:
    """Read 2021 LA ASV metadata and the scores of its trials into the columns attack, key, codec, subset, score.

    Both files name (claimed speaker, trial) in any order. Raises InputError for a trial that one of them lacks.
    """
    columns = "speaker trial codec transmission attack key trim subset"
    rows = []
    for number, (speaker, trial, codec, _, attack, key, _, subset) in read_lines(metadata, columns):
        _check_key(metadata, number, 5, key)
        rows.append((speaker, trial, attack if key == SPOOF else "-", key, codec, subset))
    table = pd.DataFrame(rows, columns=["speaker", "trial", "attack", "key", "codec", "subset"])
    found = pd.DataFrame(
        [
            (speaker, trial, finite_number(scores, number, 2, score))
            for number, (speaker, trial, score) in read_lines(scores, "speaker trial score")
        ],
        columns=["speaker", "trial", "score"],
    )
    names = ["speaker", "trial"]
    if len(found) == len(table) and (found[names].to_numpy() == table[names].to_numpy()).all():
        return table.assign(score=found["score"].to_numpy()).drop(columns=names)  # line by line, as they are published
    for path, rows_of, others in ((metadata, table, scores), (scores, found, metadata)):
        twice = rows_of[rows_of.duplicated(names)]
        if len(twice):
            speaker, trial = twice.iloc[0][names]
            raise InputError(f"{path} lists trial {trial} of speaker {speaker} twice: remove one of the lines")
        other = table if rows_of is found else found
        missing = rows_of[~pd.MultiIndex.from_frame(rows_of[names]).isin(pd.MultiIndex.from_frame(other[names]))]
        if len(missing):
            speaker, trial = missing.iloc[0][names]
            raise InputError(
                f"{others} lacks {len(missing)} of {len(rows_of)} trials of {path}, the first is {speaker} {trial}: "
                "take metadata and scores of the same ASV system"
            )
    return table.merge(found, on=names, validate="one_to_one").drop(columns=names)


def facts_of(
    scores: pd.DataFrame,
    trials: Sequence[Trial],
    source: Path,
    set_name: str,
    way_out: str = "set data.asv_scores=none",
) -> dict[str, Any]:
    """Return the ASV error rates of a set as `table.attrs` keep them.

    `asv` holds them by attack, "Pooled" included; `asv_by_codec` by codec and attack where the scores tell codecs.
    Raises InputError where scores and trials are not of the same attacks, and where the rates leave the t-DCF
    undefined.
    """
    attacks = {trial.attack for trial in trials if trial.label == SPOOF}
    known = set(scores.loc[scores["key"] == SPOOF, "attack"])
    if attacks != known:
        raise InputError(
            f"{source} does not belong to the {set_name} protocol: attack {min(attacks ^ known)} is in one of them "
            f"only; take the ASV scores of this set, or {way_out}"
        )
    rates = asv_table(scores["score"], scores["key"], scores["attack"], scores.get("codec"))
    by_codec: dict[str, dict[str, Any]] = {}
    for (attack, codec), cell in rates.items():
        by_codec.setdefault(codec, {})[attack] = asdict(cell)
    facts: dict[str, Any] = {"asv": by_codec.pop(POOLED, {})}
    if by_codec:
        facts["asv_by_codec"] = by_codec
    pooled = rates.get((POOLED, POOLED))
    weights = tdcf_weights(pooled, "2019") if pooled else None
    if weights is None or min(weights.c1, weights.c2) <= 0:
        raise InputError(
            f"{source} leaves the t-DCF undefined: this ASV system "
            + ("has no trials of all three kinds" if weights is None else "errs too often or rejects every spoof")
            + f"; check its scores, or {way_out}"
        )
    return facts


def published_facts(name: str) -> dict[str, Any]:
    """Return the published ASV error rates of a corpus as `table.attrs` keep them, marked as not this set's own."""
    return {"asv": {POOLED: asdict(PUBLISHED_ASV_RATES[name])}, "asv_source": f"published rates of {name}"}


def rates_of(facts: dict[str, Any]) -> dict[tuple[str, str], AsvErrorRates]:
    """Return the ASV error rates in `table.attrs` by (attack, codec), as `attack_table` takes them."""
    by_codec = {**facts.get("asv_by_codec", {}), POOLED: facts.get("asv", {})}
    cells = ((attack, codec, cell) for codec, cells in by_codec.items() for attack, cell in cells.items())
    return {(attack, codec): AsvErrorRates(**cell) for attack, codec, cell in cells}


def _check_key(path: Path, number: int, column: int, key: str) -> None:
    if key not in ("target", "nontarget", SPOOF):
        fail(path, number, column, f"{key!r} is none of target, nontarget, spoof")
