"""What every task is: a LightningModule that answers five questions; all else is shared."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from audiolab.audio.recording import Recording
from audiolab.errors import InputError
from audiolab.reporting.example import Example
from audiolab.training.epoch_means import LOSS
from audiolab.training.memory import MemoryGuard
from audiolab.training.optim import Optimization
from audiolab.training.sharding import Sharded, shard

if TYPE_CHECKING:
    from audiolab.training.data import SpeechData

Batch = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What a finished run knows about its own estimates: the metrics of the development set, and its calibration."""

    dev: dict[str, float]
    calibration: dict[str, Any] | None


@dataclass(frozen=True)
class Prediction:
    """What a task says about one recording: plain `values` by column, a `sentence`, and files that go with it.

    A key of `files` is a path in the output folder in which `*` stands for the recording: `curves/*.csv`. A value is
    text, a figure, or the path of a file in `scratch` (see `Task.predict_recording`), which is moved there.
    """

    values: dict[str, Any]
    sentence: str
    files: dict[str, str | Figure | Path] = field(default_factory=dict)


class Task(L.LightningModule, ABC):
    """Base of the tasks. A task says what its loss is, what one utterance's row is, and what a table of rows means.

    `headline` names the metrics that people quote, with their format: `{"eer": "EER {:.2f} %"}`; the first is shown
    every epoch. `eer_low` and `eer_high` beside `eer` are its interval. Those of `only_after_training` take too long to
    be measured every epoch, so that none of them can be the monitor. `prediction_columns` are the keys and types
    of what `predict` finds, `prediction_in_words` tells a user what it would do ("score your own audio"),
    `prediction_batch_size` how many windows it takes at once. `scoring_files` and `scoring_options` name what
    `audiolab.score` takes beside score files, with a line of help each.
    """

    headline: ClassVar[dict[str, str]]
    only_after_training: ClassVar[tuple[str, ...]] = ()
    prediction_columns: ClassVar[dict[str, type]]
    prediction_in_words: ClassVar[str]
    prediction_batch_size: ClassVar[int] = 16
    scoring_files: ClassVar[dict[str, str]] = {}
    scoring_options: ClassVar[dict[str, str]] = {}
    examples_every_n_epochs: int | None = None
    """How often `examples` are shown in training too; None: only after it."""
    guard: MemoryGuard | None = None
    """Who stands between the task and its batches in a run; set by itself."""

    def __init__(self, model: nn.Module, optimization: Optimization) -> None:
        super().__init__()
        self.model = model
        self.optimization = optimization

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its named parts, for the log."""

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """Return how much a batch counts in a mean of losses: what its own loss, a mean, was divided by."""
        return len(batch["id"])

    @abstractmethod
    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one row per utterance of a batch: `id`, the estimate, and what is needed to judge it."""

    @classmethod
    @abstractmethod
    def metrics(cls, table: pd.DataFrame) -> dict[str, float]:
        """Compute every metric from the rows of a whole set, sorted by id; facts of the set are in `table.attrs`.

        A key of the form `group/member/metric` (`attack/A07/eer`) is a cell of the breakdown table `group`. In a table
        of one metric over two factors the group is `<metric>_by_<row>_and_<column>` and the third part the column
        (`eer_by_attack_and_codec/A07/alaw`). With `table.attrs["headline_only"]` breakdowns may be left out: it is an
        epoch of training, and nothing but the keys without `/` is looked at. Raises UndefinedMetricError where the
        estimates of an untrained model would not do.
        Needs neither model nor audio, so saved scores give the same numbers.
        """

    @classmethod
    @abstractmethod
    def plots(cls, table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
        """Draw the pictures of a whole set and its `metrics`, by file name without suffix."""

    def facts(self) -> dict[str, str]:
        """Return what `plan=true` shows of the model beside its parameters: `what, unit -> value`."""
        return {}

    def check_data(self, data: SpeechData) -> None:
        """Raise InputError where model and data do not belong together, in one sentence with the option to change.

        Asked of the data of a run and of every test, once its lists are read.
        """

    def examples(self, table: pd.DataFrame) -> dict[str, str]:
        """Return which utterances of a set to show, `role -> id`; the same ones every epoch, where roles are fixed.

        `table` has the rows of the set; `table.attrs["headline_only"]` says that it is an epoch of training.
        """
        return {}

    def example(self, batch: Batch) -> Example:
        """Return what to show of the one utterance of a batch."""
        raise NotImplementedError(f"{type(self).__name__} chooses examples and does not say what to show of them")

    @abstractmethod
    def infer(self, waveform: Tensor, sample_rate: int) -> dict[str, Any]:
        """Apply the model to one recording, (time,) at `sample_rate` Hz."""

    @abstractmethod
    def predict_recording(
        self, recording: Recording, known: Known, *, scratch: Path, batch_size: int, **options: Any
    ) -> Prediction:
        """Apply the model to a recording that is read in blocks, and say what it means.

        `batch_size` windows or blocks run at once; `options` are those that `add_predict_options` names. Files of any
        length can be written in `scratch`, a folder to be made; those named in the `Prediction` are kept.
        """

    def foreign_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Return the weights that another library wrote to a file, under this task's names; None for any other file.

        The model is asked, where it has a function of this name.
        """
        reads = getattr(self.model, "foreign_weights", None)
        weights = None if reads is None else reads(path)
        return None if weights is None else {f"model.{name}": value for name, value in weights.items()}

    def why_features_change(self) -> str | None:
        """Say why what the encoder makes of a waveform changes from epoch to epoch; None where it does not."""
        return "this task has no frozen encoder"

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Return the features of the frozen encoder that a cache may keep; batches then have them as `states`."""
        raise InputError(f"no features can be kept: {self.why_features_change()}")

    def encoder_name(self) -> str:
        """Return a name for the encoder's weights and options: `feature_cache.fingerprint`."""
        raise InputError(f"no features can be kept: {self.why_features_change()}")

    @classmethod
    def add_predict_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the task's own options to those of the verb `predict`."""

    def prediction_legend(self, known: Known, **options: Any) -> str:
        """Return one sentence on how to read the predictions, and refuse options that do not fit."""
        return ""

    @classmethod
    def calibration(cls, table: pd.DataFrame) -> dict[str, Any] | None:
        """Fit, on the rows of the development set(s), what makes scores mean what they say; None: nothing to fit.

        The plain numbers that are returned are stored with the checkpoint (`checkpoints/calibration.json`), and the
        tables of other sets carry them in `attrs["calibration"]`.
        """
        return None

    @classmethod
    def read_systems(cls, scores: Mapping[str, Path], **given: str) -> dict[str, pd.DataFrame]:
        """Return the table of each bare score file, `name -> file`, that `metrics` judges; `attrs["sources"]` says what
        each file was read as.

        `given` are the values of `scoring_files` and `scoring_options` that the user gave. A task that does not
        override this has no `audiolab.score`.
        """
        raise InputError("this task judges runs only: python -m audiolab.test <run>")

    @classmethod
    def comparison(cls, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
        """Draw several systems' tables of one set in one picture each, by file name without suffix."""
        return {}

    @classmethod
    def fusion(cls, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
        """Fit, on the development rows of several systems (same rows, same order), how their scores are fused.

        Returns plain numbers for `fused`, or None for a task that fuses nothing.
        """
        return None

    @classmethod
    def fusion_in_words(cls, fusion: Mapping[str, Any]) -> list[str]:
        """Return the lines that tell a user what `fusion` fitted."""
        return []

    @classmethod
    def fused(cls, tables: Mapping[str, pd.DataFrame], fusion: Mapping[str, Any]) -> pd.DataFrame:
        """Apply what `fusion` fitted to the rows of another set."""
        raise InputError("this task has no fusion of systems")

    @classmethod
    def score_files(cls, table: pd.DataFrame) -> dict[str, str]:
        """Return further score files in the field's own formats: file name suffix -> text."""
        return {}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the loss, logged as `train/loss_step`, and its parts, of which `EpochMeans` logs the means.

        Of several processes `train/loss_step` is the first one's own: a mean over all would be one more exchange, for
        which every process waits, at every step. The means of `EpochMeans` are over all of them.
        """
        loss, parts = self.guard.loss(self, batch) if self.guard else self.loss(batch)
        self.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        parts = {name: value.detach() for name, value in {**parts, LOSS: loss}.items()}
        return {"loss": self._of_leftover(loss, batch_idx), "parts": parts}

    def _of_leftover(self, loss: Tensor, batch_idx: int) -> Tensor:
        """Weight the batches that an epoch has left over from whole accumulated steps as a mean of their own.

        Lightning divides every loss by `accumulate_grad_batches`, also where fewer batches than that make a step.
        """
        accumulate, num_batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        if accumulate == 1 or batch_idx < num_batches // accumulate * accumulate:
            return loss
        return loss * (accumulate / (num_batches % accumulate))

    def validation_step(self, batch: Batch | None, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Rows for the evaluation callback; an empty batch is one whose files could all not be read."""
        if not batch:
            return []
        return self.guard.each(self.rows, batch) if self.guard else self.rows(batch)

    test_step = validation_step

    def configure_model(self) -> None:
        """Split the weights over the processes, where the trainer's strategy says so."""
        if isinstance(self.trainer.strategy, Sharded):
            shard(self, self.trainer.strategy.device_mesh)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build optimiser and schedule for the steps that Lightning expects."""
        optimizer, schedule = self.optimization.build(self, int(self.trainer.estimated_stepping_batches))
        every_step = {"scheduler": schedule, "interval": "step", "reduce_on_plateau": False}  # see lr_scheduler_step
        return {"optimizer": optimizer, "lr_scheduler": every_step}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Move a schedule of optimiser steps on; one that watches a metric is moved by `on_validation_epoch_end`.

        Lightning would do that after the epoch's checkpoint, and after epochs without validation as well.
        """
        if self.optimization.schedule.watched is None:
            scheduler.step()

    def on_validation_epoch_end(self) -> None:
        """Tell the schedule the metric that it watches: known by now, as callbacks come first, and not yet saved."""
        watched = self.optimization.schedule.watched
        if watched is not None and self.trainer.state.fn is TrainerFn.FITTING:
            self.lr_schedulers().step(float(self.trainer.callback_metrics[watched]))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the rate of every parameter group at the steps whose values Lightning logs."""
        if self.trainer.log_every_n_steps and (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            for group in optimizer.param_groups:
                self.log(f"lr/{group['name']}", group["lr"], rank_zero_only=True)
