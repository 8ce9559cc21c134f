"""ASVspoof 2019 LA, read in its published layout."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiolab.audio.crop import fixed_length
from audiolab.audio.io import AudioError, read_audio
from audiolab.errors import InputError
from audiolab.metrics.spoofing import asv_table
from audiolab.tasks.asvspoof.demo import prepare_demo_corpus
from audiolab.tasks.asvspoof.protocols import (
    BONAFIDE,
    SPOOF,
    Trial,
    read_2019_asv_scores,
    read_2019_protocol,
    require_both_classes,
)
from audiolab.training.data import Augment, Item, SpeechData, Utterances

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16_000
_PROTOCOLS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


class SpoofingTrials(Utterances):
    """Trials with their audio: `wave` (time,) at 16 kHz, `label` 1 for bona fide and 0 for spoof.

    `num_samples` fixes the length: a drawn window in training, the first samples otherwise; None keeps the whole.
    With `in_memory` the decoded audio is kept after the first reading (64 kB a second and process).
    """

    def __init__(
        self, trials: list[Trial], folder: Path, num_samples: int | None, *, training: bool, in_memory: bool
    ) -> None:
        self.trials, self.folder, self.num_samples, self.training = trials, folder, num_samples, training
        self.ids = [trial.id for trial in trials]
        self._decoded: dict[int, np.ndarray] | None = {} if in_memory else None

    def path(self, index: int) -> Path:
        """Return the audio file of a trial."""
        return self.folder / f"{self.trials[index].id}.flac"

    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Read one trial."""
        trial = self.trials[index]
        wave = self._wave(index)
        if self.num_samples is not None:
            wave = fixed_length(wave, self.num_samples, generator if self.training else None)
        return {
            "wave": wave,
            "label": int(trial.label == BONAFIDE),
            "speaker": trial.speaker,
            "attack": trial.attack,
        }

    def _wave(self, index: int) -> np.ndarray:
        if self._decoded is not None and index in self._decoded:
            return self._decoded[index]
        wave, _ = read_audio(self.path(index), sample_rate=SAMPLE_RATE_HZ)
        if self._decoded is not None:
            self._decoded[index] = wave
        return wave


