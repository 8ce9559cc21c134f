"""What every corpus reader answers, and how audio files are found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pandas as pd

from audiolab.audio.find import names_in
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.protocols import BONAFIDE, Trial


class TrialSet(NamedTuple):
    """The trials of a set, one audio file each, and the list they are from."""

    trials: list[Trial]
    paths: list[str]
    source: Path


class Corpus(ABC):
    """A corpus in its published layout under `root`; nothing is read before it is asked for.

    `subset` is one of `subsets`, the first if none is given.
    `published` holds the published numbers of trials and of bona fide ones, by set. For error messages, `option` names
    the option that `root` came from, and `others` are the layouts that a wrong root may be in instead.
    """

    title: ClassVar[str]
    choice: ClassVar[str]
    needs: ClassVar[str]
    published: ClassVar[dict[str, tuple[int, int]]] = {}
    subsets: ClassVar[tuple[str, ...]] = ()
    codecs: ClassVar[tuple[str, ...]] = ()
    test_set: ClassVar[str] = "eval"

    def __init__(
        self, root: Path, subset: str | None, option: str = "data.root", others: Sequence[type[Corpus]] = ()
    ) -> None:
        self.root, self.option, self.others = root, option, others
        self.subset = subset or next(iter(self.subsets), None)
        if self.subset not in (self.subsets or (None,)):
            section = option.rpartition(".")[0]
            expected = ", ".join(self.subsets) if self.subsets else "null, the corpus has none"
            raise InputError(f"{section}.subset={subset} does not fit {self.title}: give {expected}")

    @property
    @abstractmethod
    def sets(self) -> tuple[str, ...]:
        """The sets that are there, of train, dev and eval."""

    @abstractmethod
    def protocol(self, set_name: str) -> Path:
        """Return the trial list of a set; InputError where the root is not in this layout."""

    @abstractmethod
    def read(self, set_name: str) -> TrialSet:
        """Read a set's trials and locate their audio; a file that is missing has the path where it should be."""

    @classmethod
    @abstractmethod
    def is_at(cls, root: Path) -> bool:
        """Whether a folder is in this layout, by the names in it."""

    def asv_files(self, set_name: str) -> tuple[Path, ...]:
        """Return the files with this set's ASV scores, there or not; () where the corpus has none."""
        return ()

    def asv_scores(self, set_name: str) -> pd.DataFrame:
        """Read `asv_files` into the columns attack, key, score and perhaps codec.

        Raises InputError where the corpus has none.
        """
        raise InputError(f"{self.title} has no ASV scores")

    def wrong_root(self, looked_for: str) -> InputError:
        """Say that the root is not in this layout, and in which it is if that shows."""
        found = [kind for kind in self.others if kind is not type(self) and kind.is_at(self.root)]
        hint = f"; it looks like {found[0].title}: choose data=asvspoof/{found[0].choice}" if found else ""
        return InputError(
            f"{self.option}={self.root} is not in the {self.title} layout: it has no {looked_for}; "
            f"give {self.needs}{hint}"
        )

    def size_differences(self, set_name: str, trials: Sequence[Trial]) -> list[str]:
        """Say in words where a set has another size than the published one."""
        counts = len(trials), Counter(trial.label for trial in trials)[BONAFIDE]
        published = self.published.get(set_name) if self.subset in (None, "eval") else None
        if published in (None, counts):
            return []
        return [
            f"{set_name} of {self.root} has {counts[0]:,} trials ({counts[1]:,} bona fide) where {self.title} has "
            f"{published[0]:,} ({published[1]:,})"
        ]


def locate(trials: Sequence[Trial], folders: Sequence[Path], suffix: str) -> list[str]:
    """Return the audio file of each trial, in the folder that has it; in the first one where none does."""
    names = [trial.id + suffix for trial in trials]
    home = {name: folder for folder in reversed(folders) for name in names_in(folder)} if len(folders) > 1 else {}
    first = folders[0]
    return [name if name.startswith("/") else f"{home.get(name, first)}/{name}" for name in names]
