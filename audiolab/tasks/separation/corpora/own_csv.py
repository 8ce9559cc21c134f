"""A list of mixtures of one's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from audiolab.errors import InputError
from audiolab.tasks.separation.corpora.base import UNKNOWN, Corpus, Length, Mixture, MixtureSet, Source, warn_once
from audiolab.training.text_files import fail, finite_number, read_csv

USUAL_PARTS = ("train", "dev", "test")

# LibriMix' names of columns are understood too.
_OTHER_NAMES = {"mixture_ID": "id", "mixture_path": "mixture", "noise_path": "noise", "noise_gain": "gain_noise"} | {
    other: own
    for n in range(1, 10)
    for other, own in (
        (f"source_{n}_path", f"source_{n}"),
        (f"source_{n}_gain", f"gain_{n}"),
        (f"speaker_{n}_ID", f"speaker_{n}"),
        (f"speaker_{n}_sex", f"sex_{n}"),
    )
}


class OwnCsv(Corpus):
    """A CSV file with `source_1,source_2[,source_3]` and perhaps `mixture,id,set,speaker_1,sex_1,gain_1 ...`.

    Paths are relative to it. Rows without `mixture` are mixed while reading: sources at their gains (1 where there is
    no `gain_1` ...), of the `length` of the shortest or longest. `set` names the parts; all is `test` without it.
    """

    title, choice = "CSV", "csv"
    needs = "a CSV file with the columns mixture,source_1,source_2, or source_1,source_2 alone"

    def __init__(self, root: Path, num_speakers: int, sample_rate_hz: int, length: Length) -> None:
        super().__init__(root, num_speakers, sample_rate_hz)
        self.length = length
        if not root.is_file():
            raise self.wrong_root("list, it is a folder")

    @property
    def parts(self) -> list[str]:
        """The values of the column `set`."""
        return list(self._parts)

    def read(self, part: str) -> MixtureSet:
        """Keep the rows of a part."""
        if part not in self._parts:
            raise InputError(
                f"{self.root} has no rows with the set {part}, it has {', '.join(self.parts)}: mark some in a column "
                "set, or name others in data.sets"
            )
        return MixtureSet(self._parts[part], self.root, self.length)

    def warn_of_unnamed(self, named: Collection[str]) -> None:
        """Warn of rows that no set takes; of the usual names it is no slip that a set is left out."""
        for part, mixtures in self._parts.items():
            if part not in named and part not in USUAL_PARTS:
                close = difflib.get_close_matches(part, {*named, *USUAL_PARTS}, n=1)
                hint = f"did you mean {close[0]}?" if close else "name it in data.sets to use them"
                warn_once(f"{len(mixtures)} rows of {self.root} have the set {part}, which is not in data.sets: {hint}")

    @cached_property
    def _parts(self) -> dict[str, list[Mixture]]:
        numbers = range(1, self.num_speakers + 1)
        optional = ["mixture", "id", "set", "noise", "gain_noise"]
        optional += [f"{what}_{n}" for what in ("source", "speaker", "sex", "gain") for n in range(1, 10)]
        needed = [f"source_{n}" for n in numbers]
        example = f"mixture,{','.join(needed)} (or without mixture)"
        rows = list(read_csv(self.root, needed, optional, _OTHER_NAMES, example))
        columns = list(rows[0][1])
        self.check_num_sources([name for name in columns if re.fullmatch(r"source_[1-9]", name)], self.root)
        parts: dict[str, list[Mixture]] = {}
        ids: dict[str, int] = {}
        for line, row in rows:
            mixture = self._mixture(line, row, columns)
            if mixture.id in ids:
                fault = f"{mixture.id} names line {ids[mixture.id]} too: give a column id with a name for each mixture"
                fail(self.root, line, columns.index("id") if "id" in columns else 0, fault)
            ids[mixture.id] = line
            parts.setdefault(row.get("set") or "test", []).append(mixture)
        return parts

    def _mixture(self, line: int, row: dict[str, str], columns: list[str]) -> Mixture:
        def source(name: str, who: str) -> Source:
            given = row.get(f"gain_{who}")
            column = f"gain_{who}"
            gain = finite_number(self.root, line, columns.index(column), given, column) if given else 1.0
            sex = row.get(f"sex_{who}", "")[:1].upper() or UNKNOWN
            return Source(str(self.root.parent / row[name]), gain, row.get(f"speaker_{who}") or UNKNOWN, sex)

        sources = tuple(source(f"source_{n}", str(n)) for n in range(1, self.num_speakers + 1))
        mixture = row.get("mixture")
        if mixture and any(row.get(f"gain_{n}") for n in range(1, self.num_speakers + 1)):
            fail(self.root, line, columns.index("mixture"), "a mixture that is stored takes no gains: leave one out")
        named = [Path(source.file).stem for source in sources]
        id_ = row.get("id") or (Path(mixture).stem if mixture else "_".join(named))
        noise = source("noise", "noise") if row.get("noise") and not mixture else None
        return Mixture(id_, str(self.root.parent / mixture) if mixture else None, sources, noise)

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether it is a file that ends in .csv."""
        return root.is_file() and root.suffix == ".csv"
