"""The check before a run, on real recordings broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import soundfile
import torch
from conftest_corpus import corpus
from test_run import ROOT, options

from audiolab import check, run
from audiolab.errors import InputError
from audiolab.preflight.contents import examine_contents, set_facts
from audiolab.preflight.disk import check_disk
from audiolab.preflight.files import FactsCache, read_files
from audiolab.preflight.findings import Finding, Report
from audiolab.preflight.lists import examine_lists
from audiolab.preflight.machine import Gpu, Machine, available_mb, examine_machine, num_cores
from audiolab.preflight.packages import MALICIOUS, check_packages, check_safety, requirements
from audiolab.preflight.pretrained import check_pretrained
from audiolab.preflight.quick import memory_finding
from audiolab.training.device import resident_mb
from audiolab.training.footprint import Footprint, checkpoints_mb, footprint, step_memory

PROTOCOL = "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{}.txt"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def checked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, dict], dict]:
    """The exit code, the findings by check, and the whole JSON."""
    capsys.readouterr()
    code = check.main([*argv, "--json"])
    report = json.loads(capsys.readouterr().out)
    return code, {finding["check"]: finding for finding in report["findings"]}, report


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / f"LA/ASVspoof2019_LA_{split}/flac").iterdir())


def lines(root: Path, name: str) -> list[str]:
    return (root / PROTOCOL.format(name)).read_text().splitlines()


def write_lines(root: Path, name: str, text: list[str]) -> None:
    (root / PROTOCOL.format(name)).write_text("\n".join(text) + "\n")


def test_a_sound_corpus_is_ready(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, found, report = checked(capsys, *options(tiny_la, tmp_path), "--plots", str(tmp_path / "plots"))
    assert code == 0 and report["ready"] is True and report["problems"] == report["warnings"] == 0
    assert set(report) == {"ready", "problems", "warnings", "findings", "sets"}
    for finding in report["findings"]:
        assert set(finding) == {"group", "check", "state", "found", "remedy", "items"}
        assert finding["state"] == "ok", finding
    groups = list(dict.fromkeys(finding["group"] for finding in report["findings"]))
    assert groups == ["packages", "machine", "disk", "configuration", "lists", "audio"]
    durations_s = [soundfile.info(path).duration for path in files(tiny_la, "train")]
    train = report["sets"]["train"]
    assert (train["rows"], train["files"], train["labels"]) == (24, 24, {"bonafide": 12, "spoof": 12})
    assert train["hours"] * 3600 == pytest.approx(sum(durations_s))
    assert (train["min_s"], train["max_s"]) == (min(durations_s), max(durations_s))
    assert train["median_s"] == pytest.approx(float(np.median(durations_s)))
    assert "forward and backward of 2 items work" in found["a step"]["found"]
    assert (tmp_path / "plots/corpus.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out").exists()


def test_every_fault_of_a_broken_corpus_is_named(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, dev = files(tiny_la, "train"), files(tiny_la, "dev")
    train[0].unlink()
    train[1].write_bytes(train[1].read_bytes()[:2000])
    train[2].write_bytes(b"")
    wave, _ = soundfile.read(dev[0], dtype="int16")
    # the same samples in another container (by content: the file keeps its suffix, as renamed copies do)
    soundfile.write(train[3].with_suffix(".wav"), wave, 16000, subtype="PCM_24")
    train[3].with_suffix(".wav").rename(train[3])
    soundfile.write(train[4], np.zeros(16000, np.int16), 16000)
    soundfile.write(train[5], wave[:8000], 8000)
    soundfile.write(train[6], np.sign(wave.astype(np.int32)).astype(np.int16) * 32767, 16000)
    soundfile.write(train[7], wave[8000:9600], 16000)
    shutil.copyfile(train[8], train[9])
    listed = lines(tiny_la, "train.trn")
    write_lines(tiny_la, "train.trn", [" ".join(["LA_0001", *listed[0].split()[1:]]), *listed[1:]])
    leaked = lines(tiny_la, "eval.trl")
    write_lines(tiny_la, "eval.trl", [" ".join(["LA_0001", *leaked[0].split()[1:]]), *leaked[1:]])

    code, found, report = checked(capsys, *options(tiny_la, tmp_path))
    assert code == 1 and report["ready"] is False
    assert found["files"]["state"] == "problem" and found["files"]["found"].startswith("3 of 56")
    for path, reason in ((train[0], "does not exist"), (train[1], "damaged or cut off"), (train[2], "is empty")):
        assert any(item.startswith(f"{path} {reason}") or reason in item for item in found["files"]["items"])
    assert [str(path) in " ".join(found["files"]["items"]) for path in train[:4]] == [True, True, True, False]
    duplicates = [f for f in report["findings"] if f["check"] == "duplicates"]
    assert [(f["state"], f["items"]) for f in duplicates] == [
        ("problem", [f"train {train[3].stem} = dev {dev[0].stem}"]),
        ("warning", [f"train {train[8].stem} = train {train[9].stem}"]),
    ]
    for name, path in (("silence", train[4]), ("format", train[5]), ("clipping", train[6]), ("short files", train[7])):
        assert found[name]["state"] == "warning"
        assert [item.partition(":")[0] for item in found[name]["items"]] == [path.stem], name
    assert found["format"]["items"] == [f"{train[5].stem}: 8 kHz mono"]
    assert (found["speakers"]["state"], found["speakers"]["items"]) == ("warning", ["LA_0001"])
    assert all(f["remedy"] for f in report["findings"] if f["state"] != "ok")
    assert found["options"]["state"] == "ok"  # missing files are told of once, as files

    skipping = [*options(tiny_la, tmp_path), "data.on_bad_audio=skip"]
    assert checked(capsys, *skipping, "data.max_bad_audio=3")[1]["files"]["state"] == "warning"
    assert "2 may be left out" in checked(capsys, *skipping, "data.max_bad_audio=2")[1]["files"]["found"]


def test_the_table_fits_a_narrow_terminal_and_ends_with_the_verdict(
    tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from rich.console import Console

    files(tiny_la, "dev")[0].unlink()
    monkeypatch.setattr("audiolab.reporting.tables.console", lambda: Console(width=80))
    assert check.main(options(tiny_la, tmp_path)) == 1
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert any(line.startswith(" ✗  files") for line in shown) and any(line.startswith(" ✓  sizes") for line in shown)
    assert shown[-1] == "1 problem, 0 warnings" and [line for line in shown if line != line.rstrip()] == []
    assert Report([Finding("a", "b", "ok", "c")]).verdict == "ready"


def test_what_was_read_before_is_not_read_again(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = options(tiny_la, tmp_path)
    assert checked(capsys, *argv)[0] == 0
    victim = files(tiny_la, "eval")[0]
    before = victim.stat()
    victim.write_bytes(bytes(before.st_size))
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checked(capsys, *argv)[0] == 0  # same size, same time: not looked at
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    code, found, _ = checked(capsys, *argv)
    assert code == 1 and str(victim) in found["files"]["items"][0]


def test_a_damaged_cache_is_made_anew(tiny_la: Path, own_cache: Path, caplog: pytest.LogCaptureFixture):
    paths = [str(path) for path in files(tiny_la, "dev")]
    cache_file = own_cache / "preflight/files.sqlite"
    for content in (None, b"no database at all" * 100):
        if content:
            cache_file.write_bytes(content)
        with FactsCache(cache_file) as cache:
            assert len(read_files(paths, cache, 2)[0]) == len(cache.load(paths)) == 16
    with FactsCache(own_cache / "preflight/files.sqlite/inside") as cache:  # a folder that cannot be
        assert len(read_files(paths, cache, 2)[0]) == 16
    assert "cannot be used" in caplog.text


def test_an_interrupt_keeps_what_was_read(la_mini: Path, own_cache: Path):
    paths = [str(path) for path in files(la_mini, "train")[:300]]

    def stop(number: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), FactsCache(own_cache / "f.sqlite") as cache:
        read_files(paths, cache, 1, on_read=stop)
    (kept,) = sqlite3.connect(own_cache / "f.sqlite").execute("SELECT COUNT(*) FROM facts").fetchone()
    assert 64 <= kept < 300
    with FactsCache(own_cache / "f.sqlite") as cache:
        assert len(read_files(paths, cache, 1)[0]) == 300


def test_la_mini_is_sound(la_mini: Path, own_cache: Path):
    data = corpus(la_mini)
    sets = {name: data.listing(name) for name in data.listed_sets}
    with FactsCache(own_cache / "f.sqlite") as cache:
        facts, reasons = read_files([path for listing in sets.values() for path in listing["file"]], cache, 4)
    findings = [*examine_lists(sets), *examine_contents(sets, facts, reasons, None)]
    assert {finding.state for finding in findings} == {"ok"}, findings
    assert {name: set_facts(listing, facts)["files"] for name, listing in sets.items()} == {
        "train": 900,
        "dev": 360,
        "eval": 800,
    }
    assert set(sets["train"]) == {"id", "speaker", "attack", "label", "file"}


def test_faults_of_the_options_are_crosses_beside_the_others(
    tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    listed = lines(tiny_la, "eval.trl")
    write_lines(tiny_la, "eval.trl", [line for line in listed if line.endswith("bonafide")])
    write_lines(tiny_la, "dev.trl", ["a b c d e"])
    more = ["optimizer.lr=-1", "data.crop_samples=300", "--quick"]
    code, found, report = checked(capsys, *options(tiny_la, tmp_path), *more)
    assert code == 1
    sentences = [f["found"] for f in report["findings"] if f["check"] == "options"]
    assert len(sentences) == 1 and "give a positive rate" in sentences[0]
    assert found["dev"]["state"] == "problem" and found["dev"]["group"] == "lists"
    assert "line 1, column 5: 'e' is no label" in found["dev"]["found"]
    assert (found["classes"]["state"], found["classes"]["items"]) == ("problem", ["eval has bonafide only"])
    assert found["sizes"]["found"] == "train 24, eval 8"
    assert report["problems"] == 3  # each told of once
    assert "a step" not in found and found["files"]["found"].startswith("no audio was decoded")
    with pytest.raises(InputError, match="did you mean data.root"):
        check.main(["task=asvspoof", "data.rot=/x"])
    with pytest.raises(InputError, match="expected a whole number"):
        check.main(["task=asvspoof", "data.batch_size=many"])


def test_one_cause_is_told_of_once(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    listed = lines(tiny_la, "train.trn")
    write_lines(tiny_la, "train.trn", [line for line in listed if line.endswith("bonafide")])
    code, found, report = checked(capsys, *options(tiny_la, tmp_path))
    assert code == 1 and report["problems"] == 1
    assert found["classes"]["items"] == ["train has bonafide only"]
    assert found["options"]["state"] == "untried" and "a step" not in found
    (tiny_la / PROTOCOL.format("dev.trl")).write_bytes(b"\xff\xfe\x00" * 100)
    write_lines(tiny_la, "train.trn", listed)
    code, found, report = checked(capsys, *options(tiny_la, tmp_path))
    assert code == 1 and report["problems"] == 1
    assert "the list cannot be used" in found["dev"]["found"] and "is not a text file" in found["dev"]["found"]


def test_samples_far_beyond_full_scale_are_a_cross(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    loud, hot = files(tiny_la, "train")[:2]
    for path, factor in ((loud, 1e30), (hot, 1.5)):
        wave, rate = soundfile.read(path, dtype="float32")
        wave[100] = factor
        soundfile.write(path.with_suffix(".wav"), wave, rate, subtype="FLOAT")
        path.with_suffix(".wav").rename(path)
    code, found, _ = checked(capsys, *options(tiny_la, tmp_path))
    assert code == 1 and "beyond 10 times full scale" in found["level"]["found"]
    assert found["level"]["items"] == [f"{loud.stem}: peak 1e+30"] and "clipping" not in found


def test_what_the_data_tells_of_itself_stands_in_the_table(
    tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    code, _, report = checked(capsys, *options(tiny_la, tmp_path), "data.published_size=true")
    told = [f["found"] for f in report["findings"] if f["check"] == "data"]
    assert code == 0 and report["warnings"] == len(told) == 3 and "data.published_size=false" in told[0]
    assert not caplog.records


def test_speakers_shared_by_several_sets_are_one_finding_with_one_remedy():
    sets = {n: pd.DataFrame({"id": [n, f"{n}2"], "speaker": ["s", n]}) for n in ("train", "dev", "eval")}
    shared = [finding for finding in examine_lists(sets) if finding.check == "speakers"]
    assert len(shared) == 1 and shared[0].items == ("s",)
    assert shared[0].found.startswith("1 shared by train and dev, 1 shared by train and eval")


def test_weights_to_start_from_that_are_not_there(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, found, _ = checked(capsys, *options(tiny_la, tmp_path), "init.weights=nowhere", "--quick")
    assert code == 1 and "nowhere" in found["options"]["found"]


def test_a_step_that_cannot_work_is_a_cross(tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, found, _ = checked(capsys, *options(tiny_la, tmp_path), "data.crop_samples=300")
    assert code == 1 and "Give longer audio" in found["a step"]["found"]


def test_the_built_in_corpus_is_made_and_told_of(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from audiolab.tasks.asvspoof import data, demo

    few = partial(demo.prepare_demo_corpus, num_train=12, num_dev=12, num_eval=12)
    monkeypatch.setattr(data, "prepare_demo_corpus", few)
    argv = ["task=asvspoof", f"outputs={tmp_path / 'out'}", "trainer=cpu"]
    assert check.main([*argv, "--json"]) == 0
    said = capsys.readouterr()
    found, told = {finding["check"]: finding for finding in json.loads(said.out)["findings"]}, said.err
    assert f"making the built-in corpus in {own_cache / 'asvspoof_demo'}" in told
    assert found["built-in data"]["found"] == f"were made just now: {own_cache / 'asvspoof_demo'}"
    assert "built-in data" not in checked(capsys, *argv)[1]


def test_a_hub_that_does_not_answer(
    tiny_la: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    argv = [*options(tiny_la, tmp_path), "model=asvspoof/aasist", "model.pretrained=some/where"]
    code, found, _ = checked(capsys, *argv)
    assert code == 1
    assert "some/where is neither a folder here" in found["weights"]["found"]
    assert "hub cannot be reached" in found["weights"]["found"]
    assert "model.pretrained=null" in found["weights"]["remedy"]
    assert found["a step"]["state"] == found["options"]["state"] == "ok"  # nothing there depends on the weights
    quickly = checked(capsys, *argv, "--quick")
    assert quickly[0] == 0 and (quickly[1]["weights"]["state"], quickly[1]["files"]["state"]) == ("untried",) * 2
    local = [*options(tiny_la, tmp_path), "model=asvspoof/wavlm_mhfa_tiny", "model.front_end.pretrained=/nope/wavlm"]
    code, found, _ = checked(capsys, *local, "--quick")
    assert code == 1 and found["weights"]["found"] == "model.front_end.pretrained: /nope/wavlm does not exist"
    with pytest.raises(
        InputError, match=r"model\.front_end\.pretrained=/nope/wavlm does not exist: give a local folder"
    ):
        run.main([*local, "name=x"])


def test_in_a_process_of_its_own(tiny_la: Path, tmp_path: Path):
    files(tiny_la, "dev")[0].unlink()
    command = [sys.executable, "-m", "audiolab.check", *options(tiny_la, tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1, done.stderr
    assert [f["check"] for f in json.loads(done.stdout)["findings"] if f["state"] == "problem"] == ["files"]


def test_local_weights_are_complete_or_not(tmp_path: Path):
    folder = tmp_path / "wavlm"
    folder.mkdir()
    assert "has no config.json" in check_pretrained("model.pretrained", str(folder)).found
    (folder / "config.json").write_text("{}")
    assert "has no weights" in check_pretrained("model.pretrained", str(folder)).found
    safetensors.torch.save_file({"w": torch.zeros(100)}, folder / "model.safetensors")
    assert check_pretrained("model.pretrained", str(folder)).state == "ok"
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (whole[:-1], whole[:20], b"", whole + b"0"):
        (folder / "model.safetensors").write_bytes(cut)
        assert "cut off or damaged" in check_pretrained("model.pretrained", str(folder)).found
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "part-1.safetensors").write_bytes(whole)
    assert "lacks 1 of 2 parts, the first is part-2.safetensors" in check_pretrained("m.pretrained", str(folder)).found
    for name in (str(tmp_path / "AASIST.pth"), "AASIST.pth", "./wavlm"):
        assert check_pretrained("model.pretrained", name).found.endswith("does not exist")


def test_before_a_run_only_what_is_not_fine_is_said(
    tiny_la: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    argv = options(tiny_la, tmp_path, "trainer.max_epochs=1")
    whole = lines(tiny_la, "dev.trl")
    write_lines(tiny_la, "dev.trl", [*whole, lines(tiny_la, "train.trn")[0]])
    name = lines(tiny_la, "train.trn")[0].split()[1]
    copy = shutil.copy(files(tiny_la, "train")[0].with_stem(name), files(tiny_la, "dev")[0].parent)
    with pytest.raises(InputError, match=rf"ids: 1 shared by train and dev \({name}\): take them out"):
        run.main([*argv, "name=x"])
    assert not (tmp_path / "out").exists()
    write_lines(tiny_la, "dev.trl", whole)
    Path(copy).unlink()
    (tmp_path / "a_file").write_text("")
    with pytest.raises(InputError, match="cannot be written: choose another one with outputs="):
        run.main([*options(tiny_la, tmp_path), "outputs=/proc/nowhere", "name=x"])
    with pytest.raises(InputError, match="is a file, so"):
        run.main([*options(tiny_la, tmp_path), f"outputs={tmp_path / 'a_file/out'}", "name=x"])
    caplog.clear()
    speaker = lines(tiny_la, "eval.trl")[0].split()[0]
    listed = lines(tiny_la, "train.trn")
    write_lines(tiny_la, "train.trn", [" ".join([speaker, *listed[0].split()[1:]]), *listed[1:]])
    assert run.main([*argv, "name=x"]) == 0
    said = [record.message for record in caplog.records if record.name == "audiolab.preflight.quick"]
    assert len(said) == 1 and f"speakers: 1 shared by train and eval ({speaker})" in said[0]
    assert (tmp_path / "out/asvspoof/x/run.log").read_text().count(said[0]) == 1  # though it was said before
    monkeypatch.setattr("audiolab.preflight.quick.examine_packages", None)  # of a finished run nothing is checked
    assert run.main([*argv, "name=x"]) == 0


def test_checkpoints_against_the_disk():
    needs = Footprint(weights_mb=100.0, trainable_mb=50.0)
    own = {"_target_": "audiolab.training.checkpoints.Checkpoints", "keep": 3, "every_n_steps": None}
    average = {"_target_": "audiolab.training.averaging.TopKAverage", "keep": 5}
    assert checkpoints_mb(needs, {"own": own}, 100) == 5 * 200 + 100  # best, three, one being written; weights alone
    assert checkpoints_mb(needs, {"own": own}, 1) == 3 * 200 + 100
    assert checkpoints_mb(needs, {"own": {**own, "every_n_steps": 10}}, 1) == 5 * 200 + 100
    assert checkpoints_mb(needs, {"own": own, "average": average}, 100) == 5 * 200 + 7 * 100
    more = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "save_top_k": 2}
    assert checkpoints_mb(needs, {"own": own, "more": more}, 100) == 7 * 200 + 100
    states = {free: check_disk(Path("o"), 1000.0, free, writable=True).state for free in (999.0, 1500.0, 2000.0)}
    assert states == {999.0: "problem", 1500.0: "warning", 2000.0: "ok"}
    assert check_disk(Path("o"), None, 1.0, writable=False).state == "problem"


def test_memory_of_a_step_is_what_forward_keeps():
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 256)

        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
            return self.layer(batch["wave"]).sigmoid().sum(), {}

    model, batch = Small(), {"wave": torch.ones(128, 64)}
    loss, kept_mb = step_memory(model, batch)
    assert kept_mb * 2**20 == 128 * (64 + 256) * 4  # the input of the layer, the output of the sigmoid
    assert loss == pytest.approx(model.loss(batch)[0].item()) and model.layer.weight.grad is None
    model.loss = lambda batch: (model.layer.bias.sum(), {})  # keeps nothing: the batch is there all the same
    assert step_memory(model, batch)[1] * 2**20 == 128 * 64 * 4
    here = Machine(2, 4000.0, ())
    config = {"trainer": {}, "data": {"batch_size": 16}}
    alone, two = (memory_finding(config, Footprint(1.0, 1.0), 100.0, here, number) for number in (1, 2))
    own_mb = resident_mb()
    assert own_mb > 100 and "this process as it is" in alone.found and "16 items and their activations" in alone.found
    assert alone.state == "ok" and two.state == "problem"  # each has half of it
    assert footprint(model, averages=1).training_mb * 2**20 == 4 * (64 * 256 + 256) * 5


def test_packages_are_held_against_pyproject():
    needed, _, _ = requirements()
    assert check_packages(needed, {}).state == "problem"
    for bad in MALICIOUS["lightning"]:
        assert "malicious" in check_safety({"lightning": bad})[0].found


def test_limits_of_a_container(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert num_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert num_cores(tmp_path) == len(os.sched_getaffinity(0))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2097152 kB\nMemAvailable:    1048576 kB\n")
    assert available_mb(tmp_path, meminfo) == 1024
    (tmp_path / "memory.max").write_text(f"{512 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{400 * 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {100 * 2**20}\n")
    assert available_mb(tmp_path, meminfo) == 212
    assert available_mb(tmp_path / "none", tmp_path / "none") is None


def test_a_machine_with_gpus():
    """Counted on numbers: there is none here."""
    config = {"trainer": {"accelerator": "auto", "devices": 2}, "data": {"num_workers": 6, "batch_size": 16}}
    gpus = Machine(8, 64_000.0, (Gpu("H", 80_000.0, 70_000.0), Gpu("H", 80_000.0, 20_000.0)))
    found = {finding.check: finding for finding in examine_machine(gpus, config, 2)}
    assert found["processors"].state == "warning" and found["processors"].remedy.startswith("data.num_workers=4")
    assert found["trainer"].found == "2 processes, on gpu"
    big = Footprint(weights_mb=25_000.0, trainable_mb=25_000.0)  # 97.7 GiB with gradients and moments
    assert memory_finding(config, big, None, gpus, 2).state == "problem"
    sharded = {**config, "trainer": {**config["trainer"], "strategy": "fsdp"}}
    assert memory_finding(sharded, big, None, gpus, 2).state == "warning"  # half of it on each, of which one is busy
    small = Footprint(weights_mb=100.0, trainable_mb=100.0)
    assert memory_finding(config, small, 900.0, gpus, 2).state == "ok"  # 16 items: 18.7 GB
    assert memory_finding(config, small, 2000.0, gpus, 2).state == "warning"
    assert memory_finding(config, small, 8000.0, gpus, 2).state == "problem"
    unknown = Machine(8, 1000.0, (Gpu("GPU 0"), Gpu("GPU 1")))
    assert memory_finding(config, big, None, unknown, 2).state == "ok"  # nobody looked


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, audiolab.check as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
