"""The DataModule: one public corpus in its published layout, or several at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import pandas as pd

from audiolab.build import check_signature
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.asv_scores import facts_of, published_facts
from audiolab.tasks.asvspoof.conditions import ConditionTrials, check_conditions
from audiolab.tasks.asvspoof.corpora import open_corpus
from audiolab.tasks.asvspoof.corpora.base import Corpus
from audiolab.tasks.asvspoof.corpora.pooled import PooledCorpora, table_of
from audiolab.tasks.asvspoof.demo import prepare_demo_corpus
from audiolab.tasks.asvspoof.protocols import Trial, require_both_classes
from audiolab.tasks.asvspoof.trials import SpoofingTrials
from audiolab.training.data import Augment, SpeechData
from audiolab.training.items import Utterances

log = logging.getLogger(__name__)

AsvScores = Literal["auto", "require", "none", "asvspoof5"]
CONDITIONS = "conditions"


class SpoofingData(SpeechData):
    """Sets train, dev and eval of the corpus at `root` in a `layout`; `subset` is the part of 2021 LA or DF to judge.

    With layout `pooled`, `corpora` names several by their options `layout`, `root` and perhaps `subset`: train sets are
    concatenated, dev sets are, and the eval sets are judged together as the set `pooled` and each by itself. With
    `conditions`, the test set under each of them is the further set `conditions`.

    `crop_samples` is the length of training items, cut anew in each epoch with `random_crop`, else from the start as
    all others, whose length is `eval_samples` (None: the whole utterance, one
    at a time). `asv_scores`: `auto` gives t-DCF where the corpus has ASV scores and says so where they are not there,
    `require` refuses to go without, `none` does not look, a name takes the published rates of that corpus' ASV system.
    With `published_size`, a set of another size than the published one is told of.
    """

    options_of_the_run = ("eval_batch_size", "eval_samples")
    options_without_effect = ("num_workers", "in_memory")

    def __init__(
        self,
        layout: str,
        root: str | None,
        subset: str | None,
        corpora: dict[str, Any] | None,
        published_size: bool,
        conditions: list[str],
        crop_samples: int,
        random_crop: bool,
        eval_samples: int | None,
        in_memory: bool,
        asv_scores: AsvScores,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        on_bad_audio: Literal["raise", "skip"],
        max_bad_audio: float,
        feature_cache: str | None,
        feature_cache_dtype: Literal["float32", "float16"],
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if eval_samples is None and eval_batch_size != 1:
            raise InputError(
                f"data.eval_batch_size={eval_batch_size} with whole utterances (data.eval_samples=null): "
                "their lengths differ, set data.eval_batch_size=1 or a fixed data.eval_samples"
            )
        super().__init__(
            batch_size,
            eval_batch_size,
            num_workers,
            on_bad_audio,
            max_bad_audio,
            seed,
            augment,
            feature_cache,
            feature_cache_dtype,
        )
        check_conditions(conditions)
        self.corpus = _open(layout, root, subset, corpora)
        self.published_size, self.conditions = published_size, conditions
        self.crop_samples, self.random_crop, self.eval_samples = crop_samples, random_crop, eval_samples
        self.in_memory, self.asv_scores = in_memory, asv_scores
        self.val_sets, self.test_sets = ["dev"], [self.corpus.test_set]
        self._chosen: list[str] | None = None
        self._sets: dict[str, Utterances] = {}
        self._checked: set[str] = set()
        self._contexts: dict[str, dict[str, Any]] = {}

    @property
    def num_files(self) -> int:
        """Audio files of all sets that have been read."""
        return sum(len(trials) for trials in self._sets.values() if isinstance(trials, SpoofingTrials))

    @property
    def draws_windows(self) -> bool:
        """Whether training windows are cut anew in each epoch."""
        return self.random_crop

    def setup(self, stage: str) -> None:
        """Read and check the protocols that a stage needs; `fit` reads the test sets too."""
        there = self.corpus.sets
        if stage == "fit":
            self._require_training_sets()
        self.val_sets = [name for name in ("dev",) if name in there]
        own = [self.corpus.test_set] if self.corpus.test_set in there else []
        self.test_sets = self._chosen or own + ([CONDITIONS] if own and self.conditions else [])
        if stage == "test" and not self.test_sets:
            raise InputError(f"{self.corpus.title} has no eval set there: choose one with --set {there[-1]}")
        needed = {
            "fit": ["train", *self.val_sets, *self.test_sets],
            "validate": self.val_sets,
            "test": self.test_sets,
        }
        names = needed.get(stage, [])
        for name in names:
            if name not in (*self._sets, CONDITIONS):
                self._sets[name] = self._trials(name)
        self._check_files()
        for name in names:
            self.utterances(name)
            if name != "train":
                self.context(name)

    def choose_test_sets(self, names: list[str]) -> None:
        """Test on the named sets instead of the test set."""
        there = [*self.corpus.sets, *([CONDITIONS] if self.conditions else [])]
        for name in names:
            if name not in there:
                hint = "" if self.conditions else "; for conditions give data.conditions=[none,mp3_32kbps,noise_20db]"
                raise InputError(f"--set {name} is unknown: {self.corpus.title} has {', '.join(there)}{hint}")
        self._chosen = self.test_sets = names

    def utterances(self, set_name: str) -> Utterances:
        """Return a set, read and checked once."""
        if set_name not in self._sets:
            self._sets[set_name] = self._conditions() if set_name == CONDITIONS else self._trials(set_name)
            self._check_files()
        return self._sets[set_name]

    def faster_loading(self) -> list[str]:
        """Return the options that could make batches come faster; decoding once is the first of them."""
        return [*([] if self.in_memory else ["data.in_memory=true"]), *super().faster_loading()]

    def context(self, set_name: str) -> dict[str, Any]:
        """Return the order of the codecs and, where there are ASV scores, the ASV error rates for the t-DCF."""
        if set_name not in self._contexts:
            if set_name == CONDITIONS:
                facts: dict[str, Any] = {"codecs": self.conditions, "codec_word": "condition"}
            else:
                trials = self._trials_of(set_name)
                facts = {"codecs": list(self.corpus.codecs)} if self.corpus.codecs else {}
                if isinstance(self.corpus, Corpus):
                    facts |= self._asv_facts(self.corpus, set_name, trials)
            self._contexts[set_name] = facts
        return self._contexts[set_name]

    @property
    def listed_sets(self) -> list[str]:
        """The sets of the corpus; `conditions` has the files of the eval set."""
        return list(self.corpus.sets)

    def listing(self, set_name: str) -> pd.DataFrame:
        """Return the trials of a set as its protocol lists them."""
        read = self._sets.get(set_name)
        trials, paths, _ = (read.trials, read.paths, None) if read is not None else self.corpus.read(set_name)
        table = pd.DataFrame(trials, columns=Trial._fields).drop(columns="subset").assign(file=paths)
        return table[[name for name in table if not table[name].eq("-").all()]]

    def parts(self, set_name: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Return the eval set of every corpus out of the pooled one, each with its own facts."""
        if not isinstance(self.corpus, PooledCorpora) or set_name != self.corpus.test_set:
            return {}
        parts = {}
        for name, found in self.corpus.members(set_name).items():
            corpus = self.corpus.corpora[name]
            if name not in self._contexts:
                self._contexts[name] = self._asv_facts(corpus, "eval", found.trials)
            part = table_of(table, name)
            codecs = {"codecs": list(corpus.codecs)} if corpus.codecs else {}
            part.attrs = {**codecs, **self._contexts[name], "set": name, "skipped": len(found.trials) - len(part)}
            parts[name] = part
        return parts

    def _trials_of(self, set_name: str) -> list[Trial]:
        trials = self.utterances(set_name)
        assert isinstance(trials, SpoofingTrials)
        return trials.trials

    def _trials(self, set_name: str) -> SpoofingTrials:
        trials, paths, source = self.corpus.read(set_name)
        require_both_classes(trials, str(source))
        if self.published_size:
            for sentence in self.corpus.size_differences(set_name, trials):
                _warn_once(f"{sentence} (data.published_size=false stops this line)")
        training = set_name == "train"
        length = self.crop_samples if training else self.eval_samples
        drawn = training and self.random_crop
        return SpoofingTrials(trials, paths, length, random_crop=drawn, in_memory=self.in_memory)

    def _conditions(self) -> ConditionTrials:
        plain = self.utterances(self.corpus.test_set)
        assert isinstance(plain, SpoofingTrials)
        found = ConditionTrials(plain, self.conditions)
        skipped = self.skipped_ids & set(plain.ids)
        self.skipped_ids |= {f"{name}@{condition}" for name in skipped for condition in self.conditions}
        return found

    def _asv_facts(self, corpus: Corpus, set_name: str, trials: list[Trial]) -> dict[str, Any]:
        if self.asv_scores == "none" or set_name == "train":
            return {}
        if self.asv_scores not in ("auto", "require"):
            facts = published_facts(self.asv_scores)
            log.warning("t-DCF for %s with the %s, not with ASV scores of this set", set_name, facts["asv_source"])
            return facts
        files = corpus.asv_files(set_name)
        absent = [path for path in files if not path.is_file()]
        if files and not absent:
            return facts_of(corpus.asv_scores(set_name), trials, files[-1], set_name)
        why = f"{absent[0]} does not exist" if absent else f"{corpus.title} has none"
        if self.asv_scores == "require":
            raise InputError(
                f"t-DCF needs ASV scores and {why}: put them there, "
                "or set data.asv_scores=none to go without t-DCF (asvspoof5: with that corpus' published ASV rates)"
            )
        if absent:
            log.warning("no t-DCF for %s: %s", set_name, why)
        return {}

    def _require_training_sets(self) -> None:
        title, there = self.corpus.title, self.corpus.sets
        if "train" not in there:
            own = self.corpus.choice if isinstance(self.corpus, Corpus) else "pooled"
            if own == "csv":
                raise InputError(
                    f"{self.corpus.root} has no training set: give it a column set with train, dev and perhaps eval, "
                    "or test a run on it with python -m audiolab.test <run> data=asvspoof/csv data.root=..."
                )
            raise InputError(
                f"{title} has no training set: train on another corpus (data=asvspoof/la2019 data.root=...) and test "
                f"the run on this one with python -m audiolab.test <run> data=asvspoof/{own} ..."
            )
        if "dev" not in there:
            raise InputError(
                f"{title} has a training set and no dev set, on which the best epoch is chosen: "
                "mark some trials as dev, or train on a corpus that has one"
            )

    def _check_files(self) -> None:
        """Look for the files of the sets that were read since the last time, all before anything is said."""
        new = {name: found for name, found in self._sets.items() if name not in self._checked}
        self._checked |= new.keys()
        trials = {name: found for name, found in new.items() if isinstance(found, SpoofingTrials)}
        self.leave_out_missing({n: list(zip(found.paths, found.ids, strict=True)) for n, found in trials.items()})


