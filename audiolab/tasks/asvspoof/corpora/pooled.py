"""Several corpora as one: trained on together, evaluated with one threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import pandas as pd

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.corpora.base import Corpus, TrialSet
from audiolab.tasks.asvspoof.protocols import Trial, require_both_classes


class PooledCorpora:
    """Corpora by name. Sets: train and dev of those that have them, and `pooled`, the eval sets of all together.

    Ids, speakers and attacks of a trial carry its corpus as in `la19:A07`, so that nothing collides.
    """

    test_set: ClassVar[str] = "pooled"
    codecs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, corpora: Mapping[str, Corpus]) -> None:
        for name in corpora:
            if not name or set(name) & set(":/@"):
                raise InputError(f"data.corpora: {name!r} cannot name a corpus: use letters, digits, '_' and '-'")
        if not corpora:
            raise InputError(
                "data.corpora is empty: give at least one, as in "
                "'data.corpora={la19:{layout:la2019,root:/corpora/LA},itw:{layout:in_the_wild,root:/corpora/itw}}'"
            )
        self.corpora = dict(corpora)
        self._read: dict[str, dict[str, TrialSet]] = {}

    @property
    def title(self) -> str:
        """The corpora's names, for messages."""
        return " + ".join(self.corpora)

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """train and dev where a corpus has them, pooled where one has an eval set."""
        there = {name for corpus in self.corpora.values() for name in corpus.sets}
        return tuple(shown for shown, name in _SETS.items() if name in there)

    def members(self, set_name: str) -> dict[str, TrialSet]:
        """Return the sets of the corpora that a set consists of, with ids as published."""
        if set_name not in self._read:
            name = _SETS[set_name]
            self._read[set_name] = {key: c.read(name) for key, c in self.corpora.items() if name in c.sets}
            for found in self._read[set_name].values() if set_name != "train" else ():
                require_both_classes(found.trials, str(found.source))
        return self._read[set_name]

    def read(self, set_name: str) -> TrialSet:
        """Concatenate the sets of all corpora."""
        members = self.members(set_name)
        trials = [_prefixed(trial, name) for name, found in members.items() for trial in found.trials]
        paths = [path for found in members.values() for path in found.paths]
        return TrialSet(trials, paths, next(iter(members.values())).source)

    def size_differences(self, set_name: str, trials: Sequence[Trial]) -> list[str]:
        """Say in words where a corpus has another size than the published one."""
        members = self.members(set_name)
        return [
            sentence
            for name, found in members.items()
            for sentence in self.corpora[name].size_differences(_SETS[set_name], found.trials)
        ]


_SETS = {"train": "train", "dev": "dev", "pooled": "eval"}


def table_of(pooled: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of one corpus of a pooled table, with ids, speakers and attacks as published."""
    table = pooled[pooled["corpus"] == name].drop(columns="corpus")
    return table.assign(**{key: table[key].str.removeprefix(f"{name}:") for key in ("id", "speaker", "attack")})


def _prefixed(trial: Trial, name: str) -> Trial:
    attack = trial.attack if trial.attack == "-" else f"{name}:{trial.attack}"
    return trial._replace(id=f"{name}:{trial.id}", speaker=f"{name}:{trial.speaker}", attack=attack, corpus=name)
