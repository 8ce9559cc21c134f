"""Health: what is not finite stops a run and is explained, what looks wrong is said once, a healthy run is let be."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from test_run import options
from torch import nn
from unhealthy import OPTIONS, NoiseData, Toy, fit, fit_two

from audiolab import resume, run
from audiolab.errors import InputError, RunError
from audiolab.launch import in_processes
from audiolab.training import bad_batch, health
from audiolab.training import health_rules as rules
from audiolab.training.curves import TrainingCurves
from audiolab.training.gradients import UpdateProbe
from audiolab.training.health import Health
from audiolab.training.throughput import Throughput

MODEL = """\
_target_: audiolab.tasks.asvspoof.model.Detector
front_end:
  _target_: unhealthy.Frames
  dim: 16
back_end:
  _target_: audiolab.tasks.asvspoof.backend.AttentionPooling
  dim: 16
dropout: 0.1
"""


def warnings_of(caplog: pytest.LogCaptureFixture, logger: str = "audiolab") -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith(logger) and r.levelno >= logging.WARNING]


def test_a_silent_file_that_a_module_divides_by_stops_the_run_until_it_is_replaced(tiny_la: Path, tmp_path: Path):
    victim = sorted((tiny_la / "LA/ASVspoof2019_LA_train/flac").iterdir())[3]
    good, silence = tmp_path / "good.flac", tmp_path / "silence.flac"
    shutil.copyfile(victim, good)
    soundfile.write(silence, np.zeros(16_000), 16_000)
    (tmp_path / "conf/model/asvspoof").mkdir(parents=True)
    (tmp_path / "conf/model/asvspoof/frames.yaml").write_text(MODEL)
    breaks = f"+callbacks.breaks={{_target_:unhealthy.ReplacesFile,source:{silence},victim:{victim}}}"
    more = ["model=asvspoof/frames", "augment=asvspoof/none", "data.in_memory=false", "name=nan", breaks]
    argv = ["--config-dir", str(tmp_path / "conf"), *options(tiny_la, tmp_path, *more)]
    with pytest.raises(RunError) as stop:
        run.main(argv)
    folder = tmp_path / "out/asvspoof/nan"
    message = str(stop.value)
    assert message.startswith("the loss (nan) is not finite in epoch 2, batch ")
    where = "The first module to return a value that is not finite is model.front_end.standardise (Standardise)"
    assert where in message
    assert f"correct the code and go on with python -m audiolab.resume {folder}" in message
    facts = json.loads((folder / "bad_batch.json").read_text())
    assert f"batch {facts['batch']}, with the 4 utterances" in message
    assert victim.stem in facts["ids"] and len(facts["ids"]) == len(facts["draws"]) == 4
    assert {epoch for epoch, _ in facts["draws"]} == {facts["epoch"] - 1} == {1}  # the samplers count from 0
    assert len((folder / "bad_batch.json").read_text().splitlines()) < 25
    assert "the checkpoints of the steps before are untouched" in message
    kept = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert message in (folder / "run.log").read_text()
    with pytest.raises(RunError) as again:
        resume.main([str(folder)])
    assert str(again.value) == message
    silence.unlink()
    shutil.copyfile(good, victim)
    resume.main([str(folder)])
    assert (folder / "metrics.json").is_file()


class Weights(L.Callback):
    """The weights before each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def test_the_bad_one_of_accumulated_batches_is_named_and_the_weights_stay(tmp_path: Path):
    task, data, weights = Toy("standardise"), NoiseData({7: 0.0}), Weights()
    with pytest.raises(RunError, match="first module to return .* is standardise"):
        fit(tmp_path, task, data, weights, accumulate_grad_batches=3)
    facts = json.loads((tmp_path / "bad_batch.json").read_text())
    assert "u07" in facts["ids"]
    items = {item for _, item in facts["draws"]}
    assert [f"u{item:02d}" for _, item in facts["draws"]] == facts["ids"] and 7 in items
    first = (facts["batch"] - 1) // 3 * 3
    for name, value in task.state_dict().items():
        assert torch.equal(value, weights.states[first][name])


def test_a_gradient_that_is_not_finite_where_the_loss_is(tmp_path: Path):
    task = Toy("root")
    with pytest.raises(RunError) as stop:
        fit(tmp_path, task, NoiseData({7: 0.0}))
    assert str(stop.value).startswith("the gradient is not finite in epoch 1, batch ")
    assert "the gradient is not from first.weight backwards (1 of" in str(stop.value)
    assert "u07" in json.loads((tmp_path / "bad_batch.json").read_text())["ids"]
    assert all(torch.isfinite(p).all() for p in task.parameters())


def double_to_infinity(wave_bt: torch.Tensor, generators: object) -> torch.Tensor:
    return wave_bt / (wave_bt[:, :1] < 0.2).float()


