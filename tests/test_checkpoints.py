"""Checkpoints: which files, at which moments, what damaged ones and full disks lead to, and what signals do."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_training_averaging import NoiseData, Toy

from audiolab.errors import EXIT_PREEMPTED, InputError, Preempted, RunError
from audiolab.folder import RunFolder
from audiolab.training.checkpoint_files import damage, link, newest_intact, written_whole
from audiolab.training.checkpoint_io import WholeFiles
from audiolab.training.checkpoints import Checkpoints, read_checkpoint
from audiolab.training.position import Position
from audiolab.training.preemption import Preemption

NAN = math.nan


class Judged(Toy):
    """Six batches an epoch; the metric of each validation is given."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values, self.judged = values, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["judged"] = self.judged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.judged = checkpoint["judged"]

    def on_validation_epoch_end(self) -> None:
        self.log("dev/eer", self.values[self.judged])
        self.judged += 1

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Nothing is measured by the batch."""


def fit(
    folder: Path,
    values: list[float],
    *callbacks: L.Callback,
    keep: int = 100,
    every_n_steps: int | None = None,
    every_n_minutes: float | None = None,
    mode: str = "min",
    start: Path | None = None,
    **trainer: Any,
) -> tuple[Judged, Checkpoints]:
    torch.manual_seed(0)
    checkpoints = Checkpoints(folder / "checkpoints", "dev/eer", mode, keep, every_n_steps, every_n_minutes)
    task, data = Judged(values), NoiseData(2, 4, 0, "raise", 0)
    options = {"accelerator": "cpu", "max_epochs": 3, "logger": False, "default_root_dir": folder} | trainer
    L.Trainer(
        **options,
        callbacks=[*callbacks, Position(0), checkpoints],
        plugins=[WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    ).fit(task, data, ckpt_path=start, weights_only=True)
    return task, checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Turn one bit in the middle of the largest tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_best_the_newest_and_another_name_of_the_newest(tmp_path: Path):
    _, checkpoints = fit(tmp_path, [2.0, 1.0, 1.0], keep=2)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step0000012.ckpt", "step0000018.ckpt"]
    folder = tmp_path / "checkpoints"
    assert (folder / "last.ckpt").samefile(folder / "step0000018.ckpt")
    assert read_checkpoint(folder / "best.ckpt")["global_step"] == 12  # of equal ones the earlier
    assert checkpoints.best == (1.0, 12)
    assert str(tmp_path) not in repr(read_checkpoint(folder / "last.ckpt")["callbacks"])


@pytest.mark.parametrize(
    ("values", "mode", "step"), [([NAN, 3.0, NAN], "min", 12), ([1.0, 3.0, math.inf], "max", 12), ([NAN] * 3, "max", 0)]
)
def test_what_is_not_a_number_is_never_best(tmp_path: Path, values: list[float], mode: str, step: int):
    fit(tmp_path, values, mode=mode)
    best = tmp_path / "checkpoints/best.ckpt"
    assert (read_checkpoint(best)["global_step"] if step else best.exists()) == step


@pytest.mark.parametrize(
    ("options", "steps", "best"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], 12),
        ({"accumulate_grad_batches": 2}, [1, 2, 3, 4, 5, 6, 7, 8, 9], 6),
        ({"accumulate_grad_batches": 4}, [1, 2, 3, 4, 5, 6], 4),  # the second of an epoch has two batches
        ({"val_check_interval": 0.5}, [1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18], 6),
        ({"check_val_every_n_epoch": 2}, list(range(1, 19)), 12),
    ],
)
def test_every_checkpoint_resumes_to_the_same_weights(
    tmp_path: Path, options: dict[str, Any], steps: list[int], best: int
):
    """From each file that was written, at each moment that is used; with the same files and best at the end."""
    values = [3.0, 1.0, 2.0, 4.0, 5.0, 6.0] if "check_val_every_n_epoch" not in options else [3.0]
    whole, _ = fit(tmp_path / "whole", values, every_n_steps=1, **options)
    written = tmp_path / "whole/checkpoints"
    assert names(tmp_path / "whole") == ["best.ckpt", "last.ckpt", *(f"step{step:07d}.ckpt" for step in steps)]
    assert read_checkpoint(written / "best.ckpt")["global_step"] == best
    for step in steps[:-1]:
        folder = tmp_path / f"from{step}"
        (folder / "checkpoints").mkdir(parents=True)
        if step >= best:
            (folder / "checkpoints/best.ckpt").write_bytes((written / "best.ckpt").read_bytes())
        resumed, _ = fit(folder, values, every_n_steps=1, start=written / f"step{step:07d}.ckpt", **options)
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items()), step
        assert names(folder) == ["best.ckpt", "last.ckpt", *(f"step{s:07d}.ckpt" for s in steps if s > step)]
        assert read_checkpoint(folder / "checkpoints/best.ckpt")["global_step"] == best


def test_written_by_the_clock_within_an_epoch_or_only_after_it(tmp_path: Path):
    fit(tmp_path / "often", [1.0], every_n_minutes=1e-9, max_epochs=1)
    assert len(names(tmp_path / "often")) == 2 + 6
    fit(tmp_path / "seldom", [1.0], every_n_minutes=60, max_epochs=1)
    assert len(names(tmp_path / "seldom")) == 2 + 1


@pytest.mark.parametrize("options", [{"keep": 0}, {"every_n_steps": 0}, {"every_n_minutes": 0}])
def test_intervals_that_cannot_be(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(InputError, match="cannot be: keep 1 or more"):
        fit(tmp_path, [1.0], **options)


def test_a_best_that_is_newer_than_the_state_is_what_its_file_says(tmp_path: Path):
    """Killed between best.ckpt and last.ckpt: the steps in between are repeated, the file stays."""
    fit(tmp_path, [2.0, 1.0, 3.0])
    folder = tmp_path / "checkpoints"
    before = (folder / "best.ckpt").stat().st_mtime_ns
    _, checkpoints = fit(tmp_path, [2.0, 1.0, 3.0], start=folder / "step0000006.ckpt")
    assert checkpoints.best == (1.0, 12)
    assert (folder / "best.ckpt").stat().st_mtime_ns == before


def test_a_damaged_best_is_made_anew_or_refused_but_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = [2.0, 1.0, 3.0]
    fit(tmp_path, values)
    folder = tmp_path / "checkpoints"
    flip(folder / "best.ckpt")
    with pytest.raises(InputError, match=r"best.ckpt cannot be read .*checksum of archive/data/\d+ does not match"):
        read_checkpoint(folder / "best.ckpt")
    fit(tmp_path, values, start=folder / "step0000018.ckpt")
    assert "is made anew from step0000012.ckpt" in caplog.text
    assert read_checkpoint(folder / "best.ckpt")["global_step"] == 12
    flip(folder / "best.ckpt")
    (folder / "step0000012.ckpt").unlink()
    with pytest.raises(RunError, match=r"\(dev/eer 1 after step 12\), is damaged .* delete it to keep the best of the"):
        fit(tmp_path, values, start=folder / "step0000018.ckpt")
    (folder / "best.ckpt").unlink()
    fit(tmp_path, values, start=folder / "step0000018.ckpt")
    assert "best.ckpt of step 12 (dev/eer 1) is missing" in caplog.text


def test_damaged_files_are_named_and_set_aside_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fit(tmp_path, [2.0, 1.0, 3.0], keep=3)
    folder = tmp_path / "checkpoints"
    assert newest_intact(folder) == folder / "step0000018.ckpt"
    assert not [record for record in caplog.records if record.name.startswith("audiolab.training.checkpoint")]
    truncate(folder / "step0000018.ckpt")  # and with it last.ckpt
    flip(folder / "step0000012.ckpt")
    assert newest_intact(folder) == folder / "step0000006.ckpt"
    [said] = [
        record.getMessage() for record in caplog.records if record.name.startswith("audiolab.training.checkpoint")
    ]
    assert "step0000018.ckpt is damaged (it is cut short or no checkpoint" in said
    assert "step0000012.ckpt is damaged (the checksum of archive/data/" in said
    assert "going on from step0000006.ckpt" in said
    assert names(tmp_path) == ["best.ckpt", "step0000006.ckpt", "step0000018.ckpt.damaged"]
    caplog.clear()
    (folder / "step0000006.ckpt").write_bytes(b"")
    assert newest_intact(folder) is None
    assert "training starts again from the beginning" in caplog.messages[-1]
    assert names(tmp_path) == ["best.ckpt", "step0000006.ckpt.damaged"]
    assert newest_intact(tmp_path / "nothing") is None


def test_a_copied_folder_without_hard_links_and_a_kill_before_the_second_name(tmp_path: Path):
    fit(tmp_path, [2.0, 1.0, 3.0], keep=3)
    folder = tmp_path / "checkpoints"
    last = folder / "last.ckpt"
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content)
    truncate(folder / "step0000018.ckpt")
    assert newest_intact(folder) == last  # a copy of the newest
    for step in (6, 12):
        (folder / f"step{step:07d}.ckpt").unlink()
    assert newest_intact(folder) == last


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path):
    """A limit of the kernel on the size of files."""
    path = tmp_path / "checkpoints/last.ckpt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refused(why: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(RunError, match=why):
                WholeFiles().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    refused(r"last.ckpt cannot be written \(File too large: .* ulimit -f\): there is no checkpoint yet, .*resume")
    assert names(tmp_path) == []
    WholeFiles().save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)
    refused(r"last.ckpt cannot be written \(File too large: .* ulimit -f\): the checkpoint before is intact, .*resume")
    assert names(tmp_path) == ["last.ckpt"]
    assert WholeFiles().load_checkpoint(path)["state_dict"]["w"].all()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, r"No space left on device: 0.0 MB of it were written, \d+ MB are free; make room"),
        (errno.EDQUOT, r"MB are free, of which a quota gives you less; make room"),
        (errno.EROFS, "Read-only file system: make .*checkpoints writable"),
        (errno.EIO, "see to the disk"),
    ],
)
def test_why_a_file_cannot_be_written_decides_what_to_do(tmp_path: Path, number: int, remedy: str):
    with pytest.raises(RunError, match=remedy), written_whole(tmp_path / "checkpoints/last.ckpt"):
        raise OSError(number, os.strerror(number))


def test_a_checkpoint_that_holds_objects_is_set_aside_unless_there_is_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fit(tmp_path, [2.0, 1.0, 3.0], keep=2)
    folder = tmp_path / "checkpoints"
    (folder / "step0000018.ckpt").unlink()
    torch.save({"state_dict": {}, "where": Path("x")}, folder / "step0000018.ckpt")
    (folder / "last.ckpt").unlink()
    link(folder / "step0000018.ckpt", folder / "last.ckpt")
    with pytest.raises(InputError, match=r"step0000018.ckpt is refused: it holds objects .* \(pathlib") as caught:
        read_checkpoint(folder / "step0000018.ckpt")
    assert "weights_only" not in str(caught.value)
    run = RunFolder(tmp_path, {})
    assert run.latest_checkpoint == folder / "step0000012.ckpt"
    assert "step0000018.ckpt is refused (it holds objects other than tensors and plain values (pathlib" in caplog.text
    assert names(tmp_path) == ["best.ckpt", "step0000012.ckpt", "step0000018.ckpt.damaged"]
    torch.save({"state_dict": {}, "where": Path("x")}, folder / "step0000012.ckpt")
    assert run.latest_checkpoint == folder / "step0000012.ckpt"  # refused when it is read
    assert "step0000012.ckpt" in names(tmp_path)


def test_an_error_of_the_writer_itself_is_not_blamed_on_the_disk(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a.ckpt"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_second_name_for_the_same_file_and_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in "ab":
        (tmp_path / name).write_text(name)
    for _ in range(2):
        link(tmp_path / "a", tmp_path / "last")
        assert (tmp_path / "last").samefile(tmp_path / "a")

    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)  # as FAT and some network file systems do
    link(tmp_path / "b", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "last"]


def test_leftovers_of_killed_processes_go_at_the_next_start(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step0000003.ckpt.tmp").write_text("half")
    fit(tmp_path, [1.0], max_epochs=1)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step0000006.ckpt"]


class SignalAt(L.Callback):
    """Sends this process a signal at one moment."""

    def __init__(self, moment: str, step: int) -> None:
        self.step, self.sent = step, False
        setattr(self, moment, self.send)

    def send(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "step", "written"),
    [
        ("on_train_batch_start", 1, 2),  # between two batches of the third step: after it
        ("on_train_batch_end", 2, 2),
        ("on_validation_batch_end", 3, 3),
        ("on_train_epoch_end", 3, 3),
        ("on_validation_batch_end", 9, 9),  # of the last epoch
    ],
)
def test_a_signal_in_training_waits_for_the_next_exact_moment(tmp_path: Path, moment: str, step: int, written: int):
    values = [3.0, 2.0, 4.0]
    whole, _ = fit(tmp_path / "whole", values, accumulate_grad_batches=2)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="stopped by SIGTERM"), Preemption(tmp_path) as preemption:
        fit(tmp_path, values, preemption, SignalAt(moment, step), accumulate_grad_batches=2)
    assert signal.getsignal(signal.SIGTERM) is handler
    last = tmp_path / "checkpoints/last.ckpt"
    assert read_checkpoint(last)["global_step"] == written
    resumed, _ = fit(tmp_path, values, start=last, accumulate_grad_batches=2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("moment", ["setup", "on_fit_start", "on_train_end"])
def test_a_signal_with_nothing_newer_to_write_ends_at_once(tmp_path: Path, moment: str):
    with pytest.raises(Preempted, match="the same command again"), Preemption(tmp_path) as preemption:
        fit(tmp_path, [1.0], preemption, SignalAt(moment, 6 if moment == "on_train_end" else 0), max_epochs=1)


def test_a_signal_in_an_evaluation_after_training_ends_at_once(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    said = f"finished and written, only its evaluation will be done again; .* python -m audiolab.resume {tmp_path}"
    with pytest.raises(Preempted, match=said), Preemption(tmp_path) as preemption:
        task, _ = fit(tmp_path, [1.0, 1.0], preemption, max_epochs=1)
        task.trainer.callbacks.append(SignalAt("on_validation_batch_end", 6))
        task.trainer.validate(task, NoiseData(2, 4, 0, "raise", 0), verbose=False)


def test_a_second_signal_ends_a_process_at_once_but_one_that_comes_twice_does_not(tmp_path: Path):
    child = os.fork()
    if child == 0:
        with Preemption(tmp_path) as preemption:
            preemption._waits = True
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2.1)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_PREEMPTED


def test_what_is_whole_is_not_called_damaged(tmp_path: Path):
    torch.save({"state_dict": {"w": torch.randn(300, 300)}}, tmp_path / "a.ckpt")
    assert damage(tmp_path / "a.ckpt") is None
    flip(tmp_path / "a.ckpt")
    assert damage(tmp_path / "a.ckpt") == "the checksum of a/data/0 does not match"
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)  # torch itself does not notice
