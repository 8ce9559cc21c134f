"""Trial lists and keys of any published layout, told apart by their first line, for score files of any system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.layouts import FOUR_COLUMNS, Lines, first_line, header_of, read_table, refuse_duplicates
from audiolab.tasks.asvspoof.protocols import (
    ASVSPOOF_5,
    BONAFIDE,
    DF_2021,
    LA_2019,
    LA_2021,
    SPOOF,
    UNKNOWN,
    Trial,
    read_protocol,
    require_both_classes,
)

LABELS = {BONAFIDE: BONAFIDE, "bona-fide": BONAFIDE, SPOOF: SPOOF}
ALL_SUBSETS, DEFAULT_SUBSET = "all", "eval"
_FORMATS = {len(form.columns.split()): form for form in (LA_2019, LA_2021, DF_2021, ASVSPOOF_5)}


@dataclass(frozen=True)
class TrialList:
    """Trials with the file they come from and what it was read as.

    `others` are ids in the file that are not wanted, `codecs` the corpus' order of them.
    """

    path: Path
    trials: list[Trial]
    described: str
    others: frozenset[str] = frozenset()
    codecs: tuple[str, ...] = ()


def read_trials(path: Path) -> TrialList:
    """Read a trial list, a key, or a score file with labels; the columns of its first line tell which it is.

    Raises InputError for an unknown layout and whatever the list has wrong.
    """
    line = first_line(path, "the trials")
    header, num_columns = header_of(line), len(line.split())
    if header is not None or num_columns == len(FOUR_COLUMNS.columns):
        return labelled_trials(read_table(path, "the trials", ("id", "label"), (FOUR_COLUMNS,)))
    if num_columns not in _FORMATS:
        known = "; ".join(f"{form.title} ({number} columns)" for number, form in _FORMATS.items())
        shown = line.strip() if len(line) < 80 else line.strip()[:77] + "..."
        raise InputError(
            f"{path}, line 1: {shown!r} has {num_columns} columns and begins no trial list: known are {known}, "
            "four-column scores, and tables whose header names file and label"
        )
    trials = read_protocol(path, _FORMATS[num_columns])
    require_both_classes(trials, str(path))
    form = _FORMATS[num_columns]
    return TrialList(path, trials, f"{form.title}, {len(trials):,} trials", codecs=tuple(form.choices.get("codec", ())))


def labelled_trials(lines: Lines) -> TrialList:
    """Return the trials of a table that has labels.

    Raises InputError for an unknown label, a bona fide trial with an attack, and a trial that is listed twice.
    """
    if "label" not in lines.layout:
        raise InputError(
            f"{lines.path} has no labels ({lines.layout.title}): give the protocol as the second file or "
            "with --protocol"
        )
    refuse_duplicates(lines, lines.column("id"))
    known = {name: lines.column(name) for name in ("id", "speaker", "attack", "label", "codec") if name in lines.layout}
    trials = []
    for row, fields in enumerate(zip(*known.values(), strict=True)):
        trial = dict(zip(known, fields, strict=True))
        label = LABELS.get(trial["label"])
        if label is None:
            raise InputError(f"{lines.where(row, 'label')}: {trial['label']!r} is no label, expected bonafide or spoof")
        attack = trial.get("attack", "-" if label == BONAFIDE else UNKNOWN)
        if (attack in ("-", "", *LABELS)) != (label == BONAFIDE) or attack == SPOOF:
            raise InputError(f"{lines.where(row, 'attack')}: attack {attack!r} contradicts the label {label}")
        attack = "-" if label == BONAFIDE else attack
        trials.append(Trial(trial["id"], trial.get("speaker", "-"), attack, label, trial.get("codec", "-")))
    require_both_classes(trials, str(lines.path))
    return TrialList(lines.path, trials, lines.described())


def one_subset(listed: TrialList, subset: str | None) -> TrialList:
    """Keep the trials of one part of a 2021 list, and remember the ids of the others, which scores may have too."""
    there = sorted({trial.subset for trial in listed.trials} - {"-"})
    if not there:
        if subset is not None:
            raise InputError(f"--subset {subset}: {listed.path} has no subsets ({listed.described}): leave it out")
        return listed
    wanted = subset or (DEFAULT_SUBSET if DEFAULT_SUBSET in there else ALL_SUBSETS)
    if wanted == ALL_SUBSETS:
        return listed
    if wanted not in there:
        raise InputError(f"--subset {wanted}: {listed.path} has {', '.join(there)}, or all of them: all")
    trials = [trial for trial in listed.trials if trial.subset == wanted]
    others = frozenset(trial.id for trial in listed.trials if trial.subset != wanted)
    require_both_classes(trials, f"{listed.path}, subset {wanted},")
    return TrialList(
        listed.path, trials, f"{listed.described}, of which {len(trials):,} of subset {wanted}", others, listed.codecs
    )


def holds_scores(path: Path) -> bool:
    """Whether a file has a score column, whatever else it has."""
    line = first_line(path, "the trials")
    header = header_of(line)
    return "score" in header[1] if header is not None else len(line.split()) == len(FOUR_COLUMNS.columns)
