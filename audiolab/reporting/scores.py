"""Score files: one row an utterance, and beside them the facts of the set, so that every number can be recomputed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from audiolab.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all (a temporary file beside it, then a rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # file names need not be UTF-8
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path, option: str = "-o") -> None:
    """Raise InputError where a folder cannot be made or written, before anything is computed; nothing is left there."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:  # asking for permissions does not tell: root has them all, and a disk may be mounted read-only
        tempfile.TemporaryDirectory(prefix=".audiolab-", dir=there).cleanup()
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give another folder with {option}") from None


def write_scores(path: Path, table: pd.DataFrame) -> None:
    """Write `<set>.csv` with full float64 precision and `<set>.json` with the facts in `table.attrs`."""
    write_text(path, table.to_csv(index=False, na_rep="nan"))
    write_text(path.with_suffix(".json"), json.dumps(table.attrs, indent=1))


def read_scores(path: Path) -> pd.DataFrame:
    """Read back what `write_scores` wrote, bit for bit."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the scores/<set>.csv of a finished run")
    import pandas as pd

    text = {"id": str, "speaker": str, "attack": str}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=["nan"])
    table.attrs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return table
