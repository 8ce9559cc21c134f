"""Runs that are killed, asked to stop, or find their files damaged: they end with the numbers of one that was not."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest_corpus import make_tiny_la
from test_checkpoints import flip, truncate
from test_run import EVERYTHING, QUICK, ROOT, command, weights

from audiolab import resume, run
from audiolab.folder import RunFolder

SEED = 5
MOMENTS = random.Random(SEED)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def options(base: Path, *more: str) -> list[str]:
    """Two epochs of six optimiser steps of two batches each, augmented, read by a worker."""
    return [
        *QUICK,
        f"data.root={base / 'tiny_la'}",
        f"outputs={base / 'out'}",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=2",
        "data.num_workers=1",
        "callbacks.checkpoints.every_n_steps=2",
        *EVERYTHING,
        *more,
    ]


def start(*argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], there: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 300
    while not there():
        if process.poll() is not None:
            pytest.fail(f"the run ended before it was stopped: {process.communicate()}")
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def losses(folder: Path) -> dict[int, str]:
    """The loss of each optimiser step, as written."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row["train/loss_step"] for row in csv.DictReader(file) if row.get("train/loss_step")}


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what a clock or a device has measured."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: cell for name, cell in row.items() if cell and not name.startswith(("throughput/", "device/"))}
            for row in csv.DictReader(file)
        ]


def last_step(folder: Path) -> int:
    return max(losses(folder), default=-1) if (folder / "metrics.csv").is_file() else -1


def step_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step*.ckpt"))


def assert_the_same(folder: Path, whole: Path, names: tuple[str, ...] = ("last", "best", "average")) -> None:
    for name in names:
        expected, found = weights(whole, f"{name}.ckpt"), weights(folder, f"{name}.ckpt")
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), (name, key)
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    expected_losses, found_losses = losses(whole), losses(folder)
    assert {step: expected_losses[step] for step in found_losses} == found_losses
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "average.ckpt",
        "best.ckpt",
        "calibration.json",
        "last.ckpt",
        "model.safetensors",
        "step0000008.ckpt",
        "step0000010.ckpt",
        "step0000012.ckpt",
    ]


@pytest.fixture(autouse=True)
def one_thread(one_thread_and_seed: None) -> Iterator[None]:
    """Runs in this process count like those in others."""
    yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_tiny_la(la_mini, folder / "tiny_la")
    return folder


@pytest.fixture(scope="module")
def whole(base: Path) -> Path:
    """The run that is never stopped."""
    done = command("audiolab.run", *options(base, "name=whole"))
    assert done.returncode == 0, done.stderr
    folder = base / "out/asvspoof/whole"
    assert sorted(losses(folder)) == list(range(12))
    return folder


@pytest.fixture(scope="module")
def stopped(base: Path) -> Path:
    """A run that was asked to stop in its second epoch; read only."""
    folder = base / "out/asvspoof/stopped"
    process = start("audiolab.run", *options(base, "name=stopped"))
    wait_for(process, lambda: last_step(folder) >= 8)
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75, errors
    assert errors.splitlines()[-1].startswith(f"audiolab: {folder} was stopped by SIGTERM, its state after step ")
    assert errors.splitlines()[-1].endswith(f"to go on: the same command again, or python -m audiolab.resume {folder}")
    assert len(step_files(folder)) == 3
    assert not (folder / "metrics.json").exists()
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_interrupted_and_killed_at_any_moment(base: Path, whole: Path):
    """Ctrl-C once, SIGKILL three times, with everything on that draws or remembers."""
    folder = base / "out/asvspoof/cut"
    moments = sorted(MOMENTS.sample(range(10), 4))
    delays_s = [MOMENTS.uniform(0, 0.2) for _ in moments]
    print(f"seed {SEED}: stopped at steps {moments}, {delays_s} s later")
    argv = ["audiolab.run", *options(base, "name=cut")]
    for number, (step, delay_s) in enumerate(zip(moments, delays_s, strict=True)):
        process = start(*argv)
        wait_for(process, lambda step=step: last_step(folder) >= step)
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT if number == 0 else signal.SIGKILL)
        code, output, errors = ended(process)
        assert code == (130 if number == 0 else -signal.SIGKILL), errors
        assert (f"to go on: python -m audiolab.resume {folder}" in output) == (number == 0)
        argv = ["audiolab.resume", str(folder)]
    resume.main([str(folder)])
    assert_the_same(folder, whole)
    assert set(range(max(moments), 12)) <= set(losses(folder))


def test_killed_while_a_checkpoint_is_written(base: Path, whole: Path):
    """First with half a file on the disk, then between `best.ckpt` and the checkpoint to go on from."""
    folder = base / "out/asvspoof/half"
    argv = options(base, "name=half", "+callbacks.ballast={_target_:resume_ballast.Ballast,megabytes:80}")
    process = start("audiolab.run", *argv)
    half = folder / "checkpoints/step0000004.ckpt.tmp"
    wait_for(process, lambda: half.exists() and half.stat().st_size > 0)
    process.kill()
    ended(process)
    assert half.stat().st_size > 0 and step_files(folder) == ["step0000002.ckpt"]
    process = start("audiolab.resume", str(folder))
    wait_for(process, (folder / "checkpoints/best.ckpt").exists)
    process.kill()
    ended(process)
    assert step_files(folder) == ["step0000002.ckpt", "step0000004.ckpt"]
    resume.main([str(folder)])
    assert_the_same(folder, whole)


