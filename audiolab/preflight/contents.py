"""What the decoded files tell: unreadable ones, odd rates, silence, clipping, durations, the same recording twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from audiolab.audio.level import LOUDEST
from audiolab.preflight.files import FileFacts
from audiolab.preflight.findings import Finding

GROUP = "audio"
SILENT_PEAK = 0.001  # -60 dBFS
CLIPPED_SHARE = 0.001  # of the samples at full scale
SHORT_S = 0.3

Facts = Mapping[str, FileFacts]


def examine_contents(
    sets: Mapping[str, pd.DataFrame], facts: Facts, reasons: Mapping[str, str], num_allowed: int | None
) -> list[Finding]:
    """Check the files of all listings: `facts` by path, `reasons` of those that cannot be used.

    `num_allowed` files may be bad (`on_bad_audio: skip`); None: none may.
    """
    ids = names_of(sets)
    classes = any("label" in listing for listing in sets.values())
    return [
        check_readable(len(ids), reasons, num_allowed),
        *(_formats(facts, ids, classes) if facts else []),
        *_levels(facts, ids),
        *(_durations(sets, facts, ids) if facts else []),
        *check_duplicates(sets, facts),
    ]


def names_of(sets: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return by what each file is named: its id, with the end of its path where several files have that id.

    >>> names_of({"train": pd.DataFrame({"id": ["a", "a", "b"], "file": ["s1/a.wav", "/x/s2/1.wav", "b.wav"]})})
    {'s1/a.wav': 's1/a.wav', '/x/s2/1.wav': 'a (s2/1.wav)', 'b.wav': 'b'}
    """
    ids = {file: id_ for listing in sets.values() for id_, file in zip(listing["id"], listing["file"], strict=True)}
    files = Counter(ids.values())

    def name(file: str, id_: str) -> str:
        end = "/".join(PurePath(file).parts[-2:])
        return id_ if files[id_] == 1 else end if PurePath(file).stem == id_ else f"{id_} ({end})"

    return {file: name(file, id_) for file, id_ in ids.items()}


def check_readable(num_files: int, reasons: Mapping[str, str], num_allowed: int | None) -> Finding:
    """Judge the files that cannot be used; a number that would let the run go on without them is part of the remedy.

    >>> check_readable(100, {"a.wav": "is empty (0 bytes)"}, None).state
    'problem'
    >>> check_readable(100, {"a.wav": "is empty (0 bytes)"}, 1).state
    'warning'
    """
    if not reasons:
        return Finding(GROUP, "files", "ok", f"all {num_files:,} are there and decode")
    items = tuple(f"{path} {reason}" for path, reason in sorted(reasons.items()))
    found = f"{len(reasons):,} of {num_files:,} cannot be used"
    if num_allowed is None:
        remedy = f"copy them again, or leave them out: data.on_bad_audio=skip data.max_bad_audio={len(reasons)}"
        return Finding(GROUP, "files", "problem", found, remedy, items)
    if len(reasons) > num_allowed:
        remedy = f"copy them again, or allow more: data.max_bad_audio={len(reasons)}"
        return Finding(GROUP, "files", "problem", f"{found}, {num_allowed:,} may be left out", remedy, items)
    return Finding(GROUP, "files", "warning", f"{found} and are left out", "copy them again if you can", items)


def check_duplicates(sets: Mapping[str, pd.DataFrame], facts: Facts) -> list[Finding]:
    """Find files with the same samples under different names, within a set and across sets.

    >>> same = FileFacts(16000, 1, 8, 0.5, 0.0, "1:ab")
    >>> sets = {n: pd.DataFrame({"id": [n], "file": [f"{n}.wav"]}) for n in ("train", "eval")}
    >>> [finding.items for finding in check_duplicates(sets, {"train.wav": same, "eval.wav": same})]
    [('train train = eval eval',)]
    """
    ids = names_of(sets)
    holders: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for name, listing in sets.items():
        for file in listing["file"]:
            if file in facts and facts[file].peak >= SILENT_PEAK:  # silence is told of as silence
                holders[facts[file].digest].setdefault(file, (name, ids[file]))
    groups = [list(files.values()) for files in holders.values() if len(files) > 1]
    across = [group for group in groups if len({name for name, _ in group}) > 1]
    within = [group for group in groups if len({name for name, _ in group}) == 1]
    findings = []
    for found, state, where, remedy in (
        (across, "problem", "in two sets", "take them out of one: what was trained on cannot be judged on"),
        (within, "warning", "within a set", "keep one of each: they count twice"),
    ):
        if found:
            items = tuple(" = ".join(f"{name} {id_}" for name, id_ in group) for group in found)
            words = f"{len(found):,} recording{'s' * (len(found) != 1)} {where} under several names"
            findings.append(Finding(GROUP, "duplicates", state, words, remedy, items))
    return findings or [Finding(GROUP, "duplicates", "ok", "no two files have the same samples")]


