"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest_corpus import make_tiny_la


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
