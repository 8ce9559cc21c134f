"""Means of the loss over epochs: exact after a stop within one, and written before the epoch's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from test_training_averaging import NoiseData, Toy
from torch import Tensor

from audiolab.training.checkpoint_io import WholeFiles
from audiolab.training.checkpoints import Checkpoints, read_checkpoint
from audiolab.training.epoch_means import EpochMeans
from audiolab.training.position import Position


class Rows(Logger):
    """Keeps what is logged, and how many checkpoints there were when it was saved."""

    name, version = "rows", 0

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.rows, self.saved = folder, {}, {}

    def log_hyperparams(self, *_: Any) -> None:
        """Nothing is kept."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.setdefault(step, {}).update(metrics)

    def save(self) -> None:
        for step in self.rows:
            self.saved.setdefault(step, [path.name for path in self.folder.glob("step*.ckpt")])


class Cut(NoiseData):
    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        size = 2 if int(batch["id"][0]) % 3 else 4
        return {**batch, "wave": batch["wave"][:size], "id": batch["id"][:size]}


class WithParts(Toy):
    """Three batches an epoch, some of which lose utterances; the loss of each is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, int]] = []

    def training_step(self, batch: dict, batch_idx: int) -> dict[str, Any] | Tensor:
        loss = self.loss(batch)[0]
        self.seen.append((loss.item(), len(batch["id"])))
        return {"loss": loss, "parts": {"loss": loss.detach(), "accuracy": loss.detach() * 2}}


class Bare(WithParts):
    """Returns the loss alone."""

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)["loss"]


def fit(folder: Path, task: Toy, start: Path | None = None, **options: Any) -> Rows:
    torch.manual_seed(0)
    task.linear.reset_parameters(), task.frozen.reset_parameters()
    rows = Rows(folder / "checkpoints")
    L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=rows,
        default_root_dir=folder,
        callbacks=[Position(0), EpochMeans(), Checkpoints(folder / "checkpoints", "dev/eer", "min", 100, 1, None)],
        plugins=[WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    ).fit(task, Cut(4, 4, 0, "raise", 0), ckpt_path=start, weights_only=True)
    return rows


def epoch_rows(rows: Rows) -> dict[int, dict[str, float]]:
    return {step: row for step, row in rows.rows.items() if "train/loss_epoch" in row}


@pytest.mark.parametrize(("kind", "accumulate"), [(WithParts, 1), (Bare, 1), (Bare, 2)])
def test_means_weigh_utterances_and_are_written_before_the_checkpoint(tmp_path: Path, kind: type, accumulate: int):
    task = kind()
    rows = fit(tmp_path, task, accumulate_grad_batches=accumulate)
    assert len(task.seen) == 6 and {size for _, size in task.seen} == {2, 4}
    steps = 3 // accumulate + 3 % accumulate
    assert sorted(epoch_rows(rows)) == [steps - 1, 2 * steps - 1]
    for epoch, (step, row) in enumerate(epoch_rows(rows).items()):
        seen = task.seen[3 * epoch : 3 * epoch + 3]
        mean = sum(loss * size for loss, size in seen) / sum(size for _, size in seen)
        assert row["train/loss_epoch"] == pytest.approx(mean, rel=1e-6)
        assert row.get("train/accuracy") == (pytest.approx(2 * mean, rel=1e-6) if kind is WithParts else None)
        assert row["epoch"] == epoch
        assert f"step{step + 1:07d}.ckpt" not in rows.saved[step]
    assert task.trainer.callback_metrics["train/loss_epoch"] == pytest.approx(mean)


def test_a_run_that_goes_on_within_an_epoch_has_the_means_of_the_whole_epoch(tmp_path: Path):
    whole = epoch_rows(fit(tmp_path / "whole", WithParts()))
    for step in (1, 2, 3, 4, 5):
        start = tmp_path / f"whole/checkpoints/step{step:07d}.ckpt"
        sums = read_checkpoint(start)["callbacks"].get("EpochMeans", {})
        assert all(type(value) is float for value in sums.values()) and bool(sums) == (step != 3)
        resumed = epoch_rows(fit(tmp_path / f"from{step}", WithParts(), start))
        assert resumed == {at: row for at, row in whole.items() if at >= step}
