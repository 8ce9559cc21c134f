"""One command at a time in a run folder: a lock that vanishes with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from audiolab.errors import InputError

LOCK = ".lock"
log = logging.getLogger(__name__)
_held: dict[int, Path] = {}
"""Descriptors of this process and the folders that they lock."""


@contextmanager
def locked(folder: Path, elsewhere: str = "another run needs another name=") -> Iterator[None]:
    """Hold the lock of an existing folder; one that this process holds already is not taken twice.

    `elsewhere` says how to use another folder meanwhile.

    Raises InputError that names the process which holds it, or says that the folder is read-only. Where the file
    system has no locks, that is a warning.
    """
    folder = folder.resolve()
    if folder in _held.values():
        yield
        return
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): make it writable, or choose another folder with outputs="
        ) from error
    try:
        _take(descriptor, folder, elsewhere)
        _held[descriptor] = folder
        yield
    finally:
        _held.pop(descriptor, None)
        os.close(descriptor)


def _take(descriptor: int, folder: Path, elsewhere: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(f"{folder} is in use by {_holder(descriptor)}: wait for it or end it; {elsewhere}") from None
    except OSError as error:  # some network file systems
        log.warning(
            "%s cannot be locked (%s): nothing keeps a second command from writing to it at the same time",
            folder,
            error.strerror,
        )
        return
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(facts).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and is about to write who it is
        return "another process"


def _leave_to_parent() -> None:
    """Close what a forked child (a data worker) got from us, which would keep the lock after our death."""
    for descriptor in list(_held):
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
