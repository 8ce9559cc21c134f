"""The DataModule: mixtures and their sources from a corpus in its layout, and mixtures drawn anew for training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from audiolab.audio.files import AudioFiles
from audiolab.build import check_signature
from audiolab.errors import InputError
from audiolab.preflight.findings import Finding
from audiolab.tasks.separation.contents import examine_mixtures
from audiolab.tasks.separation.corpora import open_corpus
from audiolab.tasks.separation.corpora.base import MixtureSet, Source
from audiolab.tasks.separation.dynamic import DynamicMixing, DynamicMixtures, SourcePool, read_sources
from audiolab.tasks.separation.mixtures import Mixtures, Short
from audiolab.training.data import Augment, SpeechData
from audiolab.training.items import Utterances

SETS = ("train", "dev", "test")


class SeparationData(SpeechData):
    """Sets train, dev and test of the corpus at `root` in a `layout`, whose options are in `variant`.

    `sets` names the parts of the corpus that make up each set. Audio of any rate and format is read as mono at
    `sample_rate_hz`. Training items are windows of `crop_samples`, mixed anew as `dynamic` says (`DynamicMixing`);
    dev and test items are whole mixtures, or their first `max_length_s`, as stored or defined, with nothing drawn.
    `short`, `level_dbfs`, and what is done about silence: see `Mixtures`. With `overfit` the first so many training
    mixtures are train and dev. `unseen_speakers` refuses test sets with talkers of the training set.
    `augment` may only add to the mixture, as noise does: the sources stay as they are.
    """

    options_of_the_run = ("eval_batch_size", "sample_rate_hz", "level_dbfs")
    options_without_effect = ("num_workers", "in_memory")

    def __init__(
        self,
        layout: str,
        root: str,
        variant: dict[str, Any],
        num_speakers: int,
        sample_rate_hz: Literal[8000, 16000],
        sets: dict[str, list[str]],
        crop_samples: int,
        short: Short,
        level_dbfs: float | None,
        dynamic: dict[str, Any],
        max_length_s: float | None,
        overfit: int | None,
        unseen_speakers: bool,
        in_memory: bool,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        on_bad_audio: Literal["raise", "skip"],
        max_bad_audio: float,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if eval_batch_size != 1:
            raise InputError(
                f"data.eval_batch_size={eval_batch_size} does not fit: dev and test mixtures are whole and their "
                "lengths differ, give 1"
            )
        if augment is not None and not getattr(augment, "only_adds", False):
            steps = getattr(augment, "steps", {type(augment).__name__: augment})
            changing = [name for name, step in steps.items() if not getattr(step, "only_adds", False)]
            raise InputError(
                f"augment= has {', '.join(changing)}, which would change the talkers in the mixture and not in its "
                "sources: give augment=separation/noise or augment=separation/none, or a chain that only adds"
            )
        super().__init__(batch_size, eval_batch_size, num_workers, on_bad_audio, max_bad_audio, seed, augment)
        _check_options(num_speakers, crop_samples, max_length_s, overfit, sets)
        check_signature(DynamicMixing, dynamic, "data.dynamic")
        self.dynamic = DynamicMixing(**dynamic)
        self.num_speakers, self.sample_rate_hz = num_speakers, sample_rate_hz
        self.layout, self.root, self.variant, self.sets = layout, root, variant, sets
        self.crop_samples, self.short, self.level_dbfs = crop_samples, short, level_dbfs
        self.max_length_s, self.overfit, self.unseen_speakers = max_length_s, overfit, unseen_speakers
        self.files = AudioFiles(sample_rate_hz, in_memory=in_memory)
        self.in_memory = in_memory
        self.val_sets, self.test_sets = ["dev"], ["test"]
        self._listed: dict[str, MixtureSet] = {}
        self._sets: dict[str, Utterances] = {}
        self._checked: set[str] = set()

    def setup(self, stage: str) -> None:
        """Read the lists that a stage needs; `fit` reads the test set too, where there is one."""
        if stage == "fit":
            self._chosen_sets()
        needed = {"fit": ["train", *self.val_sets, *self.test_sets], "validate": self.val_sets, "test": self.test_sets}
        for name in needed.get(stage, []):
            self.listed(name)
        self._check_files()
        for name in needed.get(stage, []):
            self.utterances(name)

    def _chosen_sets(self) -> None:
        for name, why in (("train", "to train on"), ("dev", "on which the best epoch is chosen")):
            if not self.sets.get(name) and not (self.overfit and name == "dev"):
                raise InputError(f"data.sets has no {name} set, {why}: name parts of the corpus in data.sets.{name}")
        self.test_sets = [name for name in self.test_sets if self.sets.get(name)]

    def listed(self, set_name: str) -> MixtureSet:
        """Return the mixtures of a set as its parts list them, read once."""
        if set_name not in self._listed:
            self._listed[set_name] = self._read(set_name)
        return self._listed[set_name]

    def _read(self, set_name: str) -> MixtureSet:
        if self.overfit and set_name in ("train", "dev"):
            listed = self.listed("train") if set_name == "dev" else self._parts("train")
            return listed._replace(mixtures=listed.mixtures[: self.overfit])
        return self._parts(set_name)

    def _parts(self, set_name: str) -> MixtureSet:
        if not self.sets.get(set_name):
            raise InputError(
                f"data.sets has no set {set_name}: it has {', '.join(name for name in SETS if self.sets.get(name))}"
            )
        corpus = open_corpus(self.layout, self.root, self.num_speakers, self.sample_rate_hz, self.variant)
        found = [corpus.read(part) for part in self.sets[set_name]]
        return found[0]._replace(mixtures=[mixture for part in found for mixture in part.mixtures])

    def utterances(self, set_name: str) -> Utterances:
        """Return a set."""
        if set_name not in self._sets:
            listed = self.listed(set_name)
            self._check_files()
            training = set_name == "train" and "train" not in self.test_sets
            most = None if self.max_length_s is None else round(self.max_length_s * self.sample_rate_hz)
            mixtures = Mixtures(
                listed,
                self.files,
                self.level_dbfs,
                crop_samples=self.crop_samples if training else None,
                short=self.short,
                most_samples=most,
            )
            self._sets[set_name] = self._dynamic(mixtures) if training and self._mixes else mixtures
        return self._sets[set_name]

    @property
    def _mixes(self) -> bool:
        return self.dynamic.p > 0 and not self.overfit

    def _dynamic(self, mixtures: Mixtures) -> DynamicMixtures:
        return DynamicMixtures(mixtures, self.dynamic, SourcePool(self._sources(mixtures.listed), self.num_speakers))

    @property
    def num_files(self) -> int:
        """Audio files of all sets that have been read, each once."""
        return len({path for listed in self._listed.values() for m in listed.mixtures for path in m.files})

    def context(self, set_name: str) -> dict[str, Any]:
        """Return the number of talkers and the sampling rate."""
        return {"num_speakers": self.num_speakers, "sample_rate_hz": self.sample_rate_hz}

    def choose_test_sets(self, names: list[str]) -> None:
        """Test on the named sets; train among them is judged on whole listed mixtures, as the others."""
        there = [name for name in SETS if self.sets.get(name)]
        for name in names:
            if name not in there:
                raise InputError(f"--set {name} is unknown: data.sets has {', '.join(there)}")
        self.test_sets = names

    @property
    def listed_sets(self) -> list[str]:
        """The sets that have parts; with `overfit` dev is train."""
        return [name for name in SETS if self.sets.get(name) and not (self.overfit and name == "dev")]

    def listing(self, set_name: str) -> pd.DataFrame:
        """Return the files of a set: mixtures, without a speaker, and sources with speaker and sex.

        With dynamic mixing from `dynamic.sources` those are listed too.
        """
        listed = self.listed(set_name)
        rows = [(m.id, m.file, "", "") for m in listed.mixtures if m.file]
        rows += [(m.id, s.file, s.speaker, s.sex) for m in listed.mixtures for s in m.sources]
        if set_name == "train" and self._mixes and self.dynamic.sources:
            rows += [(s.file, s.file, s.speaker, s.sex) for s in self._sources(listed)]
        table = pd.DataFrame(rows, columns=["id", "file", "speaker", "sex"])
        return table[[name for name in table if not table[name].isin(["", "-"]).all()]]

    @property
    def sets_of_unseen_speakers(self) -> list[str]:
        """The test sets, unless that is switched off."""
        return self.test_sets if self.unseen_speakers else []

    def check_contents(self) -> list[Finding]:
        """Look whether mixtures and sources belong together, at their levels, and who talks."""
        return [
            finding
            for name, listed in self._listed.items()
            if not (self.overfit and name == "dev")
            for finding in examine_mixtures(name, listed, self.sample_rate_hz)
        ]

    def faster_loading(self) -> list[str]:
        """Return the options that could make batches come faster; decoding once is the first of them."""
        return [*([] if self.in_memory else ["data.in_memory=true"]), *super().faster_loading()]

    def _sources(self, listed: MixtureSet) -> list[Source]:
        if self.dynamic.sources:
            return read_sources(Path(self.dynamic.sources).expanduser())
        return [source for mixture in listed.mixtures for source in mixture.sources]

    def _check_files(self) -> None:
        """Look for the files of the sets that were read since the last time, all before anything is said."""
        new = {name: listed for name, listed in self._listed.items() if name not in self._checked}
        self._checked |= new.keys()
        files = {name: [(path, m.id) for m in listed.mixtures for path in m.files] for name, listed in new.items()}
        if "train" in files and self._mixes and self.dynamic.sources:
            files["train"] += [(source.file, source.file) for source in self._sources(new["train"])]
        self.leave_out_missing(files)


def _check_options(
    num_speakers: int, crop_samples: int, max_length_s: float | None, overfit: int | None, sets: Mapping[str, object]
) -> None:
    if not 2 <= num_speakers <= 9:
        raise InputError(f"data.num_speakers={num_speakers} does not fit: give a number from 2 to 9")
    if crop_samples < 1 or (max_length_s is not None and max_length_s <= 0) or (overfit is not None and overfit < 1):
        raise InputError(
            f"data.crop_samples={crop_samples}, data.max_length_s={max_length_s}, data.overfit={overfit}: give "
            "positive numbers, or null where there is to be none"
        )
    for name, parts in sets.items():
        if name not in SETS or not isinstance(parts, list):
            raise InputError(
                f"data.sets.{name}={parts} does not fit: the sets are {', '.join(SETS)}, each a list of parts of the "
                "corpus as in data.sets.train=[train-100,train-360]"
            )