class DemoData(SpoofingData):
    """The built-in synthetic corpus: made under `root` when it is not there yet, then read like any other."""

    def prepare_data(self) -> None:
        """Make the corpus (seconds); only one process does. A folder of another name must be there already."""
        assert isinstance(self.corpus, Corpus)
        root = self.corpus.root
        if root.name != "asvspoof_demo" and not root.exists():
            raise InputError(
                f"data.root={root} does not exist, and data=asvspoof/demo is the built-in synthetic corpus: "
                "for a corpus of yours choose data=asvspoof/la2019 data.root=<folder>"
            )
        prepare_demo_corpus(root)


@cache
def _warn_once(sentence: str) -> None:
    """Warn, once a process: a run reads its lists twice, first so that their faults come before anything is written."""
    log.warning(sentence)


def _open(layout: str, root: str | None, subset: str | None, corpora: object) -> Corpus | PooledCorpora:
    if layout != "pooled":
        if corpora is not None:
            raise InputError(f"data.corpora is for data=asvspoof/pooled: leave it out of data.layout={layout}")
        if root is None:
            raise InputError(f"data.root has no value: give the folder of data.layout={layout}")
        return open_corpus(layout, root, subset)
    if root is not None or subset is not None:
        raise InputError("data.root and data.subset are for one corpus: with data=asvspoof/pooled use data.corpora")
    return PooledCorpora(_open_all(corpora))


def _open_all(corpora: object) -> dict[str, Corpus]:
    if not isinstance(corpora, Mapping):
        raise InputError(f"data.corpora={corpora!r} does not fit: give {{name: {{layout: ..., root: ...}}, ...}}")
    opened = {}
    for name, section in corpora.items():
        where = f"data.corpora.{name}"
        if not isinstance(section, Mapping):
            raise InputError(f"{where}={section!r} does not fit: give {{layout: ..., root: ...}}")
        check_signature(open_corpus, section, where, given=("option",))
        opened[str(name)] = open_corpus(**section, option=f"{where}.root")
    return opened
