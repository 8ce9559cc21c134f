"""Trial lists in their published formats, parsed strictly: an error names file, line, column and remedy."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from audiolab.errors import InputError

BONAFIDE, SPOOF = "bonafide", "spoof"


@dataclass(frozen=True)
class Trial:
    """One line of a countermeasure protocol; `attack` is `-` for bona fide speech."""

    id: str
    speaker: str
    attack: str
    label: str


def read_lines(path: Path, columns: str) -> list[tuple[int, list[str]]]:
    """Return line number and fields of every line that is not blank; each must have the columns named.

    Raises InputError for a missing or empty file and for a line with another number of columns.
    """
    names = columns.split()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: check data.root, or choose the data= of the corpus that lies there"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file ({error.reason}): it should have the columns {columns}") from error
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, fields in lines:
        if len(fields) != len(names):
            raise InputError(f"{path}, line {number}: {len(fields)} columns, expected {len(names)} ({columns})")
    if not lines:
        raise InputError(f"{path} has no lines: it should list one trial a line ({columns})")
    return lines


def read_2019_protocol(path: Path) -> list[Trial]:
    """Read an ASVspoof 2019 LA countermeasure protocol: `speaker utterance - attack key`.

    Raises InputError for a wrong key, an attack that contradicts it, and a trial that is listed twice.
    """
    trials = []
    seen: dict[str, int] = {}
    for number, (speaker, name, _, attack, key) in read_lines(path, "speaker utterance - attack key"):
        where = f"{path}, line {number}"
        if key not in (BONAFIDE, SPOOF):
            raise InputError(
                f"{where}, column 5: {key!r} is no label, expected bonafide or spoof: is this a 2019 LA protocol?"
            )
        if (attack == "-") != (key == BONAFIDE):
            raise InputError(
                f"{where}, column 4: attack {attack!r} contradicts the label {key} (bona fide trials have '-')"
            )
        if name in seen:
            raise InputError(f"{where}: trial {name} is listed before, in line {seen[name]}: remove one of them")
        seen[name] = number
        trials.append(Trial(name, speaker, attack, key))
    return trials


def require_both_classes(trials: list[Trial], path: Path) -> None:
    """Raise InputError unless there is bona fide and spoofed speech."""
    counts = Counter(trial.label for trial in trials)
    for label in (BONAFIDE, SPOOF):
        if not counts[label]:
            raise InputError(
                f"{path} has {len(trials)} trials, none of them {label}: an error rate needs both classes, "
                "take a protocol with both"
            )


def read_2019_asv_scores(path: Path) -> pd.DataFrame:
    """Read ASVspoof 2019 ASV scores `source key score` into the columns attack, key, score.

    The first column names the attack of spoof rows only; of the others, columns 2 and 3 are relied on.
    """
    rows = []
    for number, (source, key, score) in read_lines(path, "source key score"):
        if key not in ("target", "nontarget", SPOOF):
            raise InputError(f"{path}, line {number}, column 2: {key!r} is none of target, nontarget, spoof")
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", score):
            raise InputError(f"{path}, line {number}, column 3: {score!r} is not a finite number")
        rows.append((source if key == SPOOF else "-", key, float(score)))
    return pd.DataFrame(rows, columns=["attack", "key", "score"])
