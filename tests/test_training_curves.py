"""metrics.csv, which survives kills and resumes, and the picture that is drawn from it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from test_run import options

from audiolab import run
from audiolab.reporting.metrics_file import MetricsFile, read_metrics
from audiolab.reporting.plots import save_figure
from audiolab.reporting.training_curves import moving_mean, training_curves
from audiolab.tasks.asvspoof.module import SpoofingDetection
from audiolab.training.schedules import cosine_factor

HEADLINE = {"eer": "EER {:.2f} %", "min_dcf": "min DCF {:.4f}", "cllr": "Cllr {:.4f} bit", "f1": "F1 {:.1f} %"}


def written(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def add(file: MetricsFile, step: int, **values: float) -> None:
    file.add(step, values)
    file.save()


def test_rows_are_there_as_soon_as_they_are_saved_and_values_of_a_step_share_one(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    file, expected = MetricsFile(path), {}
    for step in range(20):
        add(file, step, loss=1 / (step + 1))
        expected[step] = {"step": step, "loss": 1 / (step + 1)}
        if step % 5 == 4:
            add(file, step, loss=0.5, eer=0.1 * step)
            expected[step] |= {"loss": 0.5, "eer": 0.1 * step}
        assert written(path) == list(expected.values())  # what a killed process leaves
    assert path.read_text().splitlines()[0] == "step,eer,loss"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    for step in range(10):
        add(MetricsFile(path), step, loss=float(step))
    file = MetricsFile(path)
    add(file, 6, eer=3.0)  # the checkpoint was of step 6
    assert [row["step"] for row in written(path)] == list(range(7))
    assert written(path)[6] == {"step": 6, "loss": 6.0, "eer": 3.0}
    for step in range(7, 12):
        add(file, step, loss=-1.0)
    assert [row["loss"] for row in written(path)] == [*range(7), -1, -1, -1, -1, -1]


def test_a_value_that_comes_late_finds_its_row(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (2, 4, 6):
        add(file, step, loss=1.0)
    add(file, 4, eer=5.0)
    add(file, 3, eer=7.0)
    add(file, 8, loss=2.0)
    assert written(file.path) == [
        {"step": 2, "loss": 1.0},
        {"step": 3, "eer": 7.0},
        {"step": 4, "loss": 1.0, "eer": 5.0},
        {"step": 6, "loss": 1.0},
        {"step": 8, "loss": 2.0},
    ]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_line_that_was_cut_off_is_left_out_and_written_over(tmp_path: Path, cut: int):
    path = tmp_path / "metrics.csv"
    for step in range(3):
        add(MetricsFile(path), step, loss=0.125)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_metrics(path)["step"].tolist() == [0, 1]
    add(MetricsFile(path), 2, loss=0.25)
    assert written(path)[1:] == [{"step": 1, "loss": 0.125}, {"step": 2, "loss": 0.25}]
    (tmp_path / "metrics.csv").write_bytes(b"step,lo")
    add(MetricsFile(path), 2, loss=0.25)
    assert written(path) == [{"step": 2, "loss": 0.25}]


def test_a_long_run_copies_its_file_only_for_new_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copies, copy = [], MetricsFile._rewrite
    monkeypatch.setattr(MetricsFile, "_rewrite", lambda self, row: (copies.append(1), copy(self, row)))
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in range(500):
        add(file, step, loss=0.5, lr=1e-3)
        if step % 100 == 99:
            add(file, step, eer=1.0)
    assert len(copies) == 2
    assert len(written(file.path)) == 500


def test_not_finite_and_not_logged_are_told_apart(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    add(file, 0, nan_share=float("nan"), loss=1.0)
    add(file, 1, loss=float("nan"), nan_share=0.0)
    add(file, 2, loss=float("-inf"))
    log = read_metrics(path)
    assert list(log) == ["step", "loss", "nan_share"]
    assert log["loss"].tolist() == [1.0, np.inf, -np.inf]
    assert log["nan_share"].tolist()[:2] == [np.inf, 0.0] and np.isnan(log["nan_share"][2])


def training(epochs: int, steps: int, every: int = 1) -> pd.DataFrame:
    """A log of `epochs` epochs of `steps` steps, and the row of the final evaluation."""
    rows = []
    for step in range(epochs * steps):
        row: dict[str, float] = {"step": step, "epoch": step // steps}
        if (step + 1) % every == 0:
            row |= {"train/loss_step": 1 / (step + 1), "lr/rest": 1e-3, "lr/encoder": 1e-5}
            row |= {"throughput/utterances_per_s": 300.0, "throughput/data_wait_percent": 4.0}
        if (step + 1) % steps == 0:
            epoch = step // steps
            row |= {"train/loss_epoch": 1 / (epoch + 1), "dev/eer": 5 + abs(epoch - 3), "dev/min_dcf": 0.5}
        rows.append(row)
    rows.append({"step": epochs * steps, "epoch": epochs, "dev/eer": 0.0, "eval/eer": 0.0, "eval/min_dcf": 0.0})
    return pd.DataFrame(rows)


def panel(figure, label: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_ylabel() == label)


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(line for line in axes.lines if str(line.get_label()).startswith(label))
    return list(found.get_xdata()), list(found.get_ydata())


def test_every_kind_of_values_has_its_panel():
    log = training(6, 10, every=2)
    log["health/rest/grad_norm"], log["health/encoder/grad_norm"] = 2.0, 0.01
    figure = training_curves(log, HEADLINE, "dev/eer", "min", title="a run")
    labels = ["Loss", "EER (%)", "min DCF", "Learning rate", "Gradient norm", "Utterances/s", "Waiting for data (%)"]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    assert panel(figure, "Learning rate").get_yscale() == panel(figure, "Gradient norm").get_yscale() == "log"
    assert line(panel(figure, "Loss"), "steps")[0] == list(range(2, 61, 2))
    assert line(panel(figure, "Loss"), "epoch mean") == ([10, 20, 30, 40, 50, 60], [1 / (n + 1) for n in range(6)])
    eer = panel(figure, "EER (%)")
    assert line(eer, "dev EER")[1] == [8, 7, 6, 5, 6, 7]  # without the final evaluation
    assert line(eer, "best: 5, epoch 4") == ([40], [5])
    assert not [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1] if "eval" in text]


def test_the_highest_is_best_where_higher_is_better():
    figure = training_curves(training(6, 10), {"eer": "accuracy {:.2f} %"}, "dev/eer", "max")
    assert line(panel(figure, "accuracy (%)"), "best: 8, epoch 1") == ([10], [8])


def test_values_that_are_not_finite_leave_gaps_and_are_never_best():
    log = training(6, 10)
    log.loc[30:34, "train/loss_step"] = np.inf
    log.loc[log["train/loss_epoch"].notna() & (log["epoch"] == 3), "dev/eer"] = np.inf  # else the best
    figure = training_curves(log, HEADLINE, "dev/eer", "min")
    assert np.isnan(line(panel(figure, "Loss"), "steps")[1]).sum() == 5
    assert line(panel(figure, "Loss"), "not finite")[0] == [31, 32, 33, 34, 35]
    assert line(panel(figure, "EER (%)"), "best: 6, epoch 3")[0] == [30]
    log["dev/eer"] = log["dev/eer"].where(log["dev/eer"].isna(), np.inf)
    figure = training_curves(log, HEADLINE, "dev/eer", "min")
    assert not [text for text in panel(figure, "EER (%)").get_legend_handles_labels()[1] if "best" in text]


@pytest.mark.parametrize(("epochs", "steps", "every"), [(1, 30, 10), (1, 1, 10), (200, 18, 10)])
def test_runs_of_any_length_can_be_drawn(epochs: int, steps: int, every: int, tmp_path: Path):
    figure = training_curves(training(epochs, steps, every), HEADLINE, "dev/eer", "min")
    save_figure(figure, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert panel(figure, "EER (%)").get_xlim()[1] > epochs * steps
    smoothed = [label for label in panel(figure, "Loss").get_legend_handles_labels()[1] if "mean of" in label]
    assert smoothed == (["steps, mean of 7"] if epochs == 200 else [])
    empty = training_curves(training(epochs, steps, every).iloc[:0], HEADLINE, "dev/eer", "min")
    assert not empty.axes


def test_the_moving_mean_is_that_of_the_values_around():
    values = pd.Series(np.random.default_rng(0).normal(size=50))
    found = moving_mean(values, 5).to_numpy()
    assert found[20] == pytest.approx(values[18:23].mean())
    assert found[0] == pytest.approx(values[:3].mean())


def test_a_run_leaves_its_picture_and_without_metrics_csv_none(tiny_la: Path, tmp_path: Path):
    argv = options(tiny_la, tmp_path, "augment=asvspoof/none", "trainer.max_epochs=1", "trainer.log_every_n_steps=2")
    assert run.main([*argv, "name=drawn", "logger=[csv,tensorboard]"]) == 0
    folder = tmp_path / "out/asvspoof/drawn"
    assert (folder / "plots/training.png").read_bytes().startswith(b"\x89PNG")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert "training" in events.Tags()["images"]
    log = read_metrics(folder / "metrics.csv")
    rates = log.set_index("step")["lr/rest"].dropna()  # each that of its own step
    assert rates.to_dict() == pytest.approx(
        {step: 2e-3 * cosine_factor(step, 6, 0, 0.1, 1e-6 / 2e-3) for step in (1, 3, 5)}
    )
    assert run.main([*argv, "name=bare", "logger=[tensorboard]"]) == 0
    assert not (tmp_path / "out/asvspoof/bare/plots/training.png").exists()


def test_an_interrupted_run_leaves_its_picture(tiny_la: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = SpoofingDetection.training_step

    def interrupted(self: SpoofingDetection, batch: dict, batch_idx: int) -> object:
        if self.global_step == 8:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SpoofingDetection, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main([*options(tiny_la, tmp_path, "augment=asvspoof/none"), "name=cut"])
    assert (tmp_path / "out/asvspoof/cut/plots/training.png").read_bytes().startswith(b"\x89PNG")
    assert read_metrics(tmp_path / "out/asvspoof/cut/metrics.csv")["train/loss_step"].notna().sum() == 8
