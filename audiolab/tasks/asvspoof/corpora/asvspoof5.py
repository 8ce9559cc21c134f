"""ASVspoof 5, track 1."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet, locate
from audiolab.tasks.asvspoof.protocols import ASVSPOOF_5, read_protocol


class ASVspoof5(Corpus):
    """ASVspoof 5, track 1: `flac_T`, `flac_D`, `flac_E_eval` and three `ASVspoof5.*.tsv`"""

    title, choice = "ASVspoof 5", "asvspoof5"
    needs = "the folder that holds flac_T/, flac_D/, flac_E_eval/ and the ASVspoof5.*.tsv protocols"
    published: ClassVar = {"train": (182_357, 18_797), "dev": (140_950, 31_334), "eval": (680_774, 138_688)}
    _files: ClassVar = {
        "train": ("ASVspoof5.train.tsv", "flac_T"),
        "dev": ("ASVspoof5.dev.track_1.tsv", "flac_D"),
        "eval": ("ASVspoof5.eval.track_1.tsv", "flac_E_eval"),
    }

    @classmethod
    def _protocols(cls, root: Path) -> Path | None:
        places = (root, root / "ASVspoof5_protocols", root / "protocols")
        return next((place for place in places if any(place.glob("ASVspoof5.*.tsv"))), None)

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets whose protocol is there."""
        return tuple(name for name in self._files if self.protocol(name).is_file())

    def protocol(self, set_name: str) -> Path:
        """Return the track 1 protocol of a set."""
        folder = self._protocols(self.root)
        if folder is None:
            raise self.wrong_root("ASVspoof5.train.tsv, ASVspoof5.dev.track_1.tsv or ASVspoof5.eval.track_1.tsv")
        return folder / self._files[set_name][0]

    def read(self, set_name: str) -> TrialSet:
        """Read a protocol; the audio is in the set's flac folder."""
        path = self.protocol(set_name)
        trials = read_protocol(path, ASVSPOOF_5)
        return TrialSet(trials, locate(trials, [self.root / self._files[set_name][1]], ".flac"), path)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there are its"""
        return cls._protocols(root) is not None
