"""A trial list of one's own."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet, locate
from audiolab.tasks.asvspoof.protocols import Trial, read_own_csv


class OwnCsv(Corpus):
    """A CSV file of one's own, `file,label` and more, with paths relative to it."""

    title, choice = "CSV", "csv"
    needs = "the CSV file itself, with the columns file,label"

    @cached_property
    def _trials(self) -> list[Trial]:
        return read_own_csv(self.protocol("eval"))

    def protocol(self, set_name: str) -> Path:
        """Return the file."""
        if not self.root.exists():
            raise InputError(f"data.root={self.root} does not exist: give {self.needs}")
        if not self.root.is_file():
            raise self.wrong_root("trial list, it is a folder" if self.root.is_dir() else "trial list")
        return self.root

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that its column `set` names; all is eval where there is no such column."""
        named = {trial.subset for trial in self._trials}
        return tuple(name for name in ("train", "dev", "eval") if name in named)

    def read(self, set_name: str) -> TrialSet:
        """Keep the trials of a set."""
        path = self.protocol(set_name)
        trials = [trial for trial in self._trials if trial.subset == set_name]
        return TrialSet(trials, locate(trials, [path.parent], ""), path)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether it is a file that ends in .csv."""
        return root.is_file() and root.suffix == ".csv"
