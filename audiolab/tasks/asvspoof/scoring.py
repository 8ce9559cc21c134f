"""Bare score files of any system, joined with their trial list into the tables that `evaluation` judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from audiolab.errors import InputError
from audiolab.metrics.spoofing import PUBLISHED_ASV_RATES
from audiolab.tasks.asvspoof.asv_scores import facts_of, published_facts, read_2019_asv_scores, read_2021_asv_scores
from audiolab.tasks.asvspoof.layouts import (
    FOUR_COLUMNS,
    TWO_COLUMNS,
    Lines,
    first_line,
    numbers,
    read_table,
    refuse_duplicates,
)
from audiolab.tasks.asvspoof.protocols import SPOOF
from audiolab.tasks.asvspoof.sasv import read_sasv
from audiolab.tasks.asvspoof.trial_lists import (
    LABELS,
    TrialList,
    holds_scores,
    labelled_trials,
    one_subset,
    read_trials,
)
from audiolab.tasks.asvspoof.trials import FACTS

PUBLISHED = "published:"
_ASV_KEYS = ("target", "nontarget", SPOOF)


def read_systems(
    scores: Mapping[str, Path],
    protocol: Path | None = None,
    asv: str | None = None,
    asv_key: Path | None = None,
    subset: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Return the score table of each system, `name -> file`; `attrs["sources"]` says what every file was read as.

    `asv` is a file of ASV scores, for those of 2021 with the metadata `asv_key`, or `published:<name>`. `subset` is the
    part of a 2021 list (default eval, `all` for all). Without `protocol` every score file must hold its own labels.

    Raises InputError, with file and line, for anything that a trial or its score can have wrong.
    """
    files = {
        name: read_table(path, "scores", ("id", "score"), (TWO_COLUMNS, FOUR_COLUMNS)) for name, path in scores.items()
    }
    first = next(iter(files.values()))
    if any("sasv_score" in lines.layout for lines in files.values()):
        if protocol is None:
            raise InputError(f"{first.path} holds SASV scores: give the key too (spk filename cm-label asv-label)")
        if asv is not None and not asv.startswith(PUBLISHED):
            raise InputError(
                f"{asv}: SASV scores bring their own ASV scores; besides them there is published:asvspoof5 only"
            )
        published = None if asv is None else published_facts(_published_name(asv))
        return {name: read_sasv(lines, protocol, published) for name, lines in files.items()}
    if protocol is not None and "label" in first.layout and protocol != first.path and holds_scores(protocol):
        raise InputError(
            f"{protocol} holds scores, as {first.path} does: to compare systems name the trial list with --protocol, "
            f"which may be a score file with labels (--protocol {first.path})"
        )
    shared = None if protocol is None else one_subset(read_trials(protocol), subset)
    tables = {}
    for name, lines in files.items():
        listed = shared or labelled_trials(lines)
        table = _joined(lines, listed)
        facts, sources = asv_facts(asv, asv_key, listed)
        sources = {str(lines.path): lines.described(), str(listed.path): listed.described, **sources}
        table.attrs = {"set": name, "skipped": 0, "sources": sources, **facts}
        if listed.codecs:
            table.attrs["codecs"] = list(listed.codecs)
        tables[name] = table
    return tables


