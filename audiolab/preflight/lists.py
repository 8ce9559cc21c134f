"""What the lists alone tell: sizes, classes, and speakers or files that two sets share. No audio is opened.

A listing is a table with one row a file: `id`, `file`, and where the corpus tells `label`, `speaker`, `session` and
other facts (`audiolab.training.data.SpeechData.listing`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import combinations

import pandas as pd

from audiolab.preflight.findings import Finding, State, some

GROUP = "lists"
RARE = 0.01  # share of a training set below which a class is pointed out
_UNKNOWN = ("", "-", "unknown")
_LARGE_FACT = 0.5  # a column with more different values than this share of the rows is no category


def examine_lists(sets: Mapping[str, pd.DataFrame], unseen_speakers: Collection[str] = ()) -> list[Finding]:
    """Check the listings of all sets, by name; a speaker of `train` in a set of `unseen_speakers` is a problem.

    >>> train = pd.DataFrame({"id": ["a", "b"], "label": ["x", "y"], "speaker": ["s1", "s2"]})
    >>> dev = pd.DataFrame({"id": ["c", "d"], "label": ["x", "x"], "speaker": ["s2", "s3"]})
    >>> [(f.check, f.state) for f in examine_lists({"train": train, "dev": dev})]
    [('sizes', 'ok'), ('classes', 'problem'), ('speaker', 'ok'), ('speakers', 'warning')]
    """
    return [
        *_sizes(sets),
        *_classes(sets),
        *_facts(sets),
        *_repeated(sets, "id", "ids"),
        *_repeated(sets, "file", "files"),
        *_shared(sets, "speaker", unseen_speakers),
        *_shared(sets, "session"),
    ]


def class_counts(listing: pd.DataFrame) -> dict[str, int]:
    """Return the number of rows of each class, the largest first; {} where labels are no classes.

    >>> class_counts(pd.DataFrame({"label": ["x", "y", "x"]}))
    {'x': 2, 'y': 1}
    """
    if "label" not in listing or pd.api.types.is_float_dtype(listing["label"]):
        return {}
    return {str(name): int(number) for name, number in listing["label"].value_counts().items()}


def _sizes(sets: Mapping[str, pd.DataFrame]) -> list[Finding]:
    sizes = {name: listing["id"].nunique() for name, listing in sets.items()}
    empty = [name for name, size in sizes.items() if not size]
    shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    if empty:
        return [Finding(GROUP, "sizes", "problem", f"{shown}: {some(empty)} is empty", "complete the list")]
    return [Finding(GROUP, "sizes", "ok", shown)] if sets else []


def _classes(sets: Mapping[str, pd.DataFrame]) -> list[Finding]:
    counts = {name: found for name, listing in sets.items() if (found := class_counts(listing))}
    if not counts:
        return []
    shown = "; ".join(
        f"{name} " + ", ".join(f"{label} {n:,} ({100 * n / sum(found.values()):.0f}%)" for label, n in found.items())
        for name, found in counts.items()
        if len(found) <= 20
    )
    alone = [f"{name} has {next(iter(found))} only" for name, found in counts.items() if len(found) == 1]
    if alone:
        remedy = "complete the list: with one class nothing can be learned or judged"
        return [Finding(GROUP, "classes", "problem", shown, remedy, tuple(alone))]
    train = counts.get("train", {})
    rare = [
        f"{label}: {n:,} of {sum(train.values()):,}" for label, n in train.items() if n < RARE * sum(train.values())
    ]
    if rare:
        remedy = "weigh the loss, or draw these more often"
        return [Finding(GROUP, "classes", "warning", f"{shown}; rare in training", remedy, tuple(rare))]
    return [Finding(GROUP, "classes", "ok", shown)]


def _facts(sets: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """How many different values each categorical column has."""
    columns = dict.fromkeys(column for listing in sets.values() for column in listing.columns)
    findings = []
    for column in columns:
        if column in ("id", "file", "label"):
            continue
        numbers = {name: len(_values(listing, column)) for name, listing in sets.items()}
        many = any(number > _LARGE_FACT * len(sets[name]) > 1 for name, number in numbers.items())
        if any(numbers.values()) and not (many and column not in ("speaker", "session")):
            shown = ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number)
            findings.append(Finding(GROUP, column, "ok", shown))
    return findings


def _repeated(sets: Mapping[str, pd.DataFrame], column: str, plural: str) -> list[Finding]:
    """Ids or files that two sets list."""
    shared = _overlaps(sets, lambda listing: set(listing[column]) if column in listing else set())
    remedy = "take them out of one of the sets: what was trained on cannot be judged on"
    return _told(plural, "problem", shared, remedy)


def _shared(sets: Mapping[str, pd.DataFrame], column: str, unseen: Collection[str] = ()) -> list[Finding]:
    """Values of a column that two sets list; those of `train` in a set of `unseen` must not be."""
    shared = _overlaps(sets, lambda listing: _values(listing, column))
    refused = {pair: found for pair, found in shared.items() if "train" in pair and set(pair) & set(unseen)}
    remedy = "numbers on that set say nothing about new ones: divide anew, or say so where they are quoted"
    return [
        *_told(f"{column}s", "problem", refused, "divide anew: what was trained on cannot be judged on"),
        *_told(f"{column}s", "warning", {pair: shared[pair] for pair in shared if pair not in refused}, remedy),
    ]


def _told(check: str, state: State, shared: Mapping[tuple[str, str], set[str]], remedy: str) -> list[Finding]:
    """One finding for all pairs of sets."""
    if not shared:
        return []
    words = ", ".join(f"{len(found):,} shared by {one} and {other}" for (one, other), found in shared.items())
    return [Finding(GROUP, check, state, words, remedy, tuple(sorted(set().union(*shared.values()))))]


def _values(listing: pd.DataFrame, column: str) -> set[str]:
    if column not in listing:
        return set()
    return {str(value) for value in listing[column].dropna().unique()} - set(_UNKNOWN)


def _overlaps(
    sets: Mapping[str, pd.DataFrame], values: Callable[[pd.DataFrame], set[str]]
) -> dict[tuple[str, str], set[str]]:
    members = {name: values(listing) for name, listing in sets.items()}
    pairs = {pair: members[pair[0]] & members[pair[1]] for pair in combinations(members, 2)}
    return {pair: found for pair, found in pairs.items() if found}
