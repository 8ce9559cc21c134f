"""Trial lists in their published text formats, parsed strictly: an error names file, line, column and remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from audiolab.errors import InputError
from audiolab.training.text_files import fail, read_csv, read_lines

BONAFIDE, SPOOF = "bonafide", "spoof"
UNKNOWN = "unknown"
"""The attack of spoofed speech where a corpus does not tell."""


class Trial(NamedTuple):
    """One line of a countermeasure protocol; `-` stands for what does not apply or is not told.

    `attack` is `-` for bona fide speech only. `subset` is the part of a published set (2021: eval, progress, hidden)
    or, in a CSV file of one's own, the set itself.
    """

    id: str
    speaker: str
    attack: str
    label: str
    codec: str = "-"
    vocoder: str = "-"
    source: str = "-"
    subset: str = "-"
    corpus: str = "-"


@dataclass(frozen=True)
class Format:
    """Columns of a published list without header, separated by spaces.

    `bonafide_attack` stands in the attack column of bona fide trials, `no_codec` replaces a `-` in the codec column,
    `choices` lists the words that a column may hold.
    """

    title: str
    columns: str
    bonafide_attack: str
    no_codec: str = "-"
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)


LA_CODECS = ("none", "alaw", "pstn", "g722", "ulaw", "gsm", "opus")
DF_CODECS = ("nocodec", "low_mp3", "high_mp3", "low_m4a", "high_m4a", "low_ogg", "high_ogg", "mp3m4a", "oggm4a")
DF_SOURCES = ("asvspoof", "vcc2018", "vcc2020")
DF_VOCODERS = (
    "traditional_vocoder",
    "waveform_concatenation",
    "neural_vocoder_autoregressive",
    "neural_vocoder_nonautoregressive",
    "unknown",
)
SUBSETS = ("eval", "progress", "hidden")

LA_2019 = Format("2019 LA protocol", "speaker utterance - attack key", "-")
LA_2021 = Format(
    "2021 LA metadata file",
    "speaker trial codec transmission attack label trim subset",
    BONAFIDE,
    choices={"codec": LA_CODECS, "subset": SUBSETS},
)
DF_2021 = Format(
    "2021 DF metadata file",
    "speaker trial codec source attack label trim subset vocoder task team gender language",
    "-",
    choices={
        "codec": DF_CODECS,
        "source": DF_SOURCES,
        "vocoder": (BONAFIDE, *DF_VOCODERS),
        "subset": SUBSETS,
    },
)
ASVSPOOF_5 = Format(
    "ASVspoof 5 protocol",
    "speaker file gender codec codec_quality codec_seed attack_tag attack key -",
    BONAFIDE,
    no_codec="C00",
)

_FIELD_OF = {"utterance": "id", "trial": "id", "file": "id", "file_name": "id", "key": "label", "set": "subset"}
_CSV_REQUIRED, _CSV_OPTIONAL = ("file", "label"), ("speaker", "attack", "codec", "set")
_CSV_LABELS = {BONAFIDE: BONAFIDE, "bona-fide": BONAFIDE, SPOOF: SPOOF}


def read_protocol(path: Path, form: Format) -> list[Trial]:
    """Read a published list in a `Format`.

    Raises InputError for a line with another number of columns, a wrong label, a word that a column may not hold, an
    attack that contradicts the label, and a trial that is listed twice.
    """
    columns = form.columns.split()
    fields = [_FIELD_OF.get(name, name) for name in columns]
    at = {name: fields.index(name) for name in Trial._fields if name in fields}
    pick = itemgetter(*(at.get(name, len(columns)) for name in Trial._fields))  # what a format lacks is "-"
    choices = [(at[name], frozenset(words)) for name, words in form.choices.items()]
    trials = _Trials(path)
    for number, line in read_lines(path, form.columns):
        label, attack = line[at["label"]], line[at["attack"]]
        if label not in (BONAFIDE, SPOOF):
            fail(
                path, number, at["label"], f"{label!r} is no label, expected bonafide or spoof: is this a {form.title}?"
            )
        for column, words in choices:
            if line[column] not in words:
                expected = ", ".join(form.choices[fields[column]])
                fail(path, number, column, f"{line[column]!r} is no {fields[column]}, expected one of {expected}")
        if (attack == form.bonafide_attack) != (label == BONAFIDE):
            fault = f"attack {attack!r} contradicts the label {label} (bona fide trials have '{form.bonafide_attack}')"
            fail(path, number, at["attack"], fault)
        if label == BONAFIDE:
            line[at["attack"]] = "-"
        if "codec" in at and line[at["codec"]] == "-":
            line[at["codec"]] = form.no_codec
        line.append("-")
        trials.add(number, Trial(*pick(line)))
    return trials.all


def read_2019_protocol(path: Path) -> list[Trial]:
    """Read an ASVspoof 2019 LA countermeasure protocol: `speaker utterance - attack key`."""
    return read_protocol(path, LA_2019)


def read_in_the_wild(path: Path) -> list[Trial]:
    """Read In-the-Wild's `meta.csv`: `file,speaker,label` with the labels `bona-fide` and `spoof`; InputError as above.

    The corpus does not tell which attack a spoof is of.
    """
    trials = _Trials(path)
    for number, row in read_csv(path, ("file", "speaker", "label")):
        if row["label"] not in ("bona-fide", SPOOF):
            fail(path, number, 2, f"{row['label']!r} is no label, expected bona-fide or spoof")
        label = _CSV_LABELS[row["label"]]
        trials.add(number, Trial(row["file"], row["speaker"], "-" if label == BONAFIDE else UNKNOWN, label))
    return trials.all


def read_own_csv(path: Path) -> list[Trial]:
    """Read a CSV file of one's own: columns `file` (or `file_name`) and `label`, perhaps speaker, attack, codec, set.

    `file` is relative to the CSV file; `set` is train, dev or eval, without it all is eval. A further column is left
    alone unless its name looks like a slip. Raises InputError for what does not fit.
    """
    trials = _Trials(path)
    for number, row in read_csv(path, _CSV_REQUIRED, _CSV_OPTIONAL, {"file_name": "file"}):
        columns = list(row)
        if row["label"] not in _CSV_LABELS:
            fault = f"{row['label']!r} is no label, expected bonafide (or bona-fide) or spoof"
            fail(path, number, columns.index("label"), fault)
        label = _CSV_LABELS[row["label"]]
        subset = row.get("set", "eval")
        if subset not in ("train", "dev", "eval"):
            fail(path, number, columns.index("set"), f"{subset!r} is no set, expected train, dev or eval")
        attack = row.get("attack", "-")
        if label == BONAFIDE and attack not in ("-", "", BONAFIDE):
            fault = f"attack {attack!r} contradicts the label bonafide: leave it empty"
            fail(path, number, columns.index("attack"), fault)
        attack = "-" if label == BONAFIDE else UNKNOWN if attack in ("-", "") else attack
        if "/" in attack + row.get("codec", ""):
            column = columns.index("attack" if "/" in attack else "codec")
            fail(path, number, column, "'/' cannot be in the name of an attack or codec: use '-' or '_'")
        speaker, codec = row.get("speaker") or "-", row.get("codec") or "-"
        trials.add(number, Trial(row["file"], speaker, attack, label, codec, subset=subset))
    return trials.all


def require_both_classes(trials: Sequence[Trial], where: str) -> None:
    """Raise InputError unless there is bona fide and spoofed speech; `where` says in which file or set."""
    counts = Counter(trial.label for trial in trials)
    for label in (BONAFIDE, SPOOF):
        if not counts[label]:
            raise InputError(
                f"{where} has {len(trials)} trials, none of them {label}: an error rate needs both classes, "
                "take a protocol with both"
            )


class _Trials:
    """The trials of one file in their order; refuses one that is listed twice."""

    def __init__(self, path: Path) -> None:
        self.path, self.all = path, list[Trial]()
        self._line: dict[str, int] = {}

    def add(self, number: int, trial: Trial) -> None:
        before = self._line.setdefault(trial.id, number)
        if before != number:
            raise InputError(
                f"{self.path}, line {number}: trial {trial.id} is listed before, in line {before}: remove one of them"
            )
        self.all.append(trial)
