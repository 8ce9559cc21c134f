"""ASVspoof 2021, the tracks LA and DF: evaluation sets only."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from audiolab.tasks.asvspoof.asv_scores import read_2021_asv_scores
from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet, locate
from audiolab.tasks.asvspoof.protocols import (
    DF_2021,
    DF_CODECS,
    LA_2021,
    LA_CODECS,
    SUBSETS,
    Format,
    read_protocol,
)


class _Keys2021(Corpus):
    """The 2021 evaluation sets: audio from one archive, keys and metadata from another."""

    subsets = SUBSETS
    sets = ("eval",)
    _track: ClassVar[str]
    _format: ClassVar[Format]

    @classmethod
    def _keys(cls, root: Path) -> Path | None:
        """Return the unpacked keys of the track, the folder that holds CM/."""
        places = (f"keys/{cls._track}", f"{cls._track}-keys-full/keys/{cls._track}", "keys")
        bases = (root, root / f"ASVspoof2021_{cls._track}_eval")
        found = (base / place for base in bases for place in places)
        return next((folder for folder in found if (folder / "CM" / "trial_metadata.txt").is_file()), None)

    @classmethod
    def _audio(cls, root: Path) -> list[Path]:
        """Return the folders with audio; the parts of the DF archive may be merged or lie side by side."""
        name = f"ASVspoof2021_{cls._track}_eval"
        places = [f"{name}/flac", "flac", f"*part0[0-9]/{name}/flac", "*part0[0-9]/flac"]
        return [folder for place in places for folder in sorted(root.glob(place)) if folder.is_dir()]

    def protocol(self, set_name: str) -> Path:
        """Return the metadata file with the keys."""
        keys = self._keys(self.root)
        if keys is None:
            raise self.wrong_root(f"keys/{self._track}/CM/trial_metadata.txt (of {self._track}-keys-full.tar.gz)")
        return keys / "CM" / "trial_metadata.txt"

    def read(self, set_name: str) -> TrialSet:
        """Read the metadata and keep the chosen subset."""
        path, folders = self.protocol(set_name), self._audio(self.root)
        if not folders:
            raise self.wrong_root(f"ASVspoof2021_{self._track}_eval/flac/")
        trials = [trial for trial in read_protocol(path, self._format) if trial.subset == self.subset]
        return TrialSet(trials, locate(trials, folders, ".flac"), path)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there is the audio folder of the track, or its keys."""
        name = f"ASVspoof2021_{cls._track}_eval"
        names = (root.name == name, (root / name).is_dir(), (root / "keys" / cls._track).is_dir())
        return any(names) or any(root.glob(f"*part0[0-9]/{name}"))


class LA2021(_Keys2021):
    """ASVspoof 2021 LA: `ASVspoof2021_LA_eval/flac` and `keys/LA/{CM,ASV}`."""

    title, choice = "ASVspoof 2021 LA", "la2021"
    needs = "the folder that holds ASVspoof2021_LA_eval/ and keys/"
    published: ClassVar = {"eval": (148_176, 14_816)}
    codecs = LA_CODECS
    _track, _format = "LA", LA_2021

    def asv_files(self, set_name: str) -> tuple[Path, ...]:
        """ASV metadata and scores lie beside the keys of the countermeasure."""
        folder = self.protocol(set_name).parents[1] / "ASV"
        scores = sorted(folder.glob("*/score.txt"))
        return folder / "trial_metadata.txt", scores[0] if scores else folder / "ASVtorch_kaldi" / "score.txt"

    def asv_scores(self, set_name: str) -> pd.DataFrame:
        """Read the ASV scores of the chosen subset."""
        table = read_2021_asv_scores(*self.asv_files(set_name))
        return table[table["subset"] == self.subset]


class DF2021(_Keys2021):
    """ASVspoof 2021 DF: `ASVspoof2021_DF_eval/flac`, merged or in its four parts, and `keys/DF/CM`; no ASV scores."""

    title, choice = "ASVspoof 2021 DF", "df2021"
    needs = "the folder that holds ASVspoof2021_DF_eval/ (or its parts ...part00/ to ...part03/) and keys/"
    published: ClassVar = {"eval": (533_928, 14_869)}
    codecs = DF_CODECS
    _track, _format = "DF", DF_2021
