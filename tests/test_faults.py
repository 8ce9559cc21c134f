"""What happens when the world around a run goes wrong: one test a row of the table in ARCHITECTURE.md."""

from __future__ import annotations

import csv
import http.server
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_corpus import make_tiny_la
from meanwhile import Meanwhile

import audiolab
from audiolab import fuse, predict, resume, run, score, test
from audiolab.errors import InputError, RunError
from audiolab.lock import locked

ROOT = Path(__file__).resolve().parent.parent
TRAIN, EVAL = "LA/ASVspoof2019_LA_train/flac", "LA/ASVspoof2019_LA_eval/flac"
KEY = "a" * 40


def options(root: Path, base: Path, *more: str) -> list[str]:
    quick = "task=asvspoof model=asvspoof/sinc_small data=asvspoof/la_mini augment=asvspoof/rawboost5 trainer=cpu "
    quick += "trainer.max_epochs=2 trainer.log_every_n_steps=1 data.batch_size=4 data.crop_samples=8000 "
    quick += "data.eval_samples=8000 data.eval_batch_size=8 data.in_memory=false "
    quick += "+callbacks.meanwhile._target_=meanwhile.Meanwhile"
    return [*quick.split(), f"data.root={root}", f"outputs={base / 'out'}", *more]


def folder(base: Path, name: str) -> Path:
    return base / "out/asvspoof" / name


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=300)


def numbers(path: Path) -> dict[str, Any]:
    """All that a run found: losses and learning rates of every step, final weights, scores and metrics."""
    state = torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [{key: row[key] for key in row if key == "step" or key.startswith(("train/loss", "dev/"))} for row in rows]
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in state.items()},
        "metrics.csv": steps,
        "scores": [(path / "scores" / f"{name}.csv").read_bytes() for name in ("dev", "eval")],
        "metrics": json.loads((path / "metrics.json").read_text()),
    }


