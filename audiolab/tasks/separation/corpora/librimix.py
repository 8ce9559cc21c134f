"""LibriMix: mixtures that are stored, or only defined by the metadata and mixed while reading."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from audiolab.audio.find import names_in
from audiolab.errors import InputError
from audiolab.tasks.separation.corpora.base import UNKNOWN, Length, Mixture, MixtureSet, Source, warn_once
from audiolab.tasks.separation.corpora.folders import Folders
from audiolab.training.text_files import finite_number, read_csv

Kind = Literal["mix_clean", "mix_both"]
Stored = Literal["auto", "stored", "metadata"]
# What the metadata call the parts whose folders have the names on the left.
LIBRISPEECH = {"train-100": "train-clean-100", "train-360": "train-clean-360", "dev": "dev-clean", "test": "test-clean"}


class LibriMix(Folders):
    """`Libri2Mix/wav16k/min/{train-100,dev,test}/{mix_clean,mix_both,s1,s2}` and the metadata that define them.

    `stored`: `stored` reads the mixtures in these folders, `metadata` mixes the rows of
    `metadata/Libri2Mix/libri2mix_<part>.csv` while reading, `auto` does that for parts that are not stored. `speech`
    and `noise` are the folders that paths in such rows start from (None: LibriSpeech/ and wham_noise/ under the root),
    `metadata` is the folder with Libri2Mix/ (None: metadata/ under the root). For `steps` see `MixtureSet`.
    """

    title, choice = "LibriMix", "librimix"
    needs = "the folder that holds Libri2Mix/ or Libri3Mix/, with metadata/ and LibriSpeech/ where it is not stored"

    def __init__(
        self,
        root: Path,
        num_speakers: int,
        sample_rate_hz: int,
        kind: Kind,
        length: Length,
        stored: Stored,
        metadata: str | None,
        speech: str | None,
        noise: str | None,
        steps: int | None,
    ) -> None:
        super().__init__(root, num_speakers, sample_rate_hz)
        self.mixture, self.length, self.stored, self.steps = kind, length, stored, steps
        if steps is not None and steps < 1:
            raise InputError(f"data.variant.steps={steps} does not fit: give a whole number from 1 up, or null")
        self.name = f"Libri{num_speakers}Mix"
        self.top = root.parent if root.name == self.name else root
        self.metadata = (Path(metadata).expanduser() if metadata else self.top / "metadata") / self.name
        self.speech = Path(speech).expanduser() if speech else self.top / "LibriSpeech"
        self.noise = Path(noise).expanduser() if noise else self.top / "wham_noise"
        if not (self.top / self.name).is_dir() and not self.metadata.is_dir():
            others = [f"Libri{n}Mix" for n in range(2, 6) if (root / f"Libri{n}Mix").is_dir()]
            hint = f" (it has {others[0]}/: set data.num_speakers={others[0][5]})" if others else ""
            raise self.wrong_root(f"{self.name}/{hint}")

    @cached_property
    def base(self) -> Path:
        """The folder of the stored parts, at the rate wanted or, with a warning, at another one."""
        wanted = f"wav{self.sample_rate_hz // 1000}k"
        top = self.top / self.name
        rates = sorted((name for name in names_in(top) if name.startswith("wav")), key=lambda name: (len(name), name))
        rate = wanted if wanted in rates or not rates else rates[-1]
        if rate != wanted:
            warn_once(f"{top} has no {wanted}: the files of {rate} are resampled while reading")
        folder = top / rate / self.length
        if rates and not folder.is_dir() and (self.stored == "stored" or not self._defined_parts):
            there = sorted(name for name in names_in(top / rate) if name in ("min", "max"))
            raise InputError(
                f"{top / rate} has no {self.length}/, it has {', '.join(there) or 'neither min/ nor max/'}: set "
                "data.variant.length"
            )
        return folder

    @property
    def parts(self) -> list[str]:
        """The parts that are stored or defined."""
        return list(dict.fromkeys([*self._stored_parts, *self._defined_parts]))

    @property
    def _stored_parts(self) -> list[str]:
        if self.stored == "metadata" or not (self.top / self.name).is_dir():
            return []
        listed = [name for name in names_in(self.base) if self._list_of(name).is_file()]
        return sorted({*super().parts, *listed})

    @property
    def _defined_parts(self) -> list[str]:
        if self.stored == "stored":
            return []
        prefix, found = f"{self.name.lower()}_", names_in(self.metadata)
        names = [n.removeprefix(prefix).removesuffix(".csv") for n in sorted(found) if n.startswith(prefix)]
        folder_of = {name: folder for folder, name in LIBRISPEECH.items()}
        return [folder_of.get(name, name) for name in names if not name.endswith("_info")]

    def read(self, part: str) -> MixtureSet:
        """Read a part: its own list where there is one, else its folders, else its definition."""
        if part in self._stored_parts:
            path = self._list_of(part)
            if path.is_file():
                mixtures = self._listed(part, path)
            else:
                path = self.base / part
                mixtures = self._with_speakers(part, self.list_folders(path, self.mixture))
        elif part in self._defined_parts:
            path, mixtures = self._definition_of(part), self.defined(part)
        else:
            there = f"there are {', '.join(self.parts)}" if self.parts else "there are none"
            raise InputError(f"{self.root} has no part {part} of {self.name} ({self.mixture}): {there} (data.sets)")
        return MixtureSet(mixtures, path, self.length, self.steps, noisy=self.mixture == "mix_both")

    def defined(self, part: str) -> list[Mixture]:
        """Return the mixtures of a part as the metadata define them, whether they are stored or not."""
        path = self._definition_of(part)
        needed = [f"source_{n}_{what}" for n in range(1, self.num_speakers + 1) for what in ("path", "gain")]
        noisy = self.mixture == "mix_both"
        rows = list(read_csv(path, ["mixture_ID", *needed, *(("noise_path", "noise_gain") if noisy else ())]))
        columns = list(rows[0][1])
        self.check_num_sources([name for name in columns if name.startswith("source_") and "_path" in name], path)
        mixtures = []
        for line, row in rows:

            def source(name: str, folder: Path, row: dict[str, str] = row, line: int = line) -> Source:
                column = columns.index(f"{name}_gain")
                gain = finite_number(path, line, column, row[f"{name}_gain"], f"{name}_gain")
                return Source(str(folder / row[f"{name}_path"]), gain)

            sources = tuple(source(f"source_{n}", self.speech) for n in range(1, self.num_speakers + 1))
            mixtures.append(Mixture(row["mixture_ID"], None, sources, source("noise", self.noise) if noisy else None))
        return self._with_speakers(part, mixtures)

    def _listed(self, part: str, path: Path) -> list[Mixture]:
        wanted = [f"source_{number}_path" for number in range(1, self.num_speakers + 1)]
        rows = [row for _, row in read_csv(path, ["mixture_ID", "mixture_path", *wanted])]
        self.check_num_sources([n for n in rows[0] if n.startswith("source_") and n.endswith("_path")], path)
        found = {
            column: self._moved([row[column] for row in rows], part, kind)
            for column, kind in zip(
                ["mixture_path", *wanted],
                [self.mixture, *(f"s{n}" for n in range(1, self.num_speakers + 1))],
                strict=True,
            )
        }
        mixtures = [
            Mixture(row["mixture_ID"], found["mixture_path"][i], tuple(Source(found[name][i]) for name in wanted))
            for i, row in enumerate(rows)
        ]
        return self._with_speakers(part, mixtures)

    def _moved(self, paths: Sequence[str], part: str, kind: str) -> list[str]:
        """Return where listed files lie here; published lists have the paths of the machine that made them."""
        tops = f"/{self.name}/"

        def below_top(path: str) -> str:
            return str(self.top / self.name / path.rpartition(tops)[2]) if tops in f"/{path}" else ""

        ways = (
            lambda path: below_top(f"/{path}"),
            lambda path: str(self.top / path),
            lambda path: f"{self.base / part / kind}/{path.replace(chr(92), '/').rpartition('/')[2]}",
        )
        way = next((way for way in ways if (first := way(paths[0])) and Path(first).is_file()), ways[-1])
        return [way(path) for path in paths]

    def _list_of(self, part: str) -> Path:
        return self.base / "metadata" / f"mixture_{part}_{self.mixture}.csv"

    def _definition_of(self, part: str, suffix: str = "") -> Path:
        names = (part, LIBRISPEECH.get(part, part))
        paths = [self.metadata / f"{self.name.lower()}_{name}{suffix}.csv" for name in names]
        return next((path for path in paths if path.is_file()), paths[-1])

    def _with_speakers(self, part: str, mixtures: list[Mixture]) -> list[Mixture]:
        """Add who talks, from the info list of the part where it is there, else from the ids."""
        path = self._definition_of(part, "_info")
        numbers = range(1, self.num_speakers + 1)
        told: dict[str, list[tuple[str, str]]] = {}
        if path.is_file():
            needed = [f"speaker_{n}_{what}" for n in numbers for what in ("ID", "sex")]
            for _, row in read_csv(path, ["mixture_ID", *needed]):
                told[row["mixture_ID"]] = [(row[f"speaker_{n}_ID"], row[f"speaker_{n}_sex"]) for n in numbers]
        return [
            mixture._replace(
                sources=tuple(
                    source._replace(speaker=speaker, sex=sex)
                    for source, (speaker, sex) in zip(
                        mixture.sources, told.get(mixture.id) or self._by_id(mixture.id), strict=True
                    )
                )
            )
            for mixture in mixtures
        ]

    def _by_id(self, id_: str) -> list[tuple[str, str]]:
        utterances = id_.split("_")
        speakers = [utterance.partition("-")[0] for utterance in utterances if "-" in utterance]
        known = len(speakers) == self.num_speakers == len(utterances)
        return [(speaker, UNKNOWN) for speaker in (speakers if known else [UNKNOWN] * self.num_speakers)]

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether there is a folder Libri2Mix/ or Libri3Mix/."""
        return any((root / f"Libri{number}Mix").is_dir() for number in (2, 3))
