"""Averages of weights: which ones, to the bit, and with which running statistics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.training.averaging import MovingAverage, TopKAverage
from audiolab.training.data import SpeechData
from audiolab.training.items import Item, Utterances
from audiolab.training.position import Position

VALUES = [5.0, 2.0, 4.0, 2.0, 3.0]  # of the metric, by epoch: the best three are epochs 1, 3 and 4


class Noise(Utterances):
    def __init__(self) -> None:
        self.ids = [f"{number:02d}" for number in range(12)]

    def read(self, index: int, generator: np.random.Generator) -> Item:
        return {"wave": torch.from_numpy(generator.normal(index, 1, 3).astype(np.float32))}


class NoiseData(SpeechData):
    val_sets, test_sets, num_files = ["dev"], [], 12

    def utterances(self, set_name: str) -> Noise:
        return Noise()

    def context(self, set_name: str) -> dict:
        return {}

    def choose_test_sets(self, names: list[str]) -> None:
        raise AssertionError


class Toy(L.LightningModule):
    """A linear layer and batch norm, a frozen part with constants, and a metric that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.frozen = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)
        self.register_buffer("constant", torch.tensor([0.1, 0.9]))
        self.register_buffer("positions", torch.arange(1, 50))

    def loss(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        return self.frozen(self.norm(self.linear(batch["wave"]))).square().mean(), {}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        return self.loss(batch)[0]

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("dev/eer", VALUES[min(self.current_epoch, 4)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.linear.parameters(), lr=0.1)


class History(L.Callback):
    """What the weights were after every epoch, and what a checkpoint held."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def fit(folder: Path, *callbacks: L.Callback) -> tuple[Toy, NoiseData, History]:
    torch.manual_seed(0)
    task, data, history = Toy(), NoiseData(4, 4, 0, "raise", 0), History()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=len(VALUES),
        callbacks=[Position(0), *callbacks, history],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    return task, data, history


def test_the_average_is_that_of_the_best_epochs_with_statistics_of_its_own(tmp_path: Path):
    top = TopKAverage(tmp_path, keep=3, monitor="dev/eer", mode="min")
    task, data, history = fit(tmp_path, top)
    assert top.kept == [(2.0, 12), (2.0, 6), (3.0, 15)]
    assert [path.name for path in tmp_path.iterdir()] == ["average.ckpt"]
    average = torch.load(tmp_path / "average.ckpt", weights_only=True)
    assert average["kept"] == [[2.0, 12], [2.0, 6], [3.0, 15]]
    found = average["state_dict"]
    for name in ("linear.weight", "linear.bias"):
        expected = sum(history.states[epoch][name].double() for epoch in (1, 3, 4)) / 3
        assert torch.equal(found[name], expected.float())
        assert not torch.equal(found[name], history.states[4][name])
        assert torch.equal(task.state_dict()[name], history.states[4][name])  # training itself was not touched
    # by hand: the batches of the epoch after the last through the averaged layer
    data.position = (5, 0)
    hidden = [
        nn.functional.linear(b["wave"], found["linear.weight"], found["linear.bias"]) for b in data.train_dataloader()
    ]
    assert len(hidden) == 3
    torch.testing.assert_close(found["norm.running_mean"], torch.stack([x.mean(0) for x in hidden]).mean(0))
    torch.testing.assert_close(found["norm.running_var"], torch.stack([x.var(0) for x in hidden]).mean(0))
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(task.state_dict()[name], history.states[4][name])
    assert task.norm.momentum == 0.1


def test_a_metric_to_be_maximised(tmp_path: Path):
    top = TopKAverage(tmp_path, keep=2, monitor="dev/eer", mode="max")
    fit(tmp_path, top)
    assert top.kept == [(5.0, 3), (4.0, 9)]


def test_with_a_moving_average_what_was_judged_is_averaged(tmp_path: Path):
    for order in (0, 1):
        folder = tmp_path / str(order)
        both = [MovingAverage(0.8, 1, 0), TopKAverage(folder, keep=1, monitor="dev/eer", mode="min")]
        _, _, history = fit(folder, *(both if order else reversed(both)))
        found = torch.load(folder / "average.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(found["linear.weight"], history.states[3]["linear.weight"])


def test_a_file_is_kept_until_the_last_checkpoint_no_longer_counts_on_it(tmp_path: Path):
    """Killed after a validation and before `last.ckpt`, a run goes on from a list that still names the older file."""
    top = TopKAverage(tmp_path, keep=1, monitor="dev/eer", mode="min")
    strategy = SimpleNamespace(
        save_checkpoint=lambda checkpoint, path: torch.save(checkpoint, path),
        lightning_module_state_dict=nn.Linear(1, 1).state_dict,
    )
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = SimpleNamespace(strategy=strategy, callbacks=[], is_global_zero=True, state=state)

    def validate(step: int, value: float) -> None:
        trainer.global_step, trainer.callback_metrics = step, {"dev/eer": torch.tensor(value)}
        top.on_validation_end(trainer, nn.Linear(1, 1))

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    validate(3, 5.0)
    saved = top.state_dict()
    validate(6, 4.0)
    assert names() == ["top0000003.ckpt", "top0000006.ckpt"]
    resumed = TopKAverage(tmp_path, keep=1, monitor="dev/eer", mode="min")
    resumed.load_state_dict(saved)
    resumed.on_train_epoch_start(trainer, nn.Linear(1, 1))
    assert names() == ["top0000003.ckpt"]
    top = resumed
    validate(6, 4.5)  # again, on a machine that rounds otherwise
    top.on_train_epoch_start(trainer, nn.Linear(1, 1))
    assert top.kept == [(4.5, 6)]
    assert names() == ["top0000006.ckpt"]


def test_a_moving_average_is_the_recursion_and_leaves_constants_and_counters_alone(tmp_path: Path):
    average = MovingAverage(0.9, 1, 0)
    torch.manual_seed(0)
    start = Toy().state_dict()
    _, _, history = fit(tmp_path, average)
    last = history.states[-1]
    for name in ("constant", "positions", "frozen.weight", "frozen.bias"):
        assert torch.equal(last[name], start[name])
    assert not torch.equal(last["linear.weight"], start["linear.weight"])
    assert last["norm.num_batches_tracked"] == 15

    torch.manual_seed(0)
    single = Toy()
    weights = [1.0, 2.0, 4.0]
    callback = MovingAverage(0.75, 1, 0)
    callback.setup(SimpleNamespace(), single, "fit")
    for step, weight in enumerate(weights):
        nn.init.constant_(single.linear.weight, weight)
        single.norm.running_mean.fill_(weight)
        callback.on_train_batch_end(SimpleNamespace(global_step=step + 1), single, None, None, step)
    expected = 0.75 * (0.75 * 1.0 + 0.25 * 2.0) + 0.25 * 4.0
    assert torch.equal(callback._average_model.module.linear.weight, torch.full((2, 3), expected))
    assert torch.equal(callback._average_model.module.norm.running_mean, torch.full((2,), expected))


def test_after_training_a_validation_judges_the_weights_that_were_loaded(tmp_path: Path):
    task, data, history = fit(tmp_path, MovingAverage(0.9, 1, 0))
    nn.init.zeros_(task.linear.weight)
    task.trainer.validate(task, data, verbose=False)
    assert len(history.states) == len(VALUES) + 1
    assert not history.states[-1]["linear.weight"].any()


@pytest.mark.parametrize("options", [(1.0, 1, 0), (0.9, 0, 0), (0.9, 1, -1)])
def test_a_moving_average_that_cannot_be(options: tuple[float, int, int]):
    with pytest.raises(InputError, match="cannot be"):
        MovingAverage(*options)
