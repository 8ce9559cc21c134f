"""The DataModule that every task's corpus reader builds on: exact loaders, resume, and what to do with bad audio."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from audiolab.audio.find import missing_files
from audiolab.audio.io import AudioError, BadAudioPolicy
from audiolab.audio.level import LOUDEST
from audiolab.errors import InputError
from audiolab.preflight.findings import Finding
from audiolab.training.augmentation_log import AugmentationLog
from audiolab.training.items import NeverEmpty, Replacing, Utterances, collate
from audiolab.training.loading import TimedLoader, end_without_a_word_after_parent, num_cpus
from audiolab.training.preparation import Preparation
from audiolab.training.processes import gather
from audiolab.training.randomness import item_generator
from audiolab.training.sampling import EvalBatches, TrainBatches
from audiolab.training.sharding import is_sharded

log = logging.getLogger(__name__)

Augment = Callable[[Tensor, Sequence[np.random.Generator]], Tensor]


class SpeechData(L.LightningDataModule, ABC):
    """Loaders over named sets; subclasses say which sets there are and what is in them.

    `augment` is applied to `wave` (batch, time) of training batches only, on the batch's device, each row with the
    generator of its (seed, epoch, utterance). Where it is a `Chain` with `record`, what it drew is written to
    `record_folder`, if that is set. The position in the epoch is part of the state, so that a resumed run goes on with
    the next batch. `feature_cache` is the folder of a `FeatureCache`. Raises InputError for unreadable audio unless
    `on_bad_audio` is `skip`.
    """

    val_sets: list[str]
    test_sets: list[str]
    sample_rate_hz: int = 16_000
    """Rate of `wave` in the batches; a corpus that offers several sets its own on the instance."""
    options_of_the_run: ClassVar[tuple[str, ...]] = ("eval_batch_size",)
    """Options that a test on another corpus keeps from the run, because the model was used with them."""
    options_without_effect: ClassVar[tuple[str, ...]] = ("num_workers",)
    """Options that change no number, so that a run may go on with others: how the data is read, not what."""

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        on_bad_audio: Literal["raise", "skip"],
        max_bad_audio: float,
        seed: int = 0,
        augment: Augment | None = None,
        feature_cache: str | None = None,
        feature_cache_dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"data.{name}={value} does not fit: give {least} or more")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.feature_cache, self.feature_cache_dtype = feature_cache, feature_cache_dtype
        self.seed, self.augment = seed, augment
        self.on_bad_audio, self.max_bad_audio = on_bad_audio, max_bad_audio
        self._bad_audio = BadAudioPolicy(on_bad_audio, max_bad_audio, num_files=0)
        self.skipped_ids: set[str] = set()
        self._loud_ids: set[str] = set()
        self.position = (0, 0)
        self.record_folder: Path | None = None

    @classmethod
    def preparation(cls, section: Mapping[str, Any]) -> Preparation | None:
        """Return what makes the corpus of a data section ready before the first run; None: it is read as it lies."""
        return None

    @abstractmethod
    def utterances(self, set_name: str) -> Utterances:
        """Return the utterances of a set; called again for each use, so keep what is costly."""

    @property
    def bad_audio(self) -> BadAudioPolicy:
        """What to do about unreadable files, counted over all sets that are in use by now."""
        self._bad_audio.num_files = self.num_files
        return self._bad_audio

    @property
    @abstractmethod
    def num_files(self) -> int:
        """Audio files in all sets that are in use; a cap given as a share refers to it."""

    @property
    def draws_windows(self) -> bool:
        """Whether the waveform of a training item differs from epoch to epoch, augmentation aside."""
        return True

    @abstractmethod
    def context(self, set_name: str) -> dict[str, Any]:
        """Return facts of a set that its metrics need beyond the rows (JSON types only)."""

    def parts(self, set_name: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Return tables of parts of a set that are judged by themselves too, by name, with their own `attrs`."""
        return {}

    @abstractmethod
    def choose_test_sets(self, names: list[str]) -> None:
        """Test on the named sets instead of the corpus' own test sets."""

    def ids(self, set_name: str) -> list[str]:
        """Return the ids of all utterances of a set."""
        return self.utterances(set_name).ids

    @property
    def listed_sets(self) -> list[str]:
        """The sets whose lists are there, each file in as few of them as possible; InputError where none can be."""
        return ["train", *self.val_sets, *self.test_sets]

    def listing(self, set_name: str) -> pd.DataFrame:
        """Return what the lists tell of a set without looking at its audio: one row a file, with `id` and `file`.

        Where they tell, `label` (a class, or a number that is none), `speaker` and `session` as well, and further
        categories under names of their own; an utterance of several files has several rows. Files that are missing
        are listed too. Raises InputError for a list that cannot be read.
        """
        return pd.DataFrame({"id": self.ids(set_name)})

    @property
    def sets_of_unseen_speakers(self) -> list[str]:
        """The sets that may have no speaker of the training set; of other sets a shared one is only warned of."""
        return []

    def check_contents(self) -> list[Finding]:
        """Return what only this kind of corpus can tell of its audio, for `audiolab.check`; lists were read before."""
        return []

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches from the position onwards."""
        dataset = self.utterances("train")
        self._train_batches = TrainBatches(len(dataset), self.batch_size, self.seed, *self._process())
        self._train_batches.resume_at(*self.position)
        dataset.seed = self.seed
        return self._loader(Replacing(dataset, self._num_bad_allowed), self._train_batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next; Lightning does not reach batch samplers itself."""
        self._train_batches.set_epoch(epoch)

    def val_dataloader(self) -> list[DataLoader]:
        """Every utterance of the development sets once."""
        return [self.eval_loader(name) for name in self.val_sets]

    def test_dataloader(self) -> list[DataLoader]:
        """Every utterance of the test sets once."""
        return [self.eval_loader(name) for name in self.test_sets]

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any] | None:
        """Count the bad audio of a batch; one of an evaluation with nothing else in it becomes None."""
        for bad in batch.pop("bad"):
            if bad.id not in self.skipped_ids:
                error = bad.error
                self.bad_audio.handle(AudioError(f"{self._now(dataloader_idx)}{error}", error.path, error.reason))
                self.skipped_ids.add(bad.id)
        if "wave" in batch:
            self._warn_of_loud(batch["id"], batch["wave"], self._now(dataloader_idx))
        return batch if "id" in batch else None

    def _warn_of_loud(self, ids: list[str], wave: Tensor, now: str) -> None:
        """Name an utterance, once, whose samples are so large that its file must have another full scale than 1.0."""
        if not wave.abs().max() > LOUDEST:
            return
        peaks = wave.abs().flatten(1).amax(1).tolist()
        for name, peak in zip(ids, peaks, strict=True):
            if peak > LOUDEST and name not in self._loud_ids:
                self._loud_ids.add(name)
                log.warning(
                    "%s%s has samples up to %.3g where full scale is 1.0: write its file again, or take it out",
                    now,
                    name,
                    peak,
                )

    def leave_out_missing(self, files: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Look for the files of sets, (path, utterance id); utterances of absent ones are left out, the files counted.

        Raises InputError, before anything of a set is used, unless `on_bad_audio` is `skip`.
        """
        absent = {name: [pairs[i] for i in missing_files(path for path, _ in pairs)] for name, pairs in files.items()}
        missing = dict.fromkeys(path for found in absent.values() for path, _ in found)
        if missing and self.on_bad_audio == "raise":
            of = ", ".join(f"{len({path for path, _ in found})} of {name}" for name, found in absent.items() if found)
            raise InputError(
                f"{len(missing)} of {self.num_files} audio files are not there ({of}), the first is "
                f"{next(iter(missing))}: complete the corpus, or leave them out with data.on_bad_audio=skip "
                f"data.max_bad_audio={len(missing)}"
            )
        self.skipped_ids |= {id_ for found in absent.values() for _, id_ in found}
        self.bad_audio.add(dict.fromkeys(missing, "does not exist"))

    def share_bad_audio(self) -> None:
        """Count the unreadable files that all processes have met; each of them has to call this at the same moment."""
        if self.on_bad_audio == "skip":
            self.skipped_ids |= set(gather(sorted(self.skipped_ids)))
            self.bad_audio.add(dict(gather(list(self.bad_audio.skipped.items()))))

    def _now(self, dataloader_idx: int) -> str:
        """Name the set whose batches come, for messages."""
        if self.trainer is None:
            return ""
        sets = self.test_sets if self.trainer.testing else self.val_sets
        return f"{'train' if self.trainer.training else sets[dataloader_idx]}: "

    def on_after_batch_transfer(self, batch: dict[str, Any] | None, dataloader_idx: int) -> dict[str, Any] | None:
        """Augment training batches."""
        if batch and self.augment is not None and self.trainer is not None and self.trainer.training:
            generators = [item_generator(self.seed, epoch, item, "augment") for epoch, item in batch["draw"]]
            if self.record_folder is None or not getattr(self.augment, "record", False):
                batch["wave"] = self.augment(batch["wave"], generators)
            else:
                drawn = [self.augment.draw(batch["wave"].shape[-1], generator) for generator in generators]
                batch["wave"] = self.augment.apply(batch["wave"], drawn)
                log = AugmentationLog(self.record_folder, self.trainer.global_rank)
                log.write(batch["draw"], batch["id"], [self.augment.describe(draw) for draw in drawn])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position (epoch, batch) that comes next, and what it is only valid for."""
        return {"epoch": self.position[0], "batch": self.position[1], **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a saved position; refused when batches would not be the same."""
        for key, value in self._identity().items():
            if state_dict[key] != value:
                raise InputError(
                    f"the checkpoint was written with {key} {state_dict[key]}, this run has {value}: "
                    "resume with the same data, or start a run of another name"
                )
        self.position = (state_dict["epoch"], state_dict["batch"])

    def _identity(self) -> dict[str, int]:
        _, world_size = self._process()
        return {
            "global batch size": self.batch_size * world_size,
            "number of training items": len(self.utterances("train")),
            "data seed": self.seed,
        }

    @property
    def _num_bad_allowed(self) -> int:
        return self.bad_audio.cap if self.on_bad_audio == "skip" else 0

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def eval_loader(self, set_name: str) -> DataLoader:
        """Every utterance of a set once over all processes, as in evaluation.

        Processes that share a split model run it equally often, on fillers where they have nothing left.
        """
        dataset = self.utterances(set_name)
        dataset.seed = self.seed
        equal = self.trainer is not None and is_sharded(self.trainer)
        batches = EvalBatches(len(dataset), self.eval_batch_size, *self._process(), equal=equal)
        return self._loader(NeverEmpty(dataset, self._num_bad_allowed) if equal else dataset, batches)

    def audio_s(self, batch: dict[str, Any]) -> float:
        """Return the seconds of audio of a batch, all utterances together, at the model's input.

        Counted are the samples of `wave` (batch, ..., time); override it where rows are padded.
        """
        return len(batch["id"]) * batch["wave"].shape[-1] / self.sample_rate_hz

    def faster_loading(self) -> list[str]:
        """Return the options, with values, that could make batches come faster than they do; the best first."""
        _, world_size = self._process()
        share = num_cpus() // world_size  # of this machine's processors, where all processes run on it
        more = min(share, max(2, 2 * self.num_workers))
        options = [f"data.num_workers={more}"] if more > self.num_workers else []
        if self.feature_cache and self.feature_cache_dtype == "float32":
            options.append("data.feature_cache_dtype=float16")
        return options

    def _loader(self, dataset: Dataset, batches: TrainBatches | EvalBatches) -> DataLoader:
        num_workers = min(self.num_workers, num_cpus())
        return TimedLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,  # more than there are processors only slow each other down
            persistent_workers=num_workers > 0,
            worker_init_fn=end_without_a_word_after_parent,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # its own: the loader must not move the global one
        )
