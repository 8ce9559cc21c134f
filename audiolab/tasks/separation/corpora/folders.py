"""Mixtures and sources in folders beside one another, under the same file names: own data, and WSJ0-2mix."""

from __future__ import annotations

import re
from pathlib import Path

import soundfile

from audiolab.audio.find import names_in
from audiolab.errors import InputError
from audiolab.tasks.separation.corpora.base import Corpus, Length, Mixture, MixtureSet, Source


class Folders(Corpus):
    """Own data: `<part>/mix`, `<part>/s1`, `<part>/s2` ..., the same file names in each; a part such as `train`."""

    title, choice = "folders", "folders"
    needs = "the folder that holds <part>/mix, <part>/s1, <part>/s2 ... with the same file names in each"
    mixture = "mix"

    @property
    def base(self) -> Path:
        """The folder of the parts."""
        return self.root

    @property
    def parts(self) -> list[str]:
        """The folders that have mixtures."""
        return sorted(name for name in names_in(self.base) if (self.base / name / self.mixture).is_dir())

    def read(self, part: str) -> MixtureSet:
        """List the mixtures of a part."""
        if part not in self.parts:
            raise self.wrong_root(f"{(self.base / part / self.mixture).relative_to(self.root)}/")
        return MixtureSet(self.list_folders(self.base / part, self.mixture), self.base / part)

    def list_folders(self, folder: Path, mixture: str) -> list[Mixture]:
        """Return the mixtures in `folder/mixture` with their sources in `folder/s1`, `folder/s2` ...

        Raises InputError for missing folders, other numbers of them, and names that are in one of them only.
        """
        found = sorted(name for name in names_in(folder) if re.fullmatch(r"s[1-9]", name) and (folder / name).is_dir())
        wanted = [f"s{number}" for number in range(1, self.num_speakers + 1)]
        for name in wanted:
            if name not in found and len(found) < self.num_speakers:
                raise InputError(
                    f"{folder} has no folder {name}/: put the sources of its mixtures there, under the names of "
                    f"{mixture}/, or set data.num_speakers to the sources that there are"
                )
        self.check_num_sources(found, folder)
        names = {kind: _audio_in(folder / kind) for kind in (mixture, *wanted)}
        for kind in wanted:
            missing, more = names[mixture] - names[kind], names[kind] - names[mixture]
            if missing or more:
                name, has, lacks = (
                    (min(missing), mixture, kind) if missing else (min(more), kind, mixture)
                )  # one of them is enough to find the others
                raise InputError(
                    f"{folder / has / name} has no counterpart in {lacks}/ ({len(missing | more)} such files): a "
                    f"mixture and its sources need the same file name in {mixture}/, {', '.join(wanted)}"
                )
        if not names[mixture]:
            raise InputError(f"{folder / mixture} has no audio files: complete the corpus")
        return [self._mixture(folder, mixture, wanted, name) for name in sorted(names[mixture])]

    def _mixture(self, folder: Path, mixture: str, kinds: list[str], name: str) -> Mixture:
        id_ = name.rpartition(".")[0]
        speakers = self.speakers_of(id_)
        sources = (Source(f"{folder}/{kind}/{name}", speaker=who) for kind, who in zip(kinds, speakers, strict=True))
        return Mixture(id_, f"{folder}/{mixture}/{name}", tuple(sources))

    def speakers_of(self, id_: str) -> list[str]:
        """Return the talkers of a mixture as its name tells; `-` where it does not."""
        return ["-"] * self.num_speakers

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether a part has mix/ and s1/."""
        return any((root / name / "mix").is_dir() and (root / name / "s1").is_dir() for name in names_in(root))


class WSJ0Mix(Folders):
    """WSJ0-2mix and -3mix as the published scripts write them: `2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}`.

    `length` is the version whose mixtures are as long as the shortest (`min`) or the longest source (`max`).
    """

    title, choice = "WSJ0-mix", "wsj0_mix"
    needs = "the folder that holds 2speakers/ or 3speakers/, or a folder below with wav8k/min/tr/mix"

    def __init__(self, root: Path, num_speakers: int, sample_rate_hz: int, length: Length) -> None:
        super().__init__(root, num_speakers, sample_rate_hz)
        self.length = length

    @property
    def base(self) -> Path:
        """The folder that holds tr, cv and tt."""
        rate = f"wav{self.sample_rate_hz // 1000}k"
        tails = (f"{self.num_speakers}speakers/{rate}/{self.length}", f"{rate}/{self.length}", self.length, "")
        for folder in (self.root / tail for tail in tails):
            if any((folder / part / self.mixture).is_dir() for part in ("tr", "cv", "tt")):
                return folder
        there = sorted(path.relative_to(self.root).as_posix() for path in self.root.glob("*speakers/wav*/m*"))
        hint = f" (there are {', '.join(there)}: set data.sample_rate_hz, data.variant.length)" if there else ""
        raise self.wrong_root(f"{tails[0]}/tr/mix{hint}")

    def speakers_of(self, id_: str) -> list[str]:
        """Return the first three letters of each utterance in a name such as 01aa010k_1.3053_01po0310_-1.3053."""
        utterances = re.findall(r"(?:^|_)([0-9a-z]{3})[0-9a-z]{5}(?=_)", id_)
        return utterances if len(utterances) == self.num_speakers else super().speakers_of(id_)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there are 2speakers/ or 3speakers/."""
        return any((root / f"{number}speakers").is_dir() for number in (2, 3))


def _audio_in(folder: Path) -> set[str]:
    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".aif", ".oga"}
    found = (name for name in names_in(folder) if not name.startswith("."))
    return {name for name in found if f".{name.rpartition('.')[2].lower()}" in suffixes}
