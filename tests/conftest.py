"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest_corpus import make_tiny_la


def pytest_configure() -> None:
    """Heed the signals that `nohup` and a shell's background jobs ignore: what tests start would inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference numbers and small real corpora, beside the project."""
    folder = Path(os.environ.get("AUDIOLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.fail(
            f"{folder} has no reference/ folder: put the shared folder beside the project or set AUDIOLAB_SHARED"
        )
    return folder


@pytest.fixture(scope="session")
def la_mini(shared: Path) -> Path:
    """The small real corpus in the ASVspoof 2019 LA layout."""
    return shared / "data" / "la_mini"


@pytest.fixture
def tiny_la(la_mini: Path, tmp_path: Path) -> Path:
    """A writable corpus of a few real recordings."""
    return make_tiny_la(la_mini, tmp_path / "tiny_la")


@pytest.fixture
def one_thread_and_seed() -> Iterator[None]:
    """One thread and torch's seed 0, for tests of modules."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
