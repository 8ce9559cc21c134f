"""Schedules in training: recorded traces, validations that come seldom, resumed runs, the end of a training."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from test_distributed import TWO, options
from test_training_averaging import NoiseData
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from audiolab import run
from audiolab.errors import InputError
from audiolab.training.averaging import TopKAverage
from audiolab.training.checkpoint_io import WholeFiles
from audiolab.training.checkpoints import Checkpoints, read_checkpoint
from audiolab.training.early_stopping import EarlyStopping
from audiolab.training.optim import Optimization
from audiolab.training.position import Position
from audiolab.training.schedules import Constant, Cosine, Halving, Schedule
from audiolab.training.task import Task

HALVING = Halving("dev/eer", "min", factor=0.5, patience=1, threshold=0.01, min_lr=1e-8)
CONSTANT = Constant(warmup=0.0, warmup_start=1.0)


class Given(L.Callback):
    """The metric of each epoch's validations, as the evaluation would log it, and the rates after each epoch."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.rates = values, []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("dev/eer", torch.tensor(self.values[trainer.current_epoch], dtype=torch.float64))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Small(Task):
    """Six batches of two an epoch; keeps the gradient of every optimiser step."""

    headline: ClassVar[dict[str, str]] = {"eer": "{}"}
    prediction_columns: ClassVar[dict[str, type]] = {}
    prediction_in_words: ClassVar[str] = "score your own audio"

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(nn.Linear(3, 1), Optimization(0.1, 0.0, (0.9, 0.999), 1e-8, schedule))
        self.gradients: list[Tensor] = []

    def loss(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.model(batch["wave"]) - 1).square().mean(), {}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append(self.model.weight.grad.clone())

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Nothing is measured by the batch."""

    rows = metrics = plots = infer = predict_recording = validation_step


def fit(
    folder: Path,
    schedule: Schedule,
    values: list[float],
    *callbacks: L.Callback,
    start: Path | None = None,
    **more: Any,
) -> tuple[Small, list[float]]:
    torch.manual_seed(0)
    task, given = Small(schedule), Given(values)
    checkpoints = Checkpoints(folder / "checkpoints", "dev/eer", "min", 100, 1, None)
    trainer = {"accelerator": "cpu", "max_epochs": len(values), "logger": False, "default_root_dir": folder} | more
    L.Trainer(
        **trainer,
        callbacks=[given, Position(0), *callbacks, checkpoints],
        plugins=[WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    ).fit(task, NoiseData(2, 4, 0, "raise", 0), ckpt_path=start, weights_only=True)
    return task, given.rates


@pytest.mark.parametrize("case", ["flat_minus12", "slow_worsening", "improve_then_flat", "noisy"])
def test_the_recorded_traces(shared: Path, case: str):
    traces = json.loads((shared / "reference/separation/halving_lr_traces.json").read_text())["cases"][case]
    optimizers = [torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=1e-3) for _ in range(2)]
    halving = Halving("dev/si_sdr", "min", factor=0.5, patience=3, threshold=1e-3, min_lr=1e-8)
    absolute = halving.build(optimizers[0], total_steps=100, of_groups={})
    relative = ReduceLROnPlateau(optimizers[1], factor=0.5, patience=3, min_lr=1e-8)  # torch's default, for comparison
    rates: list[list[float]] = [[], []]
    for value in traces["val_loss"]:
        absolute.step(value), relative.step(value)
        for found, optimizer in zip(rates, optimizers, strict=True):
            found.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == traces["lr_absolute_threshold_1e-3"]
    assert rates[1] == traces["lr_default_relative_threshold"]


def test_a_metric_that_should_rise_and_one_that_is_no_number():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = Halving("dev/si_sdr", "max", 0.5, patience=0, threshold=0.1, min_lr=0.3).build(optimizer, 10, {})
    rates = []
    for value in (5.0, 5.2, 5.25, math.nan, 9.0, 9.0):
        schedule.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.3, 0.3, 0.3]


def test_without_decay_it_is_adam_to_the_bit():
    ours, theirs = (nn.Linear(4, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer, _ = Optimization(1e-3, 0.0, (0.9, 0.999), 1e-8, CONSTANT).build(ours, 10)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    x_bd = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        for model, stepped in ((ours, optimizer), (theirs, adam)):
            stepped.zero_grad()
            model(x_bd).square().mean().backward()
            stepped.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("trainer", "rates"),
    [
        ({}, [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]),  # the second without improvement is one too many
        ({"check_val_every_n_epoch": 2}, [0.1, 0.1, 0.1, 0.1, 0.1, 0.05]),  # looked at three times only
        ({"val_check_interval": 0.5, "max_epochs": 3}, [0.1, 0.1, 0.05]),  # twice an epoch
    ],
)
def test_halving_looks_at_every_validation_once_and_resumes_exactly(
    tmp_path: Path, trainer: dict[str, Any], rates: list[float]
):
    values = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    whole, found = fit(tmp_path / "whole", HALVING, values, **trainer)
    assert found == rates
    written = sorted((tmp_path / "whole/checkpoints").glob("step*.ckpt"))
    for path in written[1::4] + written[5:-1:6]:  # in epochs, and at their ends
        resumed, later = fit(tmp_path / path.stem, HALVING, values, start=path, **trainer)
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items()), path
        assert later == rates[len(rates) - len(later) :]


@pytest.mark.parametrize("schedule", [CONSTANT, Cosine(0.2, 0.1, 1e-3)])
def test_other_schedules_take_no_notice_of_validations(tmp_path: Path, schedule: Schedule):
    _, rates = fit(tmp_path, schedule, [1.0, 1.0, 1.0])
    assert rates == ([0.1] * 3 if schedule is CONSTANT else sorted(rates, reverse=True))


def test_batches_left_over_from_accumulation_are_a_step_with_the_weight_of_a_mean(tmp_path: Path):
    task, _ = fit(tmp_path, CONSTANT, [1.0], accumulate_grad_batches=4)
    assert len(task.gradients) == 2
    checkpoint = read_checkpoint(tmp_path / "checkpoints/step0000001.ckpt")
    task.load_state_dict(checkpoint["state_dict"])
    data = NoiseData(2, 4, 0, "raise", 0)
    data.setup("fit")
    leftover = [batch for number, batch in enumerate(data.train_dataloader()) if number >= 4]
    assert len(leftover) == 2
    task.zero_grad()
    (sum(task.loss(batch)[0] for batch in leftover) / 2).backward()
    torch.testing.assert_close(task.gradients[1], task.model.weight.grad)


def test_training_ends_when_nothing_improves_and_stays_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = [3.0, 2.0, 1.995, math.nan, 1.995, 1.0, 0.5]

    def callbacks(folder: Path) -> list[L.Callback]:
        average = TopKAverage(folder / "checkpoints", 2, "dev/eer", "min")
        return [average, EarlyStopping("dev/eer", "min", patience=3, threshold=0.01)]

    whole, rates = fit(tmp_path / "whole", CONSTANT, values, *callbacks(tmp_path / "whole"))
    assert len(rates) == 5
    line = "stopped early after epoch 5: dev/eer has not improved for 3 epochs, since epoch 2\n"
    assert capsys.readouterr().out.count(line) == 1
    assert (tmp_path / "whole/checkpoints/average.ckpt").is_file()
    last = tmp_path / "whole/checkpoints/step0000030.ckpt"
    ended, more = fit(tmp_path / "ended", CONSTANT, values, *callbacks(tmp_path / "ended"), start=last)
    assert more == []  # killed while its sets were judged: it does not train on
    assert all(torch.equal(value, ended.state_dict()[name]) for name, value in whole.state_dict().items())
    earlier = tmp_path / "whole/checkpoints/step0000015.ckpt"  # within an epoch
    _, rest = fit(tmp_path / "resumed", CONSTANT, values, callbacks(tmp_path)[1], start=earlier)
    assert len(rest) == 3
    _, rates = fit(tmp_path / "seldom", CONSTANT, values, callbacks(tmp_path)[1], check_val_every_n_epoch=2)
    assert len(rates) == 7  # at epochs 2, 4 and 6, which is better
    _, rates = fit(tmp_path / "never", CONSTANT, [math.nan] * 4, EarlyStopping("dev/eer", "max", 2, 0.0))
    assert len(rates) == 2
    assert "stopped early after epoch 2: dev/eer was never measured" in capsys.readouterr().out


def test_two_processes_halve_and_stop_together(tiny_la: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    more = ["schedule=halving", "schedule.patience=0", "schedule.threshold=1000", "trainer.max_epochs=6"]
    more += ["callbacks=early_stopping", "callbacks.early_stopping.threshold=1000"]
    argv = [*options(tiny_la, tmp_path, *more, *TWO), "callbacks.early_stopping.patience=2", "name=stopped"]
    argv += ["trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]
    assert run.main(argv) == 0
    folder = tmp_path / "out/asvspoof/stopped"
    assert capfd.readouterr().out.count("stopped early after epoch 3") == 1
    assert (folder / "metrics.json").is_file()
    with (folder / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr/rest"]) for row in csv.DictReader(file) if row.get("lr/rest")]
    assert sorted(set(rates), reverse=True) == pytest.approx([2e-3, 1e-3])  # and again at the end
    state = read_checkpoint(folder / "checkpoints/last.ckpt")["lr_schedulers"][0]
    assert state["num_bad_epochs"] == 0 and state["_last_lr"] == [5e-4]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: Halving("dev/eer", "min", 1.0, 3, 0.001, 1e-8),
            "schedule.factor=1.0, .* a factor between 0 and 1",
        ),
        (lambda: Constant(1.0, 0.1), "schedule.warmup=1.0, .* do not fit"),
        (lambda: Cosine(0.1, 0.1, -1.0), "schedule.floor_lr=-1.0 does not fit"),
        (lambda: CONSTANT.of_group("a", {"wramup": 0.1}), "groups.a.schedule.wramup is no option of Constant"),
        (lambda: HALVING.of_group("a", {"patience": 1}), "groups.a.schedule does not fit Halving"),
        (lambda: Optimization(0.1, 0.0, (0.9, 1.0), 1e-8, CONSTANT), r"optimizer.betas=\[0.9, 1.0\]"),
        (lambda: EarlyStopping("dev/eer", "min", 0, 0.0), "callbacks.early_stopping.patience=0 does not fit"),
    ],
)
def test_options_that_cannot_be(make: Any, expected: str):
    with pytest.raises(InputError, match=expected):
        make()
