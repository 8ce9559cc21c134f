"""What signals do to a process that trains nothing yet, to its children, and to one that `nohup` has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from test_run import ROOT

from audiolab.errors import EXIT_PREEMPTED
from audiolab.processes import _forwarding
from audiolab.training.preemption import Preemption
from audiolab.training.signals import stop_signals


def takes(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as the kernel sees it."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("verb", "number", "delay_s"),
    [("run", signal.SIGTERM, 0.0), ("run", signal.SIGHUP, 1.0), ("resume", signal.SIGTERM, 0.0)],
)
def test_a_signal_before_training_is_answered(tmp_path: Path, verb: str, number: int, delay_s: float):
    argv = ["task=asvspoof", f"outputs={tmp_path}"] if verb == "run" else [str(tmp_path)]
    (tmp_path / "config.yaml").write_text("task: asvspoof")
    process = subprocess.Popen(
        [sys.executable, "-m", f"audiolab.{verb}", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 60
    while not takes(process.pid, number):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(number)
    assert process.wait(60) == EXIT_PREEMPTED
    [said] = process.stderr.read().splitlines()
    assert said.startswith(f"audiolab: stopped by {signal.Signals(number).name} while nothing was being trained")
    assert said.endswith("to go on: the same command again")


def test_children_of_a_process_that_trains_nothing_yet_end_without_a_word():
    code = (
        "import os, signal, time\n"
        "from audiolab.training.signals import stop_before_training\n"
        "stop_before_training()\n"
        "ready, at_work = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.write(at_work, b'.')\n"  # a signal before Python is ready in the child is lost
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "os.read(ready, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


@pytest.mark.parametrize("in_trainer", [False, True])
def test_children_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str], in_trainer: bool):
    """A signal to the whole process group is not for data workers; none of them says anything."""
    with Preemption(tmp_path) as preemption:
        if in_trainer:
            preemption.setup(None, None, "fit")
        ready, at_work = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(at_work, b".")  # a signal before Python is ready in the child is lost
            for _ in range(600):
                time.sleep(0.1)
            os._exit(0)
        os.read(ready, 1)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM) if in_trainer else ():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            os.kill(child, number)
            time.sleep(0.2)
        if not in_trainer:
            os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not preemption.asked
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses_ends_the_run_at_the_next_batch(tmp_path: Path):
    """What is raised in a weak reference's callback, or while a data worker is forked, goes nowhere."""
    before = signal.getsignal(signal.SIGINT)
    with Preemption(tmp_path) as preemption:
        preemption.on_train_batch_start(None, None, None, 0)
        thing = {"an object"}
        lost = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
        assert lost() is None
        with pytest.raises(KeyboardInterrupt):
            preemption.on_train_batch_start(None, None, None, 0)
    assert signal.getsignal(signal.SIGINT) is before


def test_nohup_is_left_alone(tmp_path: Path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stop_signals() == [signal.SIGTERM]
        with Preemption(tmp_path), _forwarding([]):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop_signals() == [signal.SIGTERM, signal.SIGHUP]
    with Preemption(tmp_path):
        assert signal.getsignal(signal.SIGHUP) is not before
    assert signal.getsignal(signal.SIGHUP) is before
