"""Which mixtures are made of AISHELL-3: the section data.mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from audiolab.errors import InputError
from audiolab.tasks.separation.aishell3_lists import SUBSETS
from audiolab.tasks.separation.librimix_writer import SETS


@dataclass(frozen=True)
class MixtureOptions:
    """What is mixed; the section data.mixtures.

    `speakers` and `num_mixtures` are numbers for train, dev and test (speakers null: all that are left), drawn from
    speakers with at least `min_utterances` in the `subsets` of the corpus. An utterance shorter than `min_s` is
    continued by the next ones of its speaker (`join`) or left out (`skip`). `snr_db` are the bounds of the level of
    the first source over the others, `level_dbfs` is the RMS of every mixture.
    """

    seed: int
    subsets: list[str]
    speakers: dict[str, int | None]
    num_mixtures: dict[str, int]
    balance_genders: bool
    min_utterances: int
    min_s: float
    short: Literal["join", "skip"]
    snr_db: list[float]
    level_dbfs: float

    def __post_init__(self) -> None:
        if not self.subsets or not set(self.subsets) <= set(SUBSETS):
            raise InputError(f"data.mixtures.subsets={self.subsets} does not fit: give [train], [test] or [train,test]")
        for name, found in (("speakers", self.speakers), ("num_mixtures", self.num_mixtures)):
            if set(found) != set(SETS):
                raise InputError(f"data.mixtures.{name}={found} does not fit: give a number for train, dev and test")
        counts = [*self.num_mixtures.values(), *(num for num in self.speakers.values() if num is not None)]
        if min(counts) < 1 or self.min_s <= 0 or self.seed < 0:
            raise InputError("data.mixtures has a number that does not fit: give counts from 1 up, min_s above 0")
        if self.speakers["dev"] is None or self.speakers["test"] is None:
            raise InputError("data.mixtures.speakers: only train can be null, which takes all speakers that are left")
        if len(self.snr_db) != 2 or not -40 <= self.snr_db[0] <= self.snr_db[1] <= 40:
            raise InputError(
                f"data.mixtures.snr_db={self.snr_db} does not fit: give [lowest, highest] within -40 and 40"
            )