def set_facts(listing: pd.DataFrame, facts: Facts) -> dict[str, Any]:
    """Return numbers of a set: files, hours, and its durations in seconds."""
    found = [facts[file].duration_s for file in dict.fromkeys(listing["file"]) if file in facts]
    if not found:
        return {"files": 0, "hours": 0.0}
    return {
        "files": len(found),
        "hours": sum(found) / 3600,
        "min_s": min(found),
        "median_s": float(np.median(found)),
        "max_s": max(found),
    }


def _formats(facts: Facts, ids: Mapping[str, str], classes: bool) -> list[Finding]:
    kinds = Counter((fact.sample_rate, fact.num_channels) for fact in facts.values())
    bulk, _ = kinds.most_common(1)[0]
    odd = [file for file, fact in facts.items() if (fact.sample_rate, fact.num_channels) != bulk]
    shown = _kind(bulk)
    if not odd:
        return [Finding(GROUP, "format", "ok", f"all {shown}")]
    items = _named(odd, ids, lambda file: _kind((facts[file].sample_rate, facts[file].num_channels)))
    remedy = "they are converted when read" + "; make sure that their kind does not tell the classes apart" * classes
    return [Finding(GROUP, "format", "warning", f"{len(odd):,} of {len(facts):,} are not {shown}", remedy, items)]


def _levels(facts: Facts, ids: Mapping[str, str]) -> list[Finding]:
    silent = [file for file, fact in facts.items() if fact.peak < SILENT_PEAK]
    loud = [file for file, fact in facts.items() if fact.peak > LOUDEST]
    clipped = [file for file, fact in facts.items() if fact.clipped > CLIPPED_SHARE and fact.peak <= LOUDEST]
    findings = []
    if loud:
        items = _named(loud, ids, lambda file: f"peak {facts[file].peak:.3g}")
        words = f"{len(loud):,} of {len(facts):,} have samples beyond {LOUDEST:g} times full scale"
        remedy = "write them again with full scale at 1.0, or take them out: they drown all others"
        findings.append(Finding(GROUP, "level", "problem", words, remedy, items))
    if silent:
        items = _named(silent, ids, lambda file: f"peak {_dbfs(facts[file].peak)}")
        words = f"{len(silent):,} of {len(facts):,} have nothing above {_dbfs(SILENT_PEAK)}"
        findings.append(Finding(GROUP, "silence", "warning", words, "listen to them, and take them out", items))
    if clipped:
        items = _named(clipped, ids, lambda file: f"{100 * facts[file].clipped:.1f} % of the samples")
        words = f"{len(clipped):,} of {len(facts):,} have over {100 * CLIPPED_SHARE:g} % of their samples at full scale"
        findings.append(Finding(GROUP, "clipping", "warning", words, "record them again if you can", items))
    if facts and not findings:
        findings.append(Finding(GROUP, "level", "ok", "none is silent, clipped or beyond full scale"))
    return findings


def _durations(sets: Mapping[str, pd.DataFrame], facts: Facts, ids: Mapping[str, str]) -> list[Finding]:
    findings = []
    for name, listing in sets.items():
        numbers = set_facts(listing, facts)
        if numbers["files"]:
            shown = (
                f"{numbers['hours']:.2f} h, shortest {numbers['min_s']:.2f} s, median {numbers['median_s']:.2f} s, "
                f"longest {numbers['max_s']:.2f} s"
            )
            findings.append(Finding(GROUP, f"{name} durations", "ok", shown))
    short = [file for file, fact in facts.items() if fact.duration_s < SHORT_S]
    if short:
        items = _named(short, ids, lambda file: f"{facts[file].duration_s:.3f} s")
        found = f"{len(short):,} of {len(facts):,} are shorter than {SHORT_S} s"
        findings.append(
            Finding(GROUP, "short files", "warning", found, "listen to them: there is hardly speech", items)
        )
    return findings


def _named(files: Iterable[str], ids: Mapping[str, str], fact: Any) -> tuple[str, ...]:
    return tuple(f"{ids[file]}: {fact(file)}" for file in sorted(files) if file in ids)


def _kind(kind: tuple[int, int]) -> str:
    rate, channels = kind
    return f"{rate / 1000:g} kHz {({1: 'mono', 2: 'stereo'}).get(channels, f'{channels} channels')}"


def _dbfs(peak: float) -> str:
    return f"{20 * np.log10(peak):.0f} dBFS" if peak else "0 (digital silence)"
