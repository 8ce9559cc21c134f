"""Evaluation that is exact on any number of processes: gather rows by utterance id, sort, compute once in float64."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from audiolab.errors import InputError, UndefinedMetricError
from audiolab.reporting.plots import save_figure
from audiolab.reporting.scores import write_scores, write_text
from audiolab.reporting.tables import breakdowns
from audiolab.tracking import log_evaluation
from audiolab.training.calibration import fitted_on
from audiolab.training.data import SpeechData
from audiolab.training.examples import show_examples
from audiolab.training.processes import gather
from audiolab.training.sampling import FILLER
from audiolab.training.task import Task

log = logging.getLogger(__name__)


def join_rows(rows: list[dict[str, Any]], expected: list[str], set_name: str) -> pd.DataFrame:
    """Put rows of all processes into one table sorted by id.

    Raises InputError for an id with two different rows, a missing id or one that is not in the set.
    """
    by_id: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = by_id.setdefault(row["id"], row)
        if known != row:
            raise InputError(
                f"{set_name}: utterance {row['id']!r} was scored twice with different results: {known}, {row}"
            )
    missing = sorted(set(expected) - set(by_id))
    if missing:
        raise InputError(
            f"{set_name}: {len(missing)} of {len(expected)} utterances have no score, the first is {missing[0]!r}"
        )
    extra = sorted(set(by_id) - set(expected))
    if extra:
        raise InputError(
            f"{set_name}: {len(extra)} scores belong to no utterance of the set, the first is {extra[0]!r}"
        )
    return pd.DataFrame([by_id[name] for name in sorted(by_id)])


def write_set(
    folder: Path, name: str, task: type[Task] | Task, table: pd.DataFrame, metrics: dict[str, float]
) -> dict[str, Figure]:
    """Write scores, score files, breakdowns and plots of one set (or one system on it); returns the plots."""
    write_scores(folder / "scores" / f"{name}.csv", table)
    for suffix, text in task.score_files(table).items():
        write_text(folder / "scores" / f"{name}.{suffix}", text)
    for group, cells in breakdowns(metrics).items():
        write_text(folder / "tables" / f"{name}_{group}.csv", cells.to_csv(index_label=group))
    figures = task.plots(table, metrics)
    for plot, figure in figures.items():
        save_figure(figure, folder / "plots" / f"{name}_{plot}.png")
    return figures


class Evaluation(L.Callback):
    """Collects the rows of validation and test; logs metrics and, outside training, writes scores and plots.

    `results[set]` holds the metrics of the last evaluation of each set, in float64, `tables[set]` its rows (outside
    training). `calibration` is given to the tables of all sets that it was not fitted on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, dict[str, float]] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.calibration: dict[str, Any] | None = None
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start with no rows."""
        self._rows = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch, but not those of fillers."""
        draws = batch["draw"] if batch else []
        rows = [row for row, (epoch, _) in zip(outputs, draws, strict=True) if epoch != FILLER]
        self._rows.setdefault(dataloader_idx, []).extend(rows)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the development set(s)."""
        self._finish(trainer, pl_module, trainer.datamodule.val_sets)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the test set(s)."""
        self._finish(trainer, pl_module, trainer.datamodule.test_sets)

    def _finish(self, trainer: L.Trainer, task: Task, set_names: list[str]) -> None:
        data: SpeechData = trainer.datamodule
        data.share_bad_audio()
        skipped = data.skipped_ids
        for number, set_name in enumerate(set_names):
            rows = gather(self._rows.get(number, []))
            table = join_rows(rows, [name for name in data.ids(set_name) if name not in skipped], set_name)
            table.attrs = {**data.context(set_name), "set": set_name, "skipped": len(skipped & set(data.ids(set_name)))}
            if trainer.state.fn is TrainerFn.FITTING:
                self._judge_epoch(task, set_name, table)
                every = task.examples_every_n_epochs
                if every is not None and (trainer.current_epoch + 1) % every == 0:
                    show_examples(trainer, task, set_name, table, self.folder)
                continue
            for name, part in {set_name: table, **data.parts(set_name, table)}.items():
                if self.calibration is not None and not fitted_on(self.calibration, part):
                    part.attrs["calibration"] = self.calibration
                self.tables[name] = part
                self.results[name] = task.metrics(part)
                self._log(task, name)
                if trainer.is_global_zero:
                    self._write(trainer, task, name, part, self.results[name])
            show_examples(trainer, task, set_name, table, self.folder)

    def _judge_epoch(self, task: Task, set_name: str, table: pd.DataFrame) -> None:
        """Judge an epoch of training by what is logged, without breakdowns; an undefined metric is NaN, never best."""
        table.attrs["headline_only"] = True
        try:
            self.results[set_name] = task.metrics(table)
        except UndefinedMetricError as error:
            log.warning("%s is not measured in this epoch: %s", set_name, error)
            measured = [name for name in task.headline if name not in task.only_after_training]
            self.results[set_name] = dict.fromkeys(measured, math.nan)
        self._log(task, set_name)

    def _log(self, task: Task, set_name: str) -> None:
        for name, value in self.results[set_name].items():
            if "/" not in name:
                exact = torch.tensor(value, dtype=torch.float64)  # of a plain number Lightning keeps a float32
                task.log(f"{set_name}/{name}", exact, rank_zero_only=False, sync_dist=False)

    def _write(
        self, trainer: L.Trainer, task: Task, set_name: str, table: pd.DataFrame, metrics: dict[str, float]
    ) -> None:
        figures = write_set(self.folder, set_name, task, table, metrics)
        log_evaluation(trainer.loggers, set_name, table, metrics, figures)
