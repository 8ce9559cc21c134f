"""A folder to hand to a colleague: the same scores from weights alone, on a machine without corpus or optimiser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest_corpus import make_tiny_la
from test_run import command, options

import audiolab
from audiolab import export, fuse, launch, predict, run
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.reporting.scores import read_scores
from audiolab.test import test as evaluate
from audiolab.training.weights import read_facts, read_weights

FILES = [
    "README.md",
    "SHA256SUMS",
    "checkpoints/calibration.json",
    "checkpoints/model.safetensors",
    "code.json",
    "config.yaml",
    "metrics.json",
    "model.json",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> list[Path]:
    """Two finished runs of an epoch on one corpus; read only."""
    base = tmp_path_factory.mktemp("export")
    root = make_tiny_la(la_mini, base / "tiny_la")
    for seed in (0, 1):
        argv = [*options(root, base, f"name=seed{seed}", f"seed={seed}"), "trainer.max_epochs=1"]
        assert run.main([*argv, "loss=asvspoof/oc_softmax"]) == 0
    return [base / "out/asvspoof/seed0", base / "out/asvspoof/seed1"]


@pytest.fixture
def bare(runs: list[Path], tmp_path: Path) -> list[Path]:
    """Of each run no more than what a model is."""
    for path in runs:
        for name in ("config.yaml", "model.json", "checkpoints/calibration.json", "checkpoints/model.safetensors"):
            (tmp_path / path.name / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, tmp_path / path.name / name)
    return [tmp_path / path.name for path in runs]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_finished_run_keeps_its_best_weights_alone(runs: list[Path]):
    best, alone = (runs[0] / "checkpoints" / name for name in ("best.ckpt", "model.safetensors"))
    expected, found = read_weights(best), read_weights(alone)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert alone.stat().st_size < best.stat().st_size / 2.5  # no optimiser
    facts = read_facts(alone)
    assert (facts["task"], facts["recipe"], facts["name"]) == ("asvspoof", "sinc_small", "seed0")
    assert (facts["audiolab"], facts["checkpoint"]) == (audiolab.__version__, "best.ckpt")
    assert len(facts["config_sha256"]) == 64


def test_weights_alone_give_the_same_scores(runs: list[Path], bare: list[Path], tmp_path: Path):
    for name, path in (("whole", runs[0]), ("bare", bare[0])):
        evaluate(str(path), sets=["dev", "eval"], out=str(tmp_path / name))
    for set_name in ("dev", "eval"):
        tables = [read_scores(tmp_path / name / f"scores/{set_name}.csv") for name in ("whole", "bare")]
        assert tables[0].equals(tables[1]) and tables[0].attrs == tables[1].attrs
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "bare")]
    assert metrics[0] == metrics[1] and "cllr_calibrated" in metrics[0]["eval"]


def test_runs_of_weights_alone_are_fused_once_their_dev_scores_are_there(runs, bare, tmp_path: Path):
    with pytest.raises(InputError, match="handed over without scores of dev, .* --set dev"):
        fuse.fuse(bare, out=tmp_path / "fused")
    results = []
    for systems in (runs, bare):
        for path in systems:
            evaluate(str(path), ["data.num_workers=0"], sets=["dev"])
            evaluate(str(path), ["data.num_workers=0"], sets=["eval"])
        results.append(fuse.fuse(systems, out=tmp_path / "fused"))
    key = next(name for name in results[1])
    assert results[1][key] == results[0][key]
    for path in runs:
        shutil.rmtree(path / "tests")


def test_an_export_holds_what_predict_and_load_need_and_no_folder_of_this_machine(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wave = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    folder = tmp_path / "for you"
    before = files(runs[0])
    assert export.main([str(runs[0]), "-o", str(folder)]) == 0
    said = capsys.readouterr().out
    assert files(folder) == FILES and files(runs[0]) == before
    assert (
        "MB  in all, of best.ckpt; the run's checkpoints have" in said and "left out of config.yaml: data.root" in said
    )
    for name in set(FILES) - {"code.json", "checkpoints/model.safetensors"}:  # code.json holds the changes of the code
        assert str(tmp_path.parent) not in (folder / name).read_text(), name
    assert str(tmp_path.parent).encode() not in (folder / "checkpoints/model.safetensors").read_bytes()
    assert "host" not in json.loads((folder / "code.json").read_text())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    for set_name in ("dev", "eval"):
        assert f"- {set_name}: EER {metrics[set_name]['eer']:.2f} %" in card
    assert "asvspoof: seed0" in card and "audiolab.load" in card and f"{28_991 + 32:,} stored values" in card

    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    wave_t = torch.from_numpy(wave).float()
    scores = [audiolab.load(str(path)).infer(wave_t, 16000) for path in (runs[0], moved)]
    assert scores[0] == scores[1]
    rows = [
        predict.predict(path, [tmp_path / "a.wav"], out=tmp_path / name)[0]
        for path, name in ((runs[0], "x"), (moved, "y"))
    ]
    assert rows[0] == rows[1] and rows[0]["status"] == "ok"


def test_an_export_repeats_itself_and_overwrites_nothing_else(runs: list[Path], tmp_path: Path):
    done = command("audiolab.export", str(runs[0]), "-o", str(tmp_path / "a"))  # another process, the same bytes
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout and "next       python -m audiolab.predict" in done.stdout
    stamp = (tmp_path / "a/config.yaml").stat().st_mtime_ns
    assert export.export(runs[0], out=tmp_path / "a") == tmp_path / "a"
    assert (tmp_path / "a/config.yaml").stat().st_mtime_ns == stamp
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(notes.txt\): give another folder"):
        export.export(runs[0], out=tmp_path / "a")
    with pytest.raises(InputError, match="holds something else"):
        export.export(runs[1], out=tmp_path / "a")
    assert (tmp_path / "a/notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        export.export(runs[0], out=tmp_path / "a/notes.txt")
    assert not list(tmp_path.glob(".*"))
    second = export.export(tmp_path / "a", out=tmp_path / "b")  # of what was handed over, the same again
    assert (second / "SHA256SUMS").read_text() == (tmp_path / "a/SHA256SUMS").read_text()


def test_an_unfinished_run_is_exported_as_it_is_and_cannot_be_resumed_from_there(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "cut"
    shutil.copytree(runs[0], copy)
    for name in (
        "metrics.json",
        "checkpoints/best.ckpt",
        "checkpoints/model.safetensors",
        "checkpoints/calibration.json",
    ):
        (copy / name).unlink()
    folder = export.export(copy)
    assert folder == copy / "export/cut"
    assert "is not finished: this is last.ckpt as it is now" in capsys.readouterr().out
    assert files(folder) == [name for name in FILES if name not in ("metrics.json", "checkpoints/calibration.json")]
    assert "was not finished" in (folder / "README.md").read_text()
    task = audiolab.load(str(folder))
    last = read_weights(copy / "checkpoints/last.ckpt")
    assert all(torch.equal(value, last[name]) for name, value in task.state_dict().items())
    with pytest.raises(InputError, match=r"without the state of their training, which cannot go on: .* init.weights="):
        launch.resume(RunFolder.open(folder))
    for path in (copy / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="has no checkpoint yet"):
        export.export(copy, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
