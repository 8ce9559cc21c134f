"""Fusion of runs: weights from dev only, the same trials required, and the numbers of the formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audiolab import fuse
from audiolab.errors import InputError
from audiolab.metrics.calibration import fit_calibration
from audiolab.metrics.spoofing import compute_eer
from audiolab.reporting.scores import read_scores, write_scores
from audiolab.tasks.asvspoof.module import SpoofingDetection
from audiolab.training.calibration import fit_on_dev

NUM_TRIALS = {"dev": 600, "eval": 900}


def trials(set_name: str) -> pd.DataFrame:
    number = NUM_TRIALS[set_name]
    genuine = np.arange(number) % 3 == 0
    return pd.DataFrame(
        {
            "id": [f"{set_name}_{index:04d}" for index in range(number)],
            "speaker": [f"s{index % 12}" for index in range(number)],
            "attack": np.where(genuine, "-", np.where(np.arange(number) % 2, "A07", "A08")),
            "label": np.where(genuine, "bonafide", "spoof"),
        }
    )


def make_run(path: Path, seed: int, task: str = "asvspoof", scale: float = 1.0) -> Path:
    """A finished run's folder with scores of a system that errs on its own; no model is needed."""
    generator = np.random.default_rng(seed)
    (path / "scores").mkdir(parents=True)
    module = "module: {_target_: audiolab.tasks.asvspoof.module.SpoofingDetection}"
    (path / "config.yaml").write_text(f"task: {task}\n{module}\nmodel: {{}}\ndata: {{}}\n")
    tables = {}
    for set_name in NUM_TRIALS:
        table = trials(set_name)
        table["score"] = scale * generator.normal(np.where(table["label"] == "bonafide", 1.0, -1.0))
        table.attrs = {"set": set_name, "skipped": 0}
        tables[set_name] = table
    calibration = fit_on_dev(SpoofingDetection, {"dev": tables["dev"]})
    tables["eval"].attrs["calibration"] = calibration
    for set_name, table in tables.items():
        write_scores(path / "scores" / f"{set_name}.csv", table)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "calibration.json").write_text(json.dumps(calibration))
    (path / "metrics.json").write_text("{}")
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr("audiolab.tasks.asvspoof.breakdowns._NUM_RESAMPLES", 40)
    return [make_run(tmp_path / name, seed, scale=scale) for name, seed, scale in (("a", 1, 1.0), ("b", 2, 30.0))]


def test_fusion_is_fitted_on_dev_and_beats_each_run_on_eval(runs, tmp_path, capsys):
    assert fuse.main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    dev, evaluated = ([read_scores(run / "scores" / f"{name}.csv") for run in runs] for name in ("dev", "eval"))
    genuine = (dev[0]["label"] == "bonafide").to_numpy()
    fitted = fit_calibration(np.column_stack([table["score"] for table in dev]), genuine)
    saved = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert saved["weights"] == pytest.approx(dict(zip("ab", fitted.weights, strict=True)), rel=1e-9)
    assert saved["fitted_on"] == ["dev"]
    table = read_scores(tmp_path / "out" / "scores" / "eval.csv")
    llr = fitted(np.column_stack([table["score"] for table in evaluated]))
    np.testing.assert_allclose(table["score"], llr, rtol=0, atol=1e-9)
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(results) == ["eval"] and list(results["eval"]) == ["a", "b", "fusion"]
    genuine = (table["label"] == "bonafide").to_numpy()
    assert results["eval"]["fusion"]["eer"] == pytest.approx(
        100 * compute_eer(llr[genuine], llr[~genuine])[0], abs=1e-9
    )
    for metric in ("eer", "min_dcf", "cllr_calibrated"):
        values = {name: metrics[metric] for name, metrics in results["eval"].items()}
        assert values["fusion"] < min(values["a"], values["b"])
    assert SpoofingDetection.metrics(table) == results["eval"]["fusion"]  # the saved table says it all
    assert (tmp_path / "out" / "plots" / "eval_det_all.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "scores" / "eval.2col.txt").is_file()
    out = capsys.readouterr().out
    assert f"EER {results['eval']['fusion']['eer']:.2f} %" in out.splitlines()


def test_later_tests_are_fused_too_and_a_test_of_dev_is_not(runs, tmp_path):
    for run in runs:
        for set_name in ("dev", "eval"):
            write_scores(
                run / "tests" / "la2021-LA" / "scores" / f"{set_name}.csv",
                read_scores(run / "scores" / f"{set_name}.csv"),
            )
    results = fuse.fuse(runs, out=tmp_path / "out")
    assert list(results) == ["eval", "la2021-LA/eval"]
    assert (tmp_path / "out" / "scores" / "la2021-LA-eval.csv").is_file()


def without_last(run: Path, set_name: str) -> None:
    path = run / "scores" / f"{set_name}.csv"
    table = read_scores(path)
    write_scores(path, table.iloc[:-1].copy())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda b: without_last(b, "dev"),
            r"dev: a and b were not judged on the same trials, 1 are in one of them only",
        ),
        (lambda b: without_last(b, "eval"), r"eval: .* the first is eval_0899"),
        (lambda b: (b / "metrics.json").unlink(), r"is not finished: python -m audiolab.resume"),
        (lambda b: (b / "checkpoints" / "calibration.json").unlink(), r"has no checkpoints/calibration.json"),
        (lambda b: (b / "config.yaml").unlink(), r"is not a run folder"),
        (lambda b: (b / "scores" / "eval.csv").unlink(), r"a, b have no test set in common"),
        (
            lambda b: make_run(b.with_name("x") / "b", 3, "emotion").joinpath("config.yaml").replace(b / "config.yaml"),
            "b is a run of emotion, a of asvspoof: fuse runs of one task",
        ),
    ],
)
def test_runs_that_cannot_be_fused(runs, tmp_path, spoil, message):
    spoil(runs[1])
    with pytest.raises(InputError, match=message):
        fuse.fuse(runs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_differ_and_single_runs_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="nothing to fuse it with"):
        fuse.fuse(runs[:1])
    with pytest.raises(InputError, match="is given twice"):
        fuse.fuse([runs[0], runs[0]])
    path = runs[1] / "scores" / "dev.csv"
    table = read_scores(path)
    table.loc[0, ["label", "attack"]] = ["spoof", "A07"]
    write_scores(path, table)
    with pytest.raises(InputError, match="a and b have different labels"):
        fuse.fuse(runs, out=tmp_path / "out")