def test_a_moved_run_goes_on_and_leaves_the_old_place_alone(stopped: Path, whole: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    moved = copied(stopped, tmp_path / "elsewhere")
    resume.main([str(moved)])
    assert_the_same(moved, whole)
    assert rows(moved) == rows(whole)  # the means of the epoch that it was stopped in are those of the whole epoch
    assert sum("train/loss_epoch" in row and "train/accuracy" in row for row in rows(moved)) == 2
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()} == before


def test_of_damaged_checkpoints_the_one_before_is_used(
    stopped: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = copied(stopped, tmp_path / "damaged")
    *_, before, flipped, newest = (folder / "checkpoints" / name for name in step_files(folder))
    truncate(newest)
    truncate(folder / "checkpoints/last.ckpt")
    flip(flipped)
    resume.main([str(folder)])
    assert f"going on from {before}" in capsys.readouterr().out
    said = [line for line in (folder / "run.log").read_text().splitlines() if "is damaged" in line]
    assert len(said) == 1
    for words in (f"{newest.name} is damaged (it is cut short", f"{flipped.name} is damaged (the checksum of"):
        assert words in said[0]
    assert_the_same(folder, whole)
    assert not list((folder / "checkpoints").glob("*.damaged"))  # of no more use


def test_when_all_are_damaged_training_starts_from_the_beginning(stopped: Path, whole: Path, tmp_path: Path):
    folder = copied(stopped, tmp_path / "lost")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        truncate(path)
    resume.main([str(folder)])
    assert "training starts again from the beginning, to the same numbers" in (folder / "run.log").read_text()
    assert_the_same(folder, whole)


def test_a_full_disk_is_said_and_the_run_goes_on_later(base: Path, whole: Path):
    """The kernel's limit on the size of files, set for the running process, stands for the full disk."""
    folder = base / "out/asvspoof/full"
    process = start("audiolab.run", *options(base, "name=full"))
    wait_for(process, (folder / "checkpoints/last.ckpt").exists)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    code, _, errors = ended(process)
    assert code == 1
    said = errors.splitlines()[-1]
    assert (
        "ckpt cannot be written (File too large: files may not become larger than" in said
        and "is intact" in said
        and f"python -m audiolab.resume {folder}" in said
    )
    assert "Traceback" not in errors
    assert not list((folder / "checkpoints").glob("*.tmp"))
    assert RunFolder.open(folder).latest_checkpoint.name == step_files(folder)[-1]  # whole, and nothing was set aside
    resume.main([str(folder)])
    assert_the_same(folder, whole)


def test_slurm_queues_the_job_again_and_the_same_command_goes_on(base: Path, whole: Path, tmp_path: Path):
    """As `#SBATCH --signal=USR1@120` does, with a stand-in for the controller that notes what it is told."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    folder, told = base / "out/asvspoof/slurm", tmp_path / "told"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {told}\nls {folder}/checkpoints >> {told}\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "124", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NAME": "train"}
    job |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    argv = options(base, "name=slurm")
    process = start("audiolab.run", *argv, PATH=f"{scontrol.parent}:{os.environ['PATH']}", **job)
    wait_for(process, lambda: last_step(folder) >= 3)
    process.send_signal(signal.SIGUSR1)
    code, _, errors = ended(process)
    assert code == 75, errors
    assert "SLURM job 77_3 is queued again" in errors
    words = told.read_text().splitlines()
    assert words[0] == "requeue 77_3" and words.count("requeue 77_3") == 1
    assert "last.ckpt" in words  # it was written before
    assert not list(folder.rglob("hpc_ckpt*"))  # Lightning's own handler did not run
    assert run.main(argv) == 0
    assert_the_same(folder, whole)


def test_a_closed_terminal_stops_a_run_that_then_goes_on(base: Path, whole: Path):
    """A real one, with the progress bar: what is printed after it is gone must not end the run before it is written."""
    ours, theirs = os.openpty()
    folder = base / "out/asvspoof/closed"
    process = subprocess.Popen(
        [sys.executable, "-m", "audiolab.run", *options(base, "name=closed")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = b""

    def at_work() -> bool:
        nonlocal shown
        with suppress(BlockingIOError):
            shown += os.read(ours, 2**16)
        return last_step(folder) >= 3

    wait_for(process, at_work)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)  # as a shell does with its jobs: data workers get it too
    assert process.wait(200) == 75, shown.decode()[-3000:]
    assert step_files(folder)
    resume.main([str(folder)])
    assert_the_same(folder, whole)


def test_two_processes_stop_at_the_same_step_and_go_on(base: Path):
    argv = options(base, "name=two", "augment=asvspoof/none", "data.batch_size=1", "data.num_workers=0")
    argv += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    folder = base / "out/asvspoof/two"
    process = start("audiolab.run", *argv)
    wait_for(process, lambda: last_step(folder) >= 3)
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75, errors
    assert f"{folder} was stopped by SIGTERM, its state after step " in errors.splitlines()[-1]
    step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert f"its state after step {step} is written" in errors.splitlines()[-1]
    done = command("audiolab.resume", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"going on from {folder / 'checkpoints' / f'step{step:07d}.ckpt'}" in done.stdout
    assert sorted(losses(folder)) == list(range(12))