def test_audio_far_beyond_full_scale_is_told_from_augmentation(tmp_path: Path):
    with pytest.raises(
        RunError, match="u07 is not finite or far beyond full scale in the audio file; replace the file"
    ):
        fit(tmp_path, Toy(), NoiseData({7: 1e30}))
    facts = json.loads((tmp_path / "bad_batch.json").read_text())
    assert facts["bad_ids"] == ["u07"]
    with pytest.raises(RunError, match="after augmentation, not in the file; .* another name= and another augment="):
        fit(tmp_path, Toy(), NoiseData({7: 0.3}, augment=double_to_infinity))


def test_a_rate_that_makes_training_diverge(tmp_path: Path):
    slower = (
        r"there is no checkpoint yet.*training diverged \(.*a usual optimizer.lr, which is from 1e-5 to 1e-3 \(now 40\)"
    )
    with pytest.raises(RunError, match=slower):
        fit(tmp_path, Toy(rate=40.0), NoiseData(), max_epochs=50)


def test_the_rate_that_was_given_is_advised_on_not_that_of_the_warm_up(tmp_path: Path):
    groups = [{"name": "encoder", "lr": 1e-6, "initial_lr": 1e-5}, {"name": "rest", "lr": 0.02, "initial_lr": 0.5}]
    rates = health._given_rates(groups)
    assert rates == {"optimizer.groups.encoder.lr": 1e-5, "optimizer.lr": 0.5}
    finding = bad_batch.Finding("there", True, [], 1.0)
    cause = bad_batch.cause_and_remedy(finding, tmp_path, "32-true", rates, [1.0, 1.0, 50.0], in_file=False)
    assert "optimizer.lr=0.05 (now 0.5)" in cause[1]


@pytest.mark.parametrize(
    ("section", "option", "value", "expected"),
    [
        (Throughput, "wait_percent", 200, "from 0 to 100"),
        (Throughput, "free_checkpoints", -2, "from 0 up"),
        (Throughput, "line_every_minutes", 0, "above 0"),
        (TrainingCurves, "every_s", -1, "from 0 up"),
        (Health, "patience", 2, "from 3 up"),
    ],
)
def test_the_option_that_is_out_of_range_is_named_alone(section: type, option: str, value: float, expected: str):
    good = {"throughput": {"line_every_minutes": 5, "wait_percent": 20, "idle_percent": 30, "memory_percent": 95}}
    good["throughput"] |= {"free_checkpoints": 4, "dirpath": Path("run/checkpoints")}
    good |= {"trainingcurves": {"every_s": 60, "dirpath": Path("run/checkpoints"), "monitor": "x", "mode": "min"}}
    good |= {"health": OPTIONS}
    options = good[section.__name__.lower()]
    section(**options)
    name = "curves" if section is TrainingCurves else section.__name__.lower()
    with pytest.raises(
        InputError, match=rf"^callbacks.{name}.{option}={value} does not fit: give a number {expected}$"
    ):
        section(**{**options, option: value})


def test_infinite_gradients_are_let_pass_where_a_scaler_skips_them_and_an_infinite_loss_is_not(tmp_path: Path):
    def half(scale: float) -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    task = Toy(metrics=tuple(range(8, 0, -1)))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    health = fit(tmp_path, task, NoiseData(), plugins=[half(2.0**40)], max_epochs=8)
    assert health.course.said == []
    assert not torch.equal(task.state_dict()["last.weight"], before["last.weight"])
    with pytest.raises(RunError, match="the loss .* is not finite"):
        fit(tmp_path, Toy("standardise"), NoiseData({7: 0.0}), plugins=[half(2.0**10)])
    with pytest.raises(RunError, match="the gradient is not finite"):
        fit(tmp_path, Toy("root"), NoiseData(dict.fromkeys(range(24), 0.0)), plugins=[half(2.0**10)], max_epochs=8)


def test_a_loss_that_is_nan_on_one_of_two_processes_stops_both(tmp_path: Path):
    with pytest.raises(RunError, match="the loss .nan. is not finite in epoch 1.* utterances of one process"):
        in_processes(fit_two, 2, str(tmp_path))
    facts = json.loads((tmp_path / "bad_batch.json").read_text())
    assert "u05" in facts["ids"] and len(facts["ids"]) == 2


