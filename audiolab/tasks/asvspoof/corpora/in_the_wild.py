"""In-the-Wild: an evaluation set of public figures."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet, locate
from audiolab.tasks.asvspoof.protocols import read_in_the_wild


class InTheWild(Corpus):
    """In-the-Wild: `release_in_the_wild/meta.csv` with the .wav files beside it."""

    title, choice = "In-the-Wild", "in_the_wild"
    needs = "the folder release_in_the_wild, or the one that holds it"
    published: ClassVar = {"eval": (31_779, 19_963)}
    sets = ("eval",)

    @classmethod
    def _base(cls, root: Path) -> Path | None:
        return next((base for base in (root / "release_in_the_wild", root) if (base / "meta.csv").is_file()), None)

    def protocol(self, set_name: str) -> Path:
        """Return meta.csv."""
        base = self._base(self.root)
        if base is None:
            raise self.wrong_root("meta.csv")
        return base / "meta.csv"

    def read(self, set_name: str) -> TrialSet:
        """Read meta.csv."""
        path = self.protocol(set_name)
        trials = read_in_the_wild(path)
        return TrialSet(trials, locate(trials, [path.parent], ""), path)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there is a meta.csv."""
        return cls._base(root) is not None
