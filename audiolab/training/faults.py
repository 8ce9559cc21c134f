"""What happens to a run from outside, in a sentence: killed data workers, files that cannot be written or read."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiolab.audio.io import AudioError
from audiolab.errors import InputError, RunError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited unexpectedly)"
)
_IN_WORKER = re.compile(r"^Caught (\w+) in DataLoader worker process", re.MULTILINE)


@contextmanager
def explained(folder: Path, go_on: str) -> Iterator[None]:
    """Raise what happens inside as a RunError or InputError with `go_on`, a sentence, where its cause is known.

    `folder` is what is written to. Errors that are neither of the data workers nor of files keep their kind and trace.
    """
    try:
        yield
    except AudioError as error:
        raise InputError(f"{error} {go_on}") from error
    except InputError as error:
        if not _IN_WORKER.search(str(error)):
            raise
        raise InputError(_last_words(error)) from error
    except RunError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:  # from a write, which does not know its file's name
            full = f"The disk of {folder} takes no more ({error.strerror}): free some space."
            raise RunError(f"{full} {go_on}") from error
        if error.errno is None or error.filename is None or not _is_inside(error.filename, folder):
            raise
        raise RunError(f"{_unwritable(error)} {go_on}") from error
    except RuntimeError as error:
        reason = _of_workers(error)
        if reason is None:
            raise
        raise RunError(f"{reason} {go_on}") from error


def _of_workers(error: BaseException | None) -> str | None:
    """Return what ended a data worker, if anything did."""
    while error is not None:
        text = str(error)
        if killed := _KILLED.search(text):
            how = f"was killed by {killed[2]}" if killed[2] else "ended unexpectedly"
            return (
                f"A data worker (process {killed[1]}) {how}: most likely the machine's memory did not suffice. "
                "Each worker holds memory of its own, with data.in_memory=true a copy of the audio too: give fewer "
                "data.num_workers (the numbers stay the same), or turn data.in_memory off."
            )
        if "bus error" in text or ("shared memory" in text and "No space left" in text):
            return (
                "A data worker found no room in /dev/shm, where batches are handed over: enlarge it (in a container "
                "--shm-size or --ipc=host), or give data.num_workers=0 (the numbers stay the same)."
            )
        if "Too many open files" in text or "received 0 items of ancdata" in text:
            return (
                "The data workers ran out of open files: raise the limit (ulimit -n 65536), or give fewer "
                "data.num_workers (the numbers stay the same)."
            )
        error = error.__cause__ or error.__context__
    return None


def _unwritable(error: OSError) -> str:
    remedy = "free some space" if error.errno in _NO_ROOM else "see to its folder and permissions"
    return f"{error.filename2 or error.filename} cannot be written ({error.strerror}): {remedy}."


def _is_inside(path: str | bytes | int, folder: Path) -> bool:
    return not isinstance(path, int) and Path(str(path)).absolute().is_relative_to(folder.absolute())


def _last_words(error: InputError) -> str:
    """Return the sentence at the end of the trace that a data worker sends."""
    return re.split(r"^[\w.]*Error: ", str(error), flags=re.MULTILINE)[-1].strip()
