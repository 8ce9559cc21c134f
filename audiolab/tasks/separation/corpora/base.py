"""What a mixture is, and what every corpus reader answers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from audiolab.errors import InputError

log = logging.getLogger(__name__)

Length = Literal["min", "max"]
UNKNOWN = "-"


class Source(NamedTuple):
    """One talker of a mixture: the file, the gain of a mixture that is not stored, who talks, and F or M."""

    file: str
    gain: float = 1.0
    speaker: str = UNKNOWN
    sex: str = UNKNOWN


class Mixture(NamedTuple):
    """A mixture: stored in `file`, or, without one, the sum of its sources (and noise) at their gains."""

    id: str
    file: str | None
    sources: tuple[Source, ...]
    noise: Source | None = None

    @property
    def files(self) -> list[str]:
        """The audio files that it is read from; noise of a stored mixture is in the mixture already."""
        noise = [self.noise.file] if self.noise and not self.file else []
        return [*([self.file] if self.file else []), *(source.file for source in self.sources), *noise]

    @property
    def genders(self) -> str:
        """The sexes of its talkers as in `MF`, males first; `?` where one is not known."""
        sexes = sorted((source.sex for source in self.sources), reverse=True)
        return "".join(sexes) if set(sexes) <= {"F", "M"} else "?"

    @property
    def speakers(self) -> str:
        """Its talkers as in `1992/322`, in the order of the sources."""
        return "/".join(source.speaker for source in self.sources)


class MixtureSet(NamedTuple):
    """Mixtures, and the list or folder that they are from.

    Those that are not stored are as long as their shortest source (`min`) or their longest (`max`), and each scaled
    source is rounded to multiples of so many 16-bit `steps` (None: not at all). In `noisy` ones there is more to hear
    than the sources.
    """

    mixtures: list[Mixture]
    source: Path
    length: Length = "min"
    steps: int | None = None
    noisy: bool = False


@cache
def warn_once(sentence: str) -> None:
    """Warn, once a process: a run reads its lists twice, first so that their faults come before anything is written."""
    log.warning(sentence)


class Corpus(ABC):
    """A corpus in its layout under `root`, which consists of parts such as `train-100`; read part by part."""

    title: ClassVar[str]
    choice: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, root: Path, num_speakers: int, sample_rate_hz: int) -> None:
        self.root, self.num_speakers, self.sample_rate_hz = root, num_speakers, sample_rate_hz
        if not root.exists():
            raise InputError(f"data.root={root} does not exist: give {self.needs}")

    @property
    @abstractmethod
    def parts(self) -> list[str]:
        """The parts that are there."""

    @abstractmethod
    def read(self, part: str) -> MixtureSet:
        """Read the mixtures of a part; files that are missing have the path where they should be."""

    def warn_of_unnamed(self, named: Collection[str]) -> None:
        """Warn of what is in none of the `named` parts, where that is more likely a slip than a choice."""
        return  # of a published corpus one takes what one wants

    @classmethod
    @abstractmethod
    def is_at(cls, root: Path) -> bool:
        """Whether a folder looks like this layout."""

    def wrong_root(self, looked_for: str) -> InputError:
        """Say that the root is not in this layout."""
        return InputError(
            f"data.root={self.root} is not in the {self.title} layout: it has no {looked_for}; give {self.needs}"
        )

    def check_num_sources(self, columns: Sequence[str], where: Path) -> None:
        """Raise InputError where a list or folder has another number of sources than the run has speakers."""
        if len(columns) != self.num_speakers:
            raise InputError(
                f"{where} has {len(columns)} sources a mixture ({', '.join(columns) or 'none'}) and "
                f"data.num_speakers={self.num_speakers}: set data.num_speakers={max(2, len(columns))} and a model for "
                "as many, or choose other data"
            )
