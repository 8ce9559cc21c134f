"""AISHELL-3 as published: who speaks (spk-info.txt), what is said in which file (content.txt), and whom to choose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiolab.errors import InputError

SUBSETS = ("train", "test")
_SEXES = {"female": "F", "male": "M"}
_WHERE = (
    "give the folder that holds train/, test/ and spk-info.txt, as data_aishell3.tgz of openslr.org/93 (19 GB) "
    "unpacks it"
)


@dataclass(frozen=True)
class ListedRecording:
    """One utterance: its name without suffix, who speaks, and its file."""

    id: str
    speaker: str
    path: Path


@dataclass(frozen=True)
class Speaker:
    """One speaker, F or M, with all recordings in the order of the list."""

    id: str
    sex: str
    recordings: tuple[ListedRecording, ...]


def read_speakers(root: Path, subsets: Sequence[str]) -> list[Speaker]:
    """Read the lists of AISHELL-3 in the folder ``root``: all speakers of its `subsets` (train, test), sorted.

    Raises InputError, with file and line, for what is missing or not as published; audio is not looked at.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} does not exist: {_WHERE}")
    for needed in (*(f"{subset}/content.txt" for subset in subsets), "spk-info.txt"):
        if not (root / needed).is_file():
            raise InputError(f"data.root={root} is not AISHELL-3, it has no {needed}: {_WHERE}")
    sexes = _read_sexes(root / "spk-info.txt")
    found: dict[str, list[ListedRecording]] = {}
    for subset in subsets:
        for recording in _read_content(root / subset, sexes):
            found.setdefault(recording.speaker, []).append(recording)
    return [Speaker(name, sexes[name], tuple(found[name])) for name in sorted(found)]


def _read_sexes(path: Path) -> dict[str, str]:
    sexes: dict[str, str] = {}
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 4:
            _fail(path, number, line, "speaker, age group, gender and accent, as in SSB0005 B female north")
        if fields[2].lower() not in _SEXES:
            _fail(path, number, fields[2], "female or male in the third column")
        if fields[0] in sexes:
            raise InputError(f"{path}, line {number}: {fields[0]} is listed a second time: keep one of these lines")
        sexes[fields[0]] = _SEXES[fields[2].lower()]
    return sexes


def _read_content(folder: Path, sexes: Mapping[str, str]) -> Iterator[ListedRecording]:
    path, seen = folder / "content.txt", {}
    for number, line in _lines(path):
        name, _, text = line.partition("\t" if "\t" in line else " ")
        if not re.fullmatch(r"\w+\.wav", name) or len(name) < 9:
            _fail(path, number, name, "the name of a file such as SSB00050001.wav, a tab and what is said")
        if not text.strip():
            _fail(path, number, line, "a tab and what is said after the name of the file")
        id_, speaker = name.removesuffix(".wav"), name[:7]
        if speaker not in sexes:
            raise InputError(
                f"{path}, line {number}: {name} is of {speaker}, whom spk-info.txt does not list: copy both files again"
            )
        if id_ in seen:
            raise InputError(f"{path}, line {number}: {name} is in line {seen[id_]} too: keep one of these lines")
        seen[id_] = number
        yield ListedRecording(id_, speaker, folder / "wav" / speaker / name)
    if not seen:
        raise InputError(f"{path} has no lines: copy it again")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; a byte order mark and \\r\\n do no harm."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): copy it again") from error
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _fail(path: Path, number: int, found: str, expected: str) -> None:
    raise InputError(
        f"{path}, line {number}: {found[:40]!r} where {expected} was expected: correct it or copy it again"
    )


def choose_speakers(
    speakers: Sequence[Speaker],
    wanted: Mapping[str, int | None],
    min_utterances: int,
    balance_genders: bool,
    generator: np.random.Generator,
) -> dict[str, list[Speaker]]:
    """Choose speakers for each set, none for two: test first, then dev, then train (None: all that are left).

    Those with fewer than `min_utterances` are left out. With `balance_genders` each set has as many women as men, as
    far as there are. Raises InputError where there are too few.

    >>> people = [Speaker(str(n), "FFFM"[n % 4], ()) for n in range(8)]
    >>> chosen = choose_speakers(people, {"train": 4, "dev": 2, "test": 2}, 0, True, np.random.default_rng(0))
    >>> ["".join(sorted(one.sex for one in chosen[name])) for name in ("train", "dev", "test")]
    ['FFFF', 'FM', 'FM']
    """
    able = [speaker for speaker in speakers if len(speaker.recordings) >= min_utterances]
    able = [able[index] for index in generator.permutation(len(able))]
    least = sum(num or 0 for num in wanted.values())
    if len(able) < least or not able:
        raise InputError(
            f"{len(able)} of {len(speakers)} speakers have {min_utterances} utterances or more and {least} are wanted: "
            "want fewer in data.mixtures.speakers, or lower data.mixtures.min_utterances"
        )
    queues = [[one for one in able if one.sex == sex] for sex in "FM"] if balance_genders else [able]
    chosen: dict[str, list[Speaker]] = {}
    for name in ("test", "dev", "train"):
        number = wanted[name]
        group: list[Speaker] = []
        # the sex that the set has fewer of; of equal ones, that of which more are left
        while any(queues) and (number is None or len(group) < number):
            queue = min(
                (queue for queue in queues if queue),
                key=lambda queue: (sum(one.sex == queue[0].sex for one in group) * balance_genders, -len(queue)),
            )
            group.append(queue.pop(0))
        chosen[name] = sorted(group, key=lambda one: one.id)
    return {name: chosen[name] for name in ("train", "dev", "test")}