class SpoofingData(SpeechData):
    """ASVspoof 2019 LA: sets train, dev and eval under `root`, the folder that holds `LA/` or is it.

    `crop_samples` is the length of training items, `eval_samples` that of dev and eval items (None: the whole
    utterance, one at a time). `asv_scores`: `auto` gives t-DCF where the corpus has ASV scores and says so where not,
    `require` refuses to go without, `none` does not look.
    """

    options_of_the_run = ("eval_batch_size", "eval_samples")
    val_sets = ["dev"]  # noqa: RUF012 - Lightning copies nothing; choose_test_sets replaces, never mutates

    def __init__(
        self,
        root: str,
        crop_samples: int,
        eval_samples: int | None,
        in_memory: bool,
        asv_scores: Literal["auto", "require", "none"],
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        on_bad_audio: Literal["raise", "skip"],
        max_bad_audio: float,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if eval_samples is None and eval_batch_size != 1:
            raise InputError(
                f"data.eval_batch_size={eval_batch_size} with whole utterances (data.eval_samples=null): "
                "their lengths differ, set data.eval_batch_size=1 or a fixed data.eval_samples"
            )
        super().__init__(batch_size, eval_batch_size, num_workers, on_bad_audio, max_bad_audio, seed, augment)
        self.root = Path(root).expanduser()
        self.crop_samples, self.eval_samples = crop_samples, eval_samples
        self.in_memory, self.asv_scores = in_memory, asv_scores
        self.test_sets = ["eval"]
        self._sets: dict[str, SpoofingTrials] = {}

    @property
    def num_files(self) -> int:
        """Trials of all sets that have been read."""
        return sum(len(trials) for trials in self._sets.values())

    def setup(self, stage: str) -> None:
        """Read and check the protocols that a stage needs; `fit` reads eval too where there is one."""
        if stage == "fit":
            if not self._protocol("eval").is_file():
                self.test_sets = []
            for name in ("train", *self.val_sets, *self.test_sets):
                self.utterances(name)
        for name in self.val_sets if stage == "validate" else self.test_sets if stage == "test" else []:
            self.utterances(name)
        for name in {*self.val_sets, *self.test_sets} & set(self._sets):
            self.context(name)

    def choose_test_sets(self, names: list[str]) -> None:
        """Test on the named sets instead of eval."""
        for name in names:
            if name not in _PROTOCOLS:
                raise InputError(f"--set {name} is unknown: 2019 LA has {', '.join(_PROTOCOLS)}")
        self.test_sets = names

    def utterances(self, set_name: str) -> SpoofingTrials:
        """Return a set, read and checked once."""
        if set_name not in self._sets:
            protocol = self._protocol(set_name)
            if not protocol.is_file() and not protocol.parent.is_dir():
                raise InputError(
                    f"data.root={self.root} is not in the ASVspoof 2019 LA layout: it has no {protocol.parent.name}/; "
                    "give the folder that holds LA/ (with ASVspoof2019_LA_cm_protocols and ASVspoof2019_LA_train ...)"
                )
            trials = read_2019_protocol(protocol)
            require_both_classes(trials, protocol)
            training = set_name == "train"
            folder = self._base / f"ASVspoof2019_LA_{set_name}" / "flac"
            length = self.crop_samples if training else self.eval_samples
            found = SpoofingTrials(trials, folder, length, training=training, in_memory=self.in_memory)
            self._sets[set_name] = found
            self._check_files(found, protocol)
        return self._sets[set_name]

    def context(self, set_name: str) -> dict[str, Any]:
        """Return the ASV error rates by attack, for the t-DCF, where there are ASV scores."""
        path = self._base / "ASVspoof2019_LA_asv_scores" / f"ASVspoof2019.LA.asv.{set_name}.gi.trl.scores.txt"
        if self.asv_scores == "none" or set_name == "train":
            return {}
        if not path.is_file():
            if self.asv_scores == "require":
                raise InputError(
                    f"t-DCF needs ASV scores and {path} does not exist: put them there, "
                    "or set data.asv_scores=none to go without t-DCF"
                )
            log.warning("no t-DCF for %s: %s does not exist", set_name, path)
            return {}
        scores = read_2019_asv_scores(path)
        attacks = {trial.attack for trial in self.utterances(set_name).trials if trial.label == SPOOF}
        known = set(scores.loc[scores["key"] == SPOOF, "attack"])
        if attacks != known:
            differing = sorted(attacks ^ known)
            raise InputError(
                f"{path} does not belong to the {set_name} protocol: attack {differing[0]} is in one of them only; "
                "take the ASV scores of this set, or set data.asv_scores=none"
            )
        rates = asv_table(scores["score"], scores["key"], scores["attack"])
        return {"asv": {attack: asdict(cell) for (attack, _), cell in rates.items()}}

    @property
    def _base(self) -> Path:
        return self.root / "LA" if (self.root / "LA").is_dir() else self.root

    def _protocol(self, set_name: str) -> Path:
        return self._base / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{_PROTOCOLS[set_name]}.txt"

    def _check_files(self, trials: SpoofingTrials, protocol: Path) -> None:
        there = {path.name for path in trials.folder.iterdir()} if trials.folder.is_dir() else set()
        missing = [index for index in range(len(trials)) if trials.path(index).name not in there]
        if missing and self.on_bad_audio == "raise":
            raise InputError(
                f"{protocol} names {len(missing)} of {len(trials)} files that are not there, the first is "
                f"{trials.path(missing[0])}: complete the corpus, or set data.on_bad_audio=skip"
            )
        for index in missing:
            path = str(trials.path(index))
            self.bad_audio.handle(AudioError(f"{path} does not exist.", path, "does not exist"))
            self.skipped_ids.add(trials.ids[index])


class DemoData(SpoofingData):
    """The built-in synthetic corpus: made under `root` when it is not there yet, then read like any other."""

    def prepare_data(self) -> None:
        """Make the corpus (seconds); only one process does. A folder of another name must be there already."""
        if self.root.name != "asvspoof_demo" and not self.root.exists():
            raise InputError(
                f"data.root={self.root} does not exist, and data=asvspoof/demo is the built-in synthetic corpus: "
                "for a corpus of yours choose data=asvspoof/la2019 data.root=<folder>"
            )
        prepare_demo_corpus(self.root)