def test_parameters_without_gradient_and_without_a_group(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    health = fit(tmp_path, Toy("unused"), NoiseData(), max_epochs=4)
    found = [text for text in warnings_of(caplog) if "no gradient" in text]
    assert len(found) == 1  # `sometimes`, which every other step skips, is not among them
    assert (
        "2 trainable parameters of optimiser group rest got no gradient in the first 20 steps (unused.weight"
        in found[0]
    )
    assert "without rest" in health.course.said
    with pytest.raises(
        InputError, match=r"4 of 6 trainable parameters are not in exactly one .* \(first: last.weight\)"
    ):
        fit(tmp_path, Toy("forgotten"), NoiseData())


def test_a_dead_part_and_weights_that_do_not_move_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    fit(tmp_path, Toy("dead", rate=1e-12), NoiseData(), max_epochs=8)
    found = warnings_of(caplog)
    assert len([text for text in found if "hardly move" in text]) == 1
    assert len([text for text in found if "the training loss does not fall" in text]) == 1
    assert len([text for text in found if "dev/eer is exactly 4 in the last 5 validations" in text]) == 1


def test_a_resumed_run_gives_the_same_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def saying(*more: object, **given: object) -> tuple[list[str], Health]:
        caplog.clear()
        task = Toy(rate=1e-12, metrics=(math.nan, math.nan, 4.0))
        health = fit(tmp_path, task, NoiseData(), *more, log_every_n_steps=3, **given)
        return warnings_of(caplog), health

    whole, health = saying(max_epochs=10)
    assert len(whole) == 4
    saver = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="part", save_on_train_epoch_end=False, every_n_train_steps=14
    )
    first, _ = saying(saver, max_epochs=3, enable_checkpointing=True)
    rest, resumed = saying(max_epochs=10, ckpt=tmp_path / "part.ckpt")
    assert repr(resumed.course) == repr(health.course)  # NaN is not NaN
    assert (first, rest) == (whole[:2], whole[1:])  # the second came between the checkpoint and the end


def test_a_healthy_run_is_left_alone_and_logs_norm_and_ratio(
    tiny_la: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert run.main(options(tiny_la, tmp_path, "name=well", "trainer.max_epochs=6", "data.batch_size=8")) == 0
    assert warnings_of(caplog, "audiolab.training") == []
    rows = list(csv.DictReader((tmp_path / "out/asvspoof/well/metrics.csv").open()))
    for name in ("grad_norm", "update_ratio"):
        values = [float(row[f"health/rest/{name}"]) for row in rows if row[f"health/rest/{name}"]]
        assert len(values) == 18 and all(value > 0 for value in values)
    assert not (tmp_path / "out/asvspoof/well/bad_batch.json").exists()


def test_the_update_ratio_is_that_of_all_values():
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(300, 400)), nn.Parameter(torch.randn(7).t())
    probe = UpdateProbe([{"params": [first]}, {"params": [second]}])
    changes = [0.01 * torch.randn(300, 400), 0.1 * torch.randn(7)]
    sizes = [first.detach().norm(), (second.detach() + changes[1]).norm()]
    with torch.no_grad():
        first += changes[0]
        second += changes[1]
    ratios = [math.sqrt(change / size) for change, size in zip(*(s.tolist() for s in probe.squares()), strict=True)]
    assert ratios[0] == pytest.approx(float(changes[0].norm() / sizes[0]), rel=0.1)  # of a thousandth of the values
    assert ratios[1] == pytest.approx(float(changes[1].norm() / sizes[1]), rel=1e-5)


def noisy(values: np.ndarray, share: float, seed: int) -> list[float]:
    return (values * (1 + share * np.random.default_rng(seed).normal(size=len(values)))).tolist()


def test_rules_on_courses_with_noise():
    epochs = np.arange(40)
    falling, flat = 0.7 * np.exp(-epochs / 10) + 0.05, np.full(40, 0.7)
    for seed in range(20):
        assert rules.loss_not_falling(0.7, noisy(falling, 0.05, seed), 5) is None
        stays = noisy(flat, 0.005, seed)
        assert any(rules.loss_not_falling(0.7, stays[:last], 5) for last in range(5, 12))
        course = noisy(5 + 20 * np.exp(-epochs / 5), 0.08, seed)  # ends in noise about its best
        worse = noisy(5 + 20 * np.exp(-epochs / 3) + 0.3 * np.clip(epochs - 15, 0, None), 0.05, seed)
        for last in range(1, 41):
            assert rules.overfitting("m", "min", epochs[:last], course[:last], falling[:last], 5) is None, (seed, last)
        found = rules.overfitting("m", "min", epochs, worse, falling, 5)
        assert found and "overfitting since epoch 1" in found
        mirrored = [100 - value for value in worse]
        assert "overfitting since epoch 1" in rules.overfitting("m", "max", epochs, mirrored, falling, 5)
        assert rules.overfitting("m", "min", epochs, worse, flat, 5) is None  # nothing is learned by heart
        norms = noisy(np.exp(np.random.default_rng(seed).normal(0, 1, 400)), 0.1, seed)
        for last in range(20, 400, 10):
            assert rules.gradient_explodes("g", norms[max(0, last - 200) : last], max(norms[:20]), 10.0) is None
    assert rules.overfitting("m", "min", [], [], [], 5) is None
    assert rules.loss_not_falling(10.0, [-1.0, -5.0, -8.0, -8.1, -8.0], 5) is None  # SI-SDR, in dB
    assert "the training loss does not fall" in rules.loss_not_falling(-1.0, [-1.0, -1.0, -1.01, -1.0, -1.0], 5)


@pytest.mark.parametrize("wrong", [{"patience": 1}, {"explosion_factor": 1.0}, {"least_update_ratio": -1.0}])
def test_options_that_cannot_be_are_refused(wrong: dict):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Health(**(OPTIONS | wrong))
