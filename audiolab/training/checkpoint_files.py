"""The files in a run's `checkpoints/`: written whole or not at all, checked before use, set aside when damaged.

Nothing here needs torch: a checkpoint of `torch.save` is a zip archive, and zip archives hold a CRC-32 of every tensor
(which torch itself does not compare when it reads).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from audiolab.errors import RunError

log = logging.getLogger(__name__)

BEST, LAST = "best.ckpt", "last.ckpt"
_STEP = re.compile(r"step(\d+)\.ckpt")


def step_file(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after a number of optimiser steps.

    >>> step_file(Path("checkpoints"), 6).as_posix()
    'checkpoints/step0000006.ckpt'
    """
    return folder / f"step{step:07d}.ckpt"


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoints after so many steps, the newest first."""
    numbered = {path: _STEP.fullmatch(path.name) for path in folder.glob("step*.ckpt")}
    return sorted((path for path, found in numbered.items() if found), key=lambda p: -int(numbered[p][1]))


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file, or None where its whole content has the checksums it was written with.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.ckpt"
    >>> with zipfile.ZipFile(path, "w") as archive:
    ...     archive.writestr("a/data/0", bytes(1000))
    >>> damage(path)
    >>> _ = path.write_bytes(path.read_bytes().replace(bytes(1000), bytes(999) + b"1"))
    >>> damage(path)
    'the checksum of a/data/0 does not match'
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"it is cut short or no checkpoint: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return f"the checksum of {wrong} does not match" if wrong else None


def newest_intact(folder: Path, refused: Callable[[Path], str | None] = lambda path: None) -> Path | None:
    """Return the newest checkpoint to go on from; damaged ones are set aside and named in a warning.

    So is one that is whole but that `refused` has something against, unless nothing else is left: it is returned then,
    to be refused by who reads it. Of those set aside one stays, the newest, as `<name>.damaged`. None means that
    training starts from the beginning.
    """
    steps, last = step_files(folder), folder / LAST
    candidates = steps
    if last.is_file() and not (steps and steps[0].samefile(last)):
        candidates = [*steps[:1], last, *steps[1:]]  # a copy of the newest, or of the one before: killed in between
    found: list[tuple[Path, str]] = []
    chosen = unsafe = None
    for path in candidates:
        why = damage(path)
        if why is None and (against := refused(path)) is not None:
            found.append((path, f"is refused ({against})"))
            unsafe = unsafe or path
        elif why is None:
            chosen = path
            break
        else:
            found.append((path, f"is damaged ({why})"))
    if chosen is None and unsafe is not None:
        return unsafe
    if found:
        if last.is_file() and any(path.samefile(last) for path, _ in found if path != last):
            last.unlink()
        for path, _ in reversed(found):
            set_aside(path)
        names = "; ".join(f"{path.name} {why}" for path, why in found)
        rest = f"going on from {chosen.name}, the one before" if chosen else "training starts again from the beginning"
        log.warning("%s: %s: %s, to the same numbers", folder, names, rest)
    return chosen


def set_aside(path: Path) -> None:
    """Rename a damaged file to `<name>.damaged`, instead of any other that was set aside before."""
    for before in path.parent.glob("*.ckpt.damaged"):
        before.unlink(missing_ok=True)
    path.replace(path.with_name(f"{path.name}.damaged"))


def remove_damaged(folder: Path) -> None:
    """Delete what was set aside: of a finished run it is of no more use."""
    for path in folder.glob("*.ckpt.damaged"):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed while they wrote have left."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; what stands at `path` is replaced only when all of it has reached the disk.

    Raises RunError where the disk is full, read-only or beyond a quota: then `path` stays as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        size_mb = _size_mb(temporary)
        _remove(temporary)
        cause = _os_error(error)
        if cause is None:
            raise
        raise RunError(
            f"{path} cannot be written ({_in_words(cause, path.parent, size_mb)}): {_before(path.parent)}: "
            f"python -m audiolab.resume {path.parent.parent}"
        ) from error


def copy(source: Path, target: Path) -> None:
    """Put a copy of a file in the place of another, whole or not at all."""
    with source.open("rb") as file, written_whole(target) as copied:
        shutil.copyfileobj(file, copied, 2**20)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in the place of what has it now; a copy where the file system has no hard links."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        copy(source, target)
        return
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # stays where both were the same file already
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind an error: torch raises a RuntimeError on top of it."""
    if not isinstance(error, OSError | RuntimeError):
        return None
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _in_words(error: OSError, folder: Path, size_mb: float) -> str:
    """Return the reason that a file is not written, with the remedy for it."""
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        return f"{reason}: files may not become larger than {size_mb:.1f} MB here; lift that limit, see ulimit -f"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        quota = ", of which a quota gives you less" if error.errno == errno.EDQUOT else ""
        return f"{reason}: {size_mb:.1f} MB of it were written, {_free_mb(folder):.0f} MB are free{quota}; make room"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{reason}: make {folder} writable"
    return f"{reason}, after {size_mb:.1f} MB of it: see to the disk"


def _before(folder: Path) -> str:
    """Return what there is to go on from."""
    if (folder / LAST).is_file() or step_files(folder):
        return "the checkpoint before is intact, to go on from it"
    return "there is no checkpoint yet, to start from the beginning"


def _free_mb(folder: Path) -> float:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free / 2**20


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 2**20 if path.is_file() else 0.0


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        log.warning("%s could not be removed: delete it by hand", path)
