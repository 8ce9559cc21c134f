"""ASVspoof 2019 LA."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from audiolab.tasks.asvspoof.asv_scores import read_2019_asv_scores
from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet, locate
from audiolab.tasks.asvspoof.protocols import LA_2019, read_protocol


class LA2019(Corpus):
    """ASVspoof 2019 LA: `LA/ASVspoof2019_LA_cm_protocols` and `LA/ASVspoof2019_LA_{train,dev,eval}/flac`."""

    title, choice = "ASVspoof 2019 LA", "la2019"
    needs = "the folder that holds LA/ (with ASVspoof2019_LA_cm_protocols and ASVspoof2019_LA_train ...)"
    published: ClassVar = {"train": (25_380, 2_580), "dev": (24_844, 2_548), "eval": (71_237, 7_355)}
    _suffix: ClassVar = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}

    @property
    def _base(self) -> Path:
        return self.root / "LA" if (self.root / "LA").is_dir() else self.root

    @property
    def sets(self) -> tuple[str, ...]:
        """Train and dev, and eval where its protocol is there."""
        return ("train", "dev", "eval") if self.protocol("eval").is_file() else ("train", "dev")

    def protocol(self, set_name: str) -> Path:
        """Return the countermeasure protocol of a set."""
        path = self._base / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{self._suffix[set_name]}.txt"
        if not path.parent.is_dir():
            raise self.wrong_root(f"{path.parent.name}/")
        return path

    def read(self, set_name: str) -> TrialSet:
        """Read a protocol; the audio is in the set's flac/ folder."""
        path = self.protocol(set_name)
        trials = read_protocol(path, LA_2019)
        return TrialSet(trials, locate(trials, [self._base / f"ASVspoof2019_LA_{set_name}" / "flac"], ".flac"), path)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there is a folder of"""
        return any((base / "ASVspoof2019_LA_cm_protocols").is_dir() for base in (root / "LA", root))

    def asv_files(self, set_name: str) -> tuple[Path, ...]:
        """Each of dev and eval has its own ASV scores."""
        folder = self._base / "ASVspoof2019_LA_asv_scores"
        return () if set_name == "train" else (folder / f"ASVspoof2019.LA.asv.{set_name}.gi.trl.scores.txt",)

    def asv_scores(self, set_name: str) -> pd.DataFrame:
        """Read the set's own ASV scores."""
        return read_2019_asv_scores(*self.asv_files(set_name))