@pytest.fixture(autouse=True)
def nothing_happens() -> Iterator[None]:
    Meanwhile.happens.clear()
    yield
    Meanwhile.happens.clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> Path:
    """The folder of a corpus and of a run on it which nothing happened to; read only."""
    base = tmp_path_factory.mktemp("whole")
    assert run.main(options(make_tiny_la(la_mini, base / "corpus"), base, "name=whole")) == 0
    return base


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    """The same corpus, to be broken."""
    return Path(shutil.copytree(whole / "corpus", tmp_path / "corpus"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same finished run, to be damaged."""
    return Path(shutil.copytree(folder(whole, "whole"), tmp_path / "copy"))


# Data and its workers


def test_a_killed_data_worker_ends_the_run_in_a_sentence_and_it_goes_on_with_fewer(whole: Path, tmp_path: Path):
    argv = options(whole / "corpus", tmp_path, "name=cut")
    Meanwhile.happens.append(lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))
    with pytest.raises(RunError, match=r"data worker \(process \d+\) was killed by .*memory.*num_workers") as caught:
        run.main([*argv, "data.num_workers=2"])
    assert f"python -m audiolab.resume {folder(tmp_path, 'cut')}" in str(caught.value)
    assert "Traceback" in (folder(tmp_path, "cut") / "run.log").read_text()
    assert not (folder(tmp_path, "cut") / "metrics.json").exists()
    assert run.main([*argv, "data.num_workers=0", "data.in_memory=true"]) == 0
    assert numbers(folder(tmp_path, "cut")) == numbers(folder(whole, "whole"))


def test_a_file_that_vanishes_in_training_is_named_and_the_run_goes_on_when_it_is_back(
    corpus: Path, whole: Path, tmp_path: Path
):
    flac = corpus / TRAIN
    Meanwhile.happens.append(lambda: flac.rename(corpus / "elsewhere"))
    with pytest.raises(InputError, match=r"train: \S+flac does not exist, nor does its folder") as caught:
        run.main(options(corpus, tmp_path, "name=cut"))
    assert str(caught.value).endswith(f"To go on: python -m audiolab.resume {folder(tmp_path, 'cut')}")
    (corpus / "elsewhere").rename(flac)
    resume.main([str(folder(tmp_path, "cut"))])
    assert numbers(folder(tmp_path, "cut")) == numbers(folder(whole, "whole"))


def test_a_file_that_is_cut_off_in_training_is_left_out_and_listed_with_skip(corpus: Path, tmp_path: Path):
    victim = max((corpus / TRAIN).iterdir())
    Meanwhile.happens.append(lambda: victim.write_bytes(victim.read_bytes()[:500]))
    skip = ["name=skip", "data.on_bad_audio=skip", "data.max_bad_audio=1", "trainer.max_epochs=3"]
    assert run.main(options(corpus, tmp_path, *skip)) == 0
    [row] = csv.DictReader((folder(tmp_path, "skip") / "bad_audio.csv").open())
    assert row["file"] == str(victim) and "cut off" in row["reason"]


def test_too_many_bad_files_are_listed_though_the_run_ends(corpus: Path, tmp_path: Path):
    victims = sorted((corpus / TRAIN).iterdir())[:4]
    Meanwhile.happens.append(lambda: [victim.write_bytes(b"") for victim in victims])
    skip = ["name=many", "data.on_bad_audio=skip", "data.max_bad_audio=1", "trainer.max_epochs=3"]
    with pytest.raises(InputError, match="data.max_bad_audio=1 allows 1"):
        run.main(options(corpus, tmp_path, *skip))
    listed = [row["file"] for row in csv.DictReader((folder(tmp_path, "many") / "bad_audio.csv").open())]
    assert len(listed) > 1 and set(listed) <= set(map(str, victims))


def test_a_file_that_vanishes_before_the_evaluation_is_named_or_counted(corpus: Path, whole: Path, tmp_path: Path):
    victim = min((corpus / EVAL).iterdir())
    Meanwhile.happens.append(victim.unlink)
    with pytest.raises(InputError, match=f"eval: .*{victim.name} does not exist"):
        run.main(options(corpus, tmp_path, "name=stop"))
    skip = ["name=skip", "data.on_bad_audio=skip", "data.max_bad_audio=1"]
    assert run.main(options(corpus, tmp_path, *skip)) == 0
    assert [row["file"] for row in csv.DictReader((folder(tmp_path, "skip") / "bad_audio.csv").open())] == [str(victim)]
    judged = json.loads((folder(tmp_path, "skip") / "metrics.json").read_text())["eval"]
    assert (judged["num_bonafide"] + judged["num_spoof"], judged["num_skipped"]) == (15, 1)
    shutil.copyfile(whole / "corpus" / EVAL / victim.name, victim)
    resume.main([str(folder(tmp_path, "stop"))])
    assert numbers(folder(tmp_path, "stop")) == numbers(folder(whole, "whole"))


# Folders


READ_ONLY = ["/proc/x", "{base}/file/x"]  # root may write to anything that is a folder on a disk


@pytest.mark.parametrize("place", READ_ONLY)
def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    whole: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    out = place.format(base=tmp_path)
    done = str(folder(whole, "whole"))
    other = str(shutil.copytree(done, tmp_path / "other"))
    protocol = str(whole / "corpus/LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt")
    for verb, argv in (
        (run, options(whole / "corpus", tmp_path, f"outputs={out}", "name=x")),
        (predict, [done, str(whole / "corpus" / EVAL), "-o", out]),
        (test, [done, "-o", out]),
        (score, ["task=asvspoof", f"{done}/scores/eval.2col.txt", protocol, "-o", out]),
        (fuse, [done, other, "-o", out]),
    ):
        with pytest.raises(InputError, match=rf"{out}\S* cannot be (written|a folder).*(outputs=|-o)"):
            verb.main(argv)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("name", ["scores", "plots", "metrics.csv"])
def test_a_run_folder_that_becomes_unwritable_loses_nothing(whole: Path, tmp_path: Path, name: str):
    path = folder(tmp_path, "cut") / name

    def spoil() -> None:
        path.unlink(missing_ok=True)
        path.mkdir() if name == "metrics.csv" else path.touch()

    Meanwhile.happens.append(spoil)
    with pytest.raises(RunError, match=rf"{name}\S* cannot be written \(.*audiolab.resume {folder(tmp_path, 'cut')}"):
        run.main(options(whole / "corpus", tmp_path, "name=cut"))
    path.rmdir() if name == "metrics.csv" else path.unlink()
    resume.main([str(folder(tmp_path, "cut"))])
    found, expected = numbers(folder(tmp_path, "cut")), numbers(folder(whole, "whole"))
    if name == "metrics.csv":  # the rows that lay in it were taken away
        found.pop("metrics.csv"), expected.pop("metrics.csv")
    assert found == expected


def test_a_second_command_on_a_run_folder_is_refused_while_the_first_lives(whole: Path, tmp_path: Path):
    """A real process that is killed with SIGKILL, with data workers that outlive it for a while."""
    argv = options(whole / "corpus", tmp_path, "name=one", "data.num_workers=1", "trainer.max_epochs=1000")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    first = subprocess.Popen([sys.executable, "-m", "audiolab.run", *argv], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 120
        while not (folder(tmp_path, "one") / "checkpoints/last.ckpt").exists():
            assert first.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.01)
        held = rf"one is in use by process {first.pid} on \S+, since 2\d{{3}}-\S+ \S+: wait for it or end it"
        for second in (
            lambda: resume.main([str(folder(tmp_path, "one"))]),
            lambda: run.main(argv),
        ):
            with pytest.raises(InputError, match=held):
                second()
    finally:
        first.kill()
        first.wait()
    with locked(folder(tmp_path, "one")):
        pass


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        pass
    assert "cannot be locked (No locks available): nothing keeps a second command" in caplog.text


def test_the_name_of_another_run_is_refused_and_that_of_the_same_goes_on(whole: Path, tmp_path: Path):
    argv = options(whole / "corpus", tmp_path, "name=cut")

    def power_cut() -> None:
        raise RuntimeError("power cut")

    Meanwhile.happens.append(power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run.main(argv)
    config = (folder(tmp_path, "cut") / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"other options \(seed: 0 there, 5 now\): choose another name="):
        run.main([*argv, "seed=5"])
    (folder(tmp_path, "foreign")).mkdir()
    (folder(tmp_path, "foreign") / "thesis.tex").touch()
    with pytest.raises(InputError, match="foreign is not a run folder"):
        run.main([*argv, "name=foreign"])
    assert (folder(tmp_path, "cut") / "config.yaml").read_text() == config
    (folder(tmp_path, "begun")).mkdir()
    (folder(tmp_path, "begun") / "command.txt").touch()  # killed before it wrote anything else
    assert run.main([*argv, "name=begun"]) == 0
    assert numbers(folder(tmp_path, "begun")) == numbers(folder(whole, "whole"))


def test_damaged_files_of_a_run_folder_are_named(copy: Path):
    for name, damaged, match in (
        ("metrics.json", lambda text: text[:40], "metrics.json is damaged .*: delete it and resume"),
        ("model.json", lambda text: text[:40], "model.json is damaged .*: copy it again"),
        ("model.json", lambda text: "[]", "model.json is damaged .*: copy it again"),
        ("checkpoints/calibration.json", lambda text: "", "calibration.json is damaged .*: delete it and metrics.json"),
        ("config.yaml", lambda text: text[:300], "config.yaml is not the (whole )?configuration of a run"),
        ("config.yaml", lambda text: text[: text.index("\ntrainer:") + 1], "not the whole .*, it lacks trainer"),
        ("config.yaml", lambda text: "\x00" * len(text), "config.yaml cannot be read"),
        ("config.yaml", lambda text: text.replace("  batch_size: 4", "  batch_sise: 4"), "batch_size"),
        ("config.yaml", lambda text: text.replace("SpoofingData", "SpoofData"), "SpoofData cannot be imported"),
    ):
        path = copy / name
        text = path.read_text()
        path.write_text(damaged(text))
        with pytest.raises(InputError, match=match):
            resume.main([str(copy)])
            audiolab.load(str(copy))
            test.test(str(copy), out=str(copy / "again"))
        path.write_text(text)
    (copy / "model.json").unlink()
    audiolab.load(str(copy))  # this model needs no pretrained weights


@pytest.mark.parametrize("place", READ_ONLY)
def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_computed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    (tmp_path / "file").touch()
    cache = place.format(base=tmp_path)
    monkeypatch.setenv("AUDIOLAB_CACHE", cache)
    with pytest.raises(InputError, match=f"built-in corpus cannot be written to {cache}.*AUDIOLAB_CACHE"):
        run.main(["task=asvspoof", f"outputs={tmp_path / 'out'}"])
    ssl = "model.front_end.ssl"
    frozen = ["model=asvspoof/dual_stream_tiny", f"{ssl}.freeze_layers=all", f"{ssl}.mask_time_prob=0.0"]
    frozen += ["augment=asvspoof/none", "data.random_crop=false"]
    with pytest.raises(InputError, match=f"{cache} cannot be written .*data.feature_cache="):
        run.main(options(whole / "corpus", tmp_path, *frozen, f"data.feature_cache={cache}"))
    assert not (tmp_path / "out").exists()


def test_names_that_hydra_rich_or_an_ascii_terminal_trip_over_work(whole: Path, tmp_path: Path):
    base = tmp_path / "Ünï [a], b=c 'd' $x {e} ~f (g) #h!"
    shutil.copytree(whole / "corpus", base / "corpus")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = ["-m", "audiolab.run", *options(base / "corpus", base, "trainer.max_epochs=1", "data.num_workers=1")]
    done = command(*argv, "name=one", **ascii_only)
    assert done.returncode == 0, done.stderr
    swept = command(*argv, "-m", "name=two", "seed=0,1", "logger=[csv,tensorboard,wandb]")
    assert swept.returncode == 0, swept.stderr
    for name in ("one", "two/seed-0"):
        assert str(base) in swept.stdout or name == "one"
        assert json.loads((folder(base, name) / "metrics.json").read_text())
    again = test.test(str(folder(base, "one")), ["data=asvspoof/la2019", f"data.root={base / 'corpus'}"])
    assert again["eval"]["eer"] == json.loads((folder(base, "one") / "metrics.json").read_text())["eval"]["eer"]
    assert [path.name for path in tmp_path.iterdir()] == [base.name]


# The network


class WandbServer:
    """As much of a W&B server as a run needs to begin; real enough to be lost."""

    def __init__(self) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                name, given = asked.get("operationName"), asked.get("variables", {})
                project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}}
                bucket = {"id": "1", "name": given.get("name"), "displayName": "x", "config": "{}", "project": project}
                data = {
                    "RunResumeStatus": {"model": {**project, "bucket": None}},
                    "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
                }.get(name, {})
                body = json.dumps({"data": data}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


ONLINE = ["logger=[csv,wandb]", "logger.wandb.mode=online", "logger.wandb.upload_timeout_s=3"]


@pytest.mark.parametrize(("key", "reason"), [(KEY, "deadline exceeded|refused|Timed out"), (None, "no API key")])
def test_without_wandb_a_run_and_a_sweep_go_on_offline_and_say_how_to_upload(
    whole: Path, tmp_path: Path, key: str | None, reason: str
):
    argv = options(whole / "corpus", tmp_path, *ONLINE, "trainer.max_epochs=1", "logger.wandb.connect_timeout_s=2")
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "WANDB_API_KEY": key or ""}
    done = command("-m", "audiolab.run", "-m", *argv, "name=s", "seed=0,1", **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    sentence = rf"W&B at http://127.0.0.1:9 cannot be used \(.*(?:{reason}).*; upload .*: wandb sync (\S+)"
    said = re.findall(sentence, done.stderr)
    runs = [folder(tmp_path, name) for name in ("s/seed-0", "s/seed-1", "s")]
    for path, where in zip(said, runs, strict=True):  # the last is the sweep's own
        assert Path(path).parent == where / "wandb" and list(Path(path).glob("run-*.wandb"))
    assert said[0] in (folder(tmp_path, "s/seed-0") / "run.log").read_text()


def test_wandb_lost_in_the_middle_does_not_stop_the_training(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    Meanwhile.happens.append(server.stop)
    assert run.main(options(whole / "corpus", tmp_path, *ONLINE, "name=lost")) == 0
    [path] = re.findall(r"lacks a part of this run; upload it with: wandb sync (\S+)", caplog.text)
    assert "W&B did not take the tables and pictures of dev, which are in the run folder" in caplog.text
    assert "offline" not in path and list(Path(path).glob("run-*.wandb"))
    assert numbers(folder(tmp_path, "lost"))["weights"] == numbers(folder(whole, "whole"))["weights"]


def test_without_the_hub_a_cached_model_is_used_and_another_is_refused_at_once(whole: Path, tmp_path: Path):
    """With a hub that takes connections and never answers, which is the slowest there is."""
    from transformers import WavLMConfig, WavLMModel

    cached = tmp_path / "hf/hub/models--lab--tiny"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    WavLMModel(WavLMConfig(**small)).save_pretrained(cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    code = """
import time
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.encoders import load_encoder
import transformers
for name in ("lab/tiny", "microsoft/wavlm-large"):
    start_s = time.monotonic()
    try:
        print(sum(p.numel() for p in load_encoder(name, None, False).parameters()))
    except InputError as error:
        print(error)
    print(time.monotonic() - start_s)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = command("-c", code, HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=url)
    size, cached_s, sentence, refused_s = done.stdout.splitlines()
    assert int(size) > 1000
    for part in ("'microsoft/wavlm-large'", "no answer within 5 s", "local folder", "HF_HOME", "pretrained=null"):
        assert part in sentence
    assert float(cached_s) < 30 and float(refused_s) < 30  # the client's own attempts take more than 80 s


# Reproducibility


@pytest.mark.parametrize("how", ["data.num_workers=1", "data.num_workers=2", "data.in_memory=true", "again"])
def test_workers_and_memory_change_no_bit(whole: Path, tmp_path: Path, how: str):
    argv = options(whole / "corpus", tmp_path, f"name={'again' if how == 'again' else how.replace('=', '-')}")
    assert run.main(argv if how == "again" else [*argv, how]) == 0
    [path] = (tmp_path / "out/asvspoof").iterdir()
    assert numbers(path) == numbers(folder(whole, "whole"))


def test_another_process_with_another_hash_seed_changes_no_bit(whole: Path, tmp_path: Path):
    done = command("-m", "audiolab.run", *options(whole / "corpus", tmp_path, "name=x"), PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    assert numbers(folder(tmp_path, "x")) == numbers(folder(whole, "whole"))