def asv_facts(asv: str | None, asv_key: Path | None, listed: TrialList) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the ASV error rates by attack for `table.attrs`, and what their files were read as.

    Raises InputError for ASV scores whose attacks are not those of the trials.
    """
    if asv is None:
        return {}, {"ASV scores": "none given, so no t-DCF"}
    if asv.startswith(PUBLISHED):
        facts = published_facts(_published_name(asv))
        return facts, {asv: f"{facts['asv_source']}, not of ASV scores on these trials"}
    path = Path(asv)
    if asv_key is not None:
        table, title = read_2021_asv_scores(asv_key, path), f"2021 ASV scores with the metadata {asv_key}"
        subsets = {trial.subset for trial in listed.trials} - {"-"}
        table = table[table["subset"].isin(subsets)] if subsets else table
    else:
        fields = first_line(path, "ASV scores").split()
        if len(fields) == 3 and fields[1] not in _ASV_KEYS:
            raise InputError(
                f"{path}, line 1, column 2: {fields[1]!r} is none of target, nontarget, spoof (source key score): "
                "where these are 2021 ASV scores (speaker trial score) give their metadata with --asv-key"
            )
        table, title = read_2019_asv_scores(path), "2019 ASV scores"
    facts = facts_of(table, listed.trials, path, str(listed.path), "leave the ASV scores out")
    return facts, {asv: f"{title}, {len(table):,} lines"}


def _published_name(asv: str) -> str:
    name = asv.removeprefix(PUBLISHED)
    if name not in PUBLISHED_ASV_RATES:
        known = ", ".join(PUBLISHED + corpus for corpus in PUBLISHED_ASV_RATES)
        raise InputError(f"{asv}: no ASV error rates are published under this name; there are {known}")
    return name


def _joined(lines: Lines, listed: TrialList) -> pd.DataFrame:
    """Give every trial its score.

    Raises InputError for missing, extra and repeated trials, other labels than the list's, and decisions.
    """
    ids, values = lines.column("id"), numbers(lines)
    refuse_duplicates(lines, ids)
    names, others = [trial.id for trial in listed.trials], listed.others
    if set(names).isdisjoint(ids):
        ids, names, others = _by_stem(ids, names, others)
    row_of = {name: row for row, name in enumerate(ids)}
    known = others.union(names)
    extra = [row for name, row in row_of.items() if name not in known]
    if extra:
        raise InputError(
            f"{lines.path}, line {lines.numbers[extra[0]]}: trial {ids[extra[0]]} is not in {listed.path}, as "
            f"{len(extra)} of {len(ids)} are not: is it the trial list of these scores?"
        )
    missing = [name for name in names if name not in row_of]
    if missing:
        raise InputError(
            f"{lines.path} has no score for {len(missing)} of {len(names)} trials, the first is {missing[0]} "
            f"({listed.path}, line {_line_of(listed.path, missing[0])}): score them all, the error rate of a part is "
            "another number"
        )
    rows = [row_of[name] for name in names]
    if "label" in lines.layout:
        own = lines.column("label")
        for row, trial in zip(rows, listed.trials, strict=True):
            if LABELS.get(own[row]) != trial.label:
                fault = f"{ids[row]} is {own[row]!r} here and {trial.label} in {listed.path}"
                raise InputError(f"{lines.where(row, 'label')}: {fault}: which of the two is right?")
    table = pd.DataFrame(listed.trials)[["id", *FACTS, "label"]].assign(id=names, score=[values[row] for row in rows])
    if table["score"].nunique() < 3:
        raise InputError(
            f"{lines.path}: the scores of {len(table)} trials hold fewer than 3 distinct values, like decisions: write "
            "soft scores, for example the difference of the two logits"
        )
    told = [
        name for name in table if name in ("id", "speaker", "attack", "label", "score") or set(table[name]) != {"-"}
    ]
    return table[told].sort_values("id", ignore_index=True)


def _by_stem(
    ids: Sequence[str], names: Sequence[str], others: frozenset[str]
) -> tuple[Sequence[str], Sequence[str], frozenset[str]]:
    """Drop folder and suffix where no trial matches as written; all as written where that does not help."""
    stems = [[Path(name).stem for name in column] for column in (ids, names)]
    if any(len(set(column)) < len(column) for column in stems) or set(stems[0]).isdisjoint(stems[1]):
        return ids, names, others
    return stems[0], stems[1], frozenset(Path(name).stem for name in others)


def _line_of(path: Path, name: str) -> int:
    """Return the first line that holds a trial's name."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return next((number for number, line in enumerate(lines, 1) if name in line), 1)
