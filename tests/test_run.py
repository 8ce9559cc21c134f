"""Whole runs on a few real recordings: what a user types, in this process where that is enough."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import audiolab
from audiolab import resume, run, test
from audiolab.errors import InputError
from audiolab.folder import RunFolder

STOPPING = "+callbacks.stopping={_target_:lightning.pytorch.callbacks.EarlyStopping"
ROOT = Path(__file__).resolve().parent.parent
QUICK = [
    "task=asvspoof",
    "model=asvspoof/sinc_small",
    "data=asvspoof/la_mini",
    "augment=asvspoof/rawboost5",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "data.batch_size=4",
    "data.crop_samples=8000",
    "data.eval_samples=8000",
    "data.eval_batch_size=8",
]


def options(root: Path, tmp_path: Path, *more: str) -> list[str]:
    return [*QUICK, f"data.root={root}", f"outputs={tmp_path / 'out'}", "trainer.max_epochs=2", *more]


def command(*argv: str, **more) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", *argv], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600, **more
    )


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, la_mini: Path) -> Path:
    """A finished run of two epochs on a small corpus; read only."""
    from conftest_corpus import make_tiny_la

    base = tmp_path_factory.mktemp("finished")
    root = make_tiny_la(la_mini, base / "tiny_la")
    assert run.main(options(root, base, "name=done", "logger=[csv,tensorboard,wandb]")) == 0
    return base / "out" / "asvspoof" / "done"


def test_a_run_folder_holds_what_the_design_says(finished: Path):
    for name in ("config.yaml", "model.json", "command.txt", "code.json", "run.log", "metrics.csv", "metrics.json"):
        assert (finished / name).stat().st_size > 0
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {
        "best.ckpt",
        "calibration.json",
        "last.ckpt",
        "model.safetensors",
        "step0000006.ckpt",
        "step0000012.ckpt",
    }
    for set_name in ("dev", "eval"):
        assert {f"{set_name}.csv", f"{set_name}.2col.txt", f"{set_name}.4col.txt"} <= {
            path.name for path in (finished / "scores").iterdir()
        }
        for plot in ("det", "histogram", "attacks"):
            assert (finished / "plots" / f"{set_name}_{plot}.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((finished / "metrics.json").read_text())
    assert set(results) == {"dev", "eval"}
    assert 0 <= results["eval"]["eer"] <= 100
    assert {"min_tdcf_2019", "min_tdcf_2021", "attack/A07/eer"} <= set(results["eval"])
    code = json.loads((finished / "code.json").read_text())
    assert (
        code["versions"]["torch"] == torch.__version__.partition("+")[0]
        or code["versions"]["torch"] == torch.__version__
    )
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/loss_step"] != "" for row in rows].count(True) == 12
    assert [row["dev/eer"] for row in rows if row["dev/eer"]]


def test_saved_scores_give_the_reported_numbers_without_model_or_data(finished: Path):
    from audiolab.reporting.scores import read_scores
    from audiolab.tasks.asvspoof.module import SpoofingDetection

    reported = json.loads((finished / "metrics.json").read_text())
    for set_name in ("dev", "eval"):
        assert SpoofingDetection.metrics(read_scores(finished / "scores" / f"{set_name}.csv")) == reported[set_name]
    two = [line.split() for line in (finished / "scores" / "eval.2col.txt").read_text().splitlines()]
    four = [line.split() for line in (finished / "scores" / "eval.4col.txt").read_text().splitlines()]
    assert [(line[0], line[1]) for line in two] == [(line[0], line[3]) for line in four]
    assert {line[2] for line in four} == {"bonafide", "spoof"}


def test_test_sets_are_calibrated_by_dev_and_dev_never_by_itself(finished: Path):
    from audiolab.metrics.calibration import fit_calibration
    from audiolab.metrics.spoofing import cllr
    from audiolab.reporting.scores import read_scores

    calibration = RunFolder.open(finished).calibration
    dev, evaluated = (read_scores(finished / "scores" / f"{name}.csv") for name in ("dev", "eval"))
    fitted = fit_calibration(dev["score"], dev["label"] == "bonafide")
    assert (calibration["scale"], calibration["offset"]) == (fitted.weights[0], fitted.offset)
    assert calibration["sets"]["dev"]["num_rows"] == 16
    reported = json.loads((finished / "metrics.json").read_text())
    assert not [name for name in reported["dev"] if "calibrated" in name]
    llr, genuine = fitted(evaluated["score"]), (evaluated["label"] == "bonafide").to_numpy()
    assert reported["eval"]["cllr_calibrated"] == pytest.approx(cllr(llr[genuine], llr[~genuine]), abs=1e-12)
    written = [line.split() for line in (finished / "scores" / "eval.llr.txt").read_text().splitlines()]
    assert [float(value) for _, value in written] == pytest.approx(llr.tolist(), abs=1e-12)
    again = {}
    for name, root in (("own", ()), ("same", ("data=asvspoof/la2019", f"data.root={finished.parents[2] / 'tiny_la'}"))):
        again[name] = test.test(str(finished), root, sets=["dev", "eval"], out=str(finished.parents[2] / name))
        assert again[name]["eval"]["cllr_calibrated"] == pytest.approx(reported["eval"]["cllr_calibrated"], abs=1e-6)
        assert "cllr_calibrated" not in again[name]["dev"]


def test_the_offline_wandb_run_can_be_read_back(finished: Path):
    def inspect(*flags: str) -> str:
        path = next((finished / "wandb").glob("offline-run-*/run-*.wandb"))
        return subprocess.run(
            [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", *flags, path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    records = [json.loads(line) for line in inspect().splitlines()]
    facts = next(record for record in records if record["type"] == "run")
    shown = json.dumps(facts)
    for expected in ("audiolab", "asvspoof/sinc_small/done", "train", '"sinc_small"'):
        assert expected in shown
    summary = json.loads(inspect("--summary"))
    assert summary["config"]["data"]["batch_size"] == 4
    text = json.dumps(summary)
    reported = json.loads((finished / "metrics.json").read_text())
    assert f"{reported['dev']['eer']:.3f}"[:5] in text
    for entry in ("image-file", "table-file"):
        assert entry in text
    media = next((finished / "wandb").glob("offline-run-*")) / "files" / "media"
    assert len(list(media.rglob("*.png"))) == 7  # three of each set, and the training's
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in (media / "table" / "eval").iterdir()}
    assert len(tables["scores"]["data"]) == 16
    assert [row[0] for row in tables["attack"]["data"]] == ["A07", "A08"]


def test_tensorboard_has_the_curves(finished: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss_step")) == 12
    assert "eval/det" in events.Tags()["images"]


def test_the_same_command_again_reports_and_other_options_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
):
    root = RunFolder.open(finished).config["data"]["root"]
    argv = [*options(Path(root), finished.parents[2], "name=done", "logger=[csv,tensorboard,wandb]")]
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert run.main(argv) == 0
    told = capsys.readouterr().out
    assert "is finished already" in told and f"wandb sync {finished}/wandb/offline-run-*" in told
    assert (finished / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds a run with other options \(seed: 0 there, 5 now\)"):
        run.main([*argv, "seed=5"])


def test_test_prints_headlines_and_repeats_the_numbers(finished: Path, capsys: pytest.CaptureFixture[str]):
    root = RunFolder.open(finished).config["data"]["root"]
    test.main([str(finished), "data=asvspoof/la2019", f"data.root={root}"])  # eval_samples stays the run's
    lines = capsys.readouterr().out.splitlines()
    reported = json.loads((finished / "metrics.json").read_text())["eval"]
    assert f"EER {reported['eer']:.2f} %" in lines
    assert f"min t-DCF 2019 {reported['min_tdcf_2019']:.4f}" in lines
    assert test.test(str(finished), ["data.eval_batch_size=1"], sets=["dev"])["dev"]["eer"] == pytest.approx(
        json.loads((finished / "metrics.json").read_text())["dev"]["eer"], abs=1e-9
    )


def test_options_of_a_test_hold_in_any_order(finished: Path):
    config = RunFolder.open(finished).config
    for argv in (["data.batch_size=3", "trainer=cpu"], ["trainer=cpu", "data.batch_size=3"]):
        assert test.test_config(config, argv)["data"]["batch_size"] == 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["data.rot=/x"], "did you mean data.root"),
        (["-o", "elsewhere", "data.rot=/x"], "did you mean data.root"),
        (["model.width=3"], "a test takes data="),
        (["data=asvspoof/la2019", "data.root=/nowhere"], "not in the ASVspoof 2019 LA layout"),
        (["--set", "evaluation"], "--set evaluation is unknown"),
    ],
)
def test_wrong_options_of_test(finished: Path, argv: list[str], expected: str):
    with pytest.raises(InputError, match=expected):
        test.main([str(finished), *argv])


def test_load_gives_the_model_and_nothing_else_is_needed(finished: Path):
    task = audiolab.load(str(finished))
    assert not task.training
    found = task.infer(torch.randn(8000), 8000)
    assert np.isfinite(found["score"])
    assert (found["judged_s"], found["num_windows"]) == (1.0, 3)  # eval_samples of the run: 0.5 s


def test_a_folder_that_is_no_run(tmp_path: Path, finished: Path):
    with pytest.raises(InputError, match="does not exist"):
        audiolab.load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"is not a run folder: it has no config.yaml; run folders nearby: .*done"):
        audiolab.load(str(finished.parent))
    (tmp_path / "config.yaml").write_text("model: 3\n")
    with pytest.raises(InputError, match="not the configuration of a run"):
        resume.main([str(tmp_path)])


def test_errors_leave_nothing_half_written(tiny_la: Path, tmp_path: Path):
    (tiny_la / "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.dev.trl.txt").write_text("a b c d e\n")
    done = command("audiolab.run", *options(tiny_la, tmp_path, "name=x"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "line 1, column 5: 'e' is no label" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_never_reached_a_checkpoint_may_be_begun_again_with_other_options(tiny_la: Path, tmp_path: Path):
    too_long = options(tiny_la, tmp_path, "name=again", "trainer.max_epochs=1", "data.crop_samples=300")
    with pytest.raises(InputError, match="Give longer audio"):
        run.main(too_long)
    assert run.main(options(tiny_la, tmp_path, "name=again", "trainer.max_epochs=1")) == 0


def test_a_corrupt_file_in_training_stops_or_is_counted(tiny_la: Path, tmp_path: Path):
    victim = sorted((tiny_la / "LA/ASVspoof2019_LA_train/flac").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:2000])
    with pytest.raises(InputError, match=victim.name):
        run.main(options(tiny_la, tmp_path, "name=stop"))
    assert run.main(options(tiny_la, tmp_path, "name=skip", "data.on_bad_audio=skip", "data.max_bad_audio=0.1")) == 0
    listed = (tmp_path / "out/asvspoof/skip/bad_audio.csv").read_text()
    assert victim.name in listed and listed.count("\n") == 2


EVERYTHING = [
    "loss=asvspoof/oc_softmax",
    "module.mixup=1.0",
    "module.fgm=0.5",
    "callbacks=topk_average",
    "callbacks.average.keep=2",
    "+callbacks.ema={_target_:audiolab.training.averaging.MovingAverage,decay:0.8,every_n_steps:1,start_step:0}",
]


def test_a_sweep_skips_finished_jobs_and_reports_failed_ones(
    tiny_la: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    argv = ["-m", *options(tiny_la, tmp_path, "trainer.max_epochs=1", "name=sweep", "seed=0,1", "logger=[csv,wandb]")]
    first = command("audiolab.run", *argv)
    assert first.returncode == 0, first.stderr
    assert "mean ± SD" in first.stdout and "2 jobs" in first.stdout
    folder = tmp_path / "out/asvspoof/sweep"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"seed-0", "seed-1", "wandb"}
    assert "eval by attack, EER (%)" in first.stdout
    rows = pd.read_csv(folder / "sweep.csv")
    assert rows["seed"].tolist() == [0, 1]
    assert rows["state"].tolist() == ["finished"] * 2
    record = next((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    shown = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", "--summary", record],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    summary = json.loads(shown)["summary"]
    eers = [json.loads((folder / name / "metrics.json").read_text())["eval"]["eer"] for name in ("seed-0", "seed-1")]
    assert rows["eval/eer"].tolist() == eers
    assert summary["eval/eer/mean"] == pytest.approx(np.mean(eers))
    assert summary["eval/eer/sd"] == pytest.approx(np.std(eers, ddof=1))
    assert summary["jobs"]["nrows"] == 2
    stamps = [(folder / name / "metrics.json").stat().st_mtime_ns for name in ("seed-0", "seed-1")]
    (folder / "seed-1" / "metrics.json").unlink()
    second = command("audiolab.run", *argv)
    assert second.returncode == 0, second.stderr
    assert (folder / "seed-0" / "metrics.json").stat().st_mtime_ns == stamps[0]
    assert (folder / "seed-1" / "metrics.json").stat().st_mtime_ns > stamps[1]
    failing = ["-m", *options(tiny_la, tmp_path, "trainer.max_epochs=1", "name=bad", "data.batch_size=4,400")]
    third = command("audiolab.run", *failing)
    assert third.returncode == 1
    assert "fewer than one batch of data.batch_size=400" in third.stderr
    assert "1 of 2 jobs failed" in third.stderr
    assert (tmp_path / "out/asvspoof/bad/data.batch_size-4/metrics.json").exists()


def test_plan_trains_and_writes_nothing(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run.main(options(tiny_la, tmp_path, "plan=true")) == 0
    shown = capsys.readouterr().out
    for word in ("trainable", "group rest", "optimiser steps", "seconds a batch", "peak memory", "disk"):
        assert word in shown
    assert not (tmp_path / "out").exists()


def test_plan_needs_no_pretrained_weights(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny = ["model=asvspoof/dual_stream_tiny", f"model.front_end.ssl.pretrained={tmp_path / 'nowhere'}"]
    assert run.main([*options(tiny_la, tmp_path, "plan=true"), *tiny]) == 0
    shown = capsys.readouterr().out
    assert "59,580" in shown and "nan" not in shown


def test_tests_on_other_data_of_the_same_name_have_other_folders(finished: Path, tiny_la: Path, tmp_path: Path):
    from audiolab.test import test as evaluate

    for name in ("a", "b"):
        shutil.copytree(tiny_la, tmp_path / name / "corpus")
        evaluate(finished, [f"data.root={tmp_path / name / 'corpus'}", "data.num_workers=0"])
    folders = sorted((finished / "tests").glob("own-corpus-*"))
    assert len(folders) == 2
    conditions = [f"data.root={tmp_path / 'a' / 'corpus'}", "data.num_workers=0", "data.conditions=[none,g711_alaw]"]
    for sets in (["eval"], ["conditions"]):
        evaluate(finished, conditions, sets=sets)
    both = next(path for path in (finished / "tests").glob("own-corpus-*") if path not in folders)
    assert set(json.loads((both / "metrics.json").read_text())) == {"eval", "conditions"}


@pytest.mark.parametrize("off", ["~callbacks.checkpoints", "~callbacks"])
def test_without_checkpoints_the_weights_after_training_are_judged_and_kept(
    tiny_la: Path, tmp_path: Path, off: str, caplog: pytest.LogCaptureFixture
):
    argv = options(tiny_la, tmp_path, "name=bare", "augment=asvspoof/none", "trainer.max_epochs=1", off)
    assert run.main(argv) == 0
    assert "no callback keeps checkpoints: a run that is stopped starts from the beginning" in caplog.text
    folder = tmp_path / "out/asvspoof/bare"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["calibration.json", "model.safetensors"]
    before = json.loads((folder / "metrics.json").read_text())["eval"]
    assert test.main([str(folder)]) is None
    assert json.loads((folder / "metrics.json").read_text())["eval"] == before


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            "callbacks.checkpoints.monitor=dev/foo",
            r"checkpoints.monitor=dev/foo is never measured: there are",
        ),
        ("callbacks.checkpoints.monitor=foo", r"callbacks.checkpoints.monitor=foo is never measured"),
        ("callbacks.health.mode=max", r"callbacks.health.mode=max contradicts monitor.mode=min for the same dev/eer"),
        ("callbacks.curves.monitor=dev/foo", r"callbacks.curves.monitor=dev/foo is never measured"),
        (f"{STOPPING},monitor:dev/foo}}", r"callbacks.stopping.monitor=dev/foo is never measured"),
        (f"{STOPPING},monitor:dev/eer,mode:max}}", r"callbacks.stopping.mode=max contradicts"),
    ],
)
def test_what_callbacks_watch_has_to_be_measured(tiny_la: Path, tmp_path: Path, option: str, why: str):
    with pytest.raises(InputError, match=why):
        run.main(options(tiny_la, tmp_path, option))
    assert not (tmp_path / "out").exists()


def test_callbacks_may_watch_another_metric_or_what_training_logs(tiny_la: Path, tmp_path: Path):
    more = ["callbacks.curves.monitor=dev/min_dcf", f"{STOPPING},monitor:train/loss_epoch,patience:1,min_delta:100}}"]
    argv = options(tiny_la, tmp_path, "name=x", "augment=asvspoof/none", "trainer.max_epochs=3", *more)
    assert run.main(argv) == 0
    with (tmp_path / "out/asvspoof/x/metrics.csv").open() as file:
        assert sum(bool(row["train/loss_epoch"]) for row in csv.DictReader(file)) == 2  # stopped by its mean
