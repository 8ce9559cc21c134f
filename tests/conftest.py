"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference numbers and small real corpora, beside the project."""
    folder = Path(os.environ.get("AUDIOLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.fail(f"{folder} has no reference/ folder: put the shared folder beside the project or set AUDIOLAB_SHARED")
    return folder
