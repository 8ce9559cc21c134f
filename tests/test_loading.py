"""What data workers print, and do not print, when their process is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

_PROGRAM = """
import multiprocessing, pathlib, sys, time
from audiolab.training.loading import end_without_a_word_after_parent

folder, error = pathlib.Path(sys.argv[1]), sys.argv[2]

def work():
    end_without_a_word_after_parent()
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    try:
        raise getattr(__import__("builtins"), error)("of the test")
    except Exception:
        sys.excepthook(*sys.exc_info())
    (folder / "done").touch()

worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
worker.join()
"""


@pytest.mark.parametrize(
    ("error", "killed", "told"),
    [
        ("ConnectionResetError", True, False),
        ("EOFError", True, False),
        ("ConnectionResetError", False, True),  # the process is well: that is news
        ("ValueError", True, True),  # a fault of the worker's own
    ],
)
def test_a_worker_says_nothing_of_connections_lost_with_its_process(
    error: str, killed: bool, told: bool, tmp_path: Path
):
    def wait_for(name: str) -> None:
        deadline_s = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path), error], stderr=subprocess.PIPE, text=True
    )
    wait_for("ready")
    if killed:
        process.kill()
    (tmp_path / "go").touch()
    wait_for("done")
    _, errors = process.communicate(timeout=60)  # until the worker has ended too
    assert (f"{error}: of the test" in errors) == told
    assert told or errors == ""
