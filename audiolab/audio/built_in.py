"""Corpora that audiolab makes itself: a folder that appears complete or not at all, and is made again when need be."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import track

from audiolab.errors import InputError

STAMP = "recipe.json"
_STALE_BUILD_S = 3600

Job = TypeVar("Job")


def built_in_corpus(
    root: str | os.PathLike[str],
    corpus: str,
    recipe: dict[str, Any],
    code: Iterable[Any],
    build: Callable[[Path], None],
    *,
    show_progress: bool = True,
) -> Path:
    """Let `build` fill the folder ``root`` unless what is there is of this `corpus`, recipe and code; returns it.

    `build` gets an empty folder beside it, which takes the place of ``root`` once it is finished: whatever is
    interrupted, and however many processes build at once. `code` names functions and modules: when the file of one of
    them changes, the corpus is made again. Raises InputError where ``root`` holds anything else than this corpus, or
    cannot be written.

    >>> import tempfile
    >>> def build(folder: Path) -> None:
    ...     (folder / "a.txt").write_text("a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = built_in_corpus(f"{folder}/made", "letters", {"seed": 0}, [], build, show_progress=False)
    ...     sorted(path.name for path in made.iterdir())
    ['a.txt', 'recipe.json']
    """
    root = Path(root).resolve()
    stamp = {"corpus": corpus, **recipe, "code": code_digest(code)}
    found = _stamp_of(root)
    if found == stamp:
        return root
    if root.is_file() or (root.is_dir() and found.get("corpus") != corpus and any(root.iterdir())):
        raise InputError(f"{root} holds something else than the built-in corpus: name a new or empty folder for it.")
    _remove_stale_builds(root)
    building = root.with_name(f".{root.name}.building-{secrets.token_hex(4)}")
    if show_progress and not sys.stdout.isatty():  # where no bar shows
        print(f"making the built-in corpus in {root}: a minute or so, once", file=sys.stderr)
    try:
        building.mkdir(parents=True)
        build(building)
        (building / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        _publish(building, root, stamp)
    except OSError as error:
        raise InputError(
            f"the built-in corpus cannot be written to {root} ({error.strerror}): name another folder with "
            "data.root=, or for all that audiolab keeps with the environment variable AUDIOLAB_CACHE."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def make_all(jobs: Sequence[Job], make: Callable[[Job], None], *, show_progress: bool = True) -> None:
    """Do every job in threads, with a progress bar.

    Threads do: most of the time is spent in NumPy, SciPy, libsndfile and espeak-ng, which let others run.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(make, jobs)
        for _ in track(done, "built-in corpus", total=len(jobs), transient=True, disable=not show_progress):
            pass


def code_digest(code: Iterable[Any]) -> str:
    """Return a text that changes with every file that one of these functions or modules is in.

    >>> len(code_digest([code_digest]))
    16
    """
    digest = hashlib.sha256()
    for item in code:
        digest.update(Path(inspect.getfile(item)).read_bytes())
    return digest.hexdigest()[:16]


def _stamp_of(root: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _publish(building: Path, root: Path, stamp: dict[str, Any]) -> None:
    """Put the finished folder in place, unless another process has done so meanwhile with the same content."""
    try:
        building.rename(root)
    except OSError:
        if _stamp_of(root) == stamp:
            return
        outdated = building.with_name(f"{building.name}.outdated")
        root.rename(outdated)
        building.rename(root)
        shutil.rmtree(outdated)


def _remove_stale_builds(root: Path) -> None:
    """Folders that killed builds left behind."""
    for folder in root.parent.glob(f".{root.name}.building-*"):
        with suppress(FileNotFoundError):  # another process removes it at the same time
            if time.time() - folder.stat().st_mtime > _STALE_BUILD_S:
                shutil.rmtree(folder)
