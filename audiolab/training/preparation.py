"""Making a corpus ready once, in steps that may be stopped at any moment and gone on with (`audiolab.prepare`)."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from audiolab.errors import InputError, RunError
from audiolab.training.loading import num_cpus

STATE = "prepared.json"
_WORK = ".work"


class Made(NamedTuple):
    """What a job gives: plain JSON values, and the files it has written, relative to the folder."""

    result: Any
    files: list[str]


class Facts(NamedTuple):
    """What a preparation has come to: a row of numbers and words a set, and sentences."""

    sets: dict[str, dict[str, Any]]
    remarks: list[str]


class Preparation(ABC):
    """A corpus in `folder` that is made of another one, by plain `options` which tell all that it depends on.

    `name` tells it from other folders, `choose_folder` is the option that gives another one. Nothing is read or
    written before `needed_mb` and `make`; `num_workers` processes share the work and change nothing of the result.
    `options_of_a_run` are what a run has to be given so that it fits the data, such as {"model.num_speakers": 3}.
    """

    name: ClassVar[str]
    choose_folder: ClassVar[str]
    folder: Path
    options: dict[str, Any]
    num_workers: int
    options_of_a_run: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def needed_mb(self) -> float:
        """Return about how much disk it takes, in MiB; raises InputError where the source is not as it should be."""

    @abstractmethod
    def make(self, work: Work) -> Facts:
        """Make it, all that takes long as jobs of `work`; what is there already is made again to the same bytes."""

    def facts(self, but: Collection[str] = ()) -> Facts | None:
        """Return what a finished preparation with these options has come to, None where there is none yet.

        Raises InputError where the folder holds anything else, or was begun with other options, those in `but` aside.
        One whose options turned out not to fit counts as not begun.
        """
        state = self._state()
        if state is None or state["refused"]:
            return None
        before, now = ({k: v for k, v in found.items() if k not in but} for found in (state["options"], self.options))
        differences = _differences(before, now)
        if differences:
            raise InputError(
                f"{self.folder} was {'made' if state['finished'] else 'begun'} with {'; '.join(differences)}: give "
                f"another folder with {self.choose_folder}=, or delete this one to make it anew"
            )
        return Facts(**state["finished"]) if state["finished"] else None

    def run(self, *, show_progress: bool = True) -> Facts:
        """Make what is not there yet; returns what `facts` returns from then on.

        Stopped at any moment, it goes on when it is called again. Raises RunError where a process is killed or the
        disk fails.
        """
        found = self.facts()
        if found is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            self._write_state()
            found = self.make(Work(self.folder, self.num_workers, show_progress))
            self._write_state(found)
            shutil.rmtree(self.folder / _WORK, ignore_errors=True)
        except InputError:
            self._write_state(refused=True)
            raise
        except OSError as error:
            raise RunError(
                f"{error.filename or self.folder} cannot be written ({error.strerror}): make room or permit it; the "
                "same command then goes on"
            ) from error
        return found

    def _state(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            if self.folder.is_file() or (
                self.folder.is_dir() and any(one.name[0] != "." for one in self.folder.iterdir())
            ):
                raise InputError(
                    f"{self.folder} holds something else than {self.name}: give a new or empty folder with "
                    f"{self.choose_folder}="
                )
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if not {"name", "options", "refused", "finished"} <= state.keys():
                raise KeyError(STATE)
            if state["name"] != self.name:
                raise InputError(
                    f"{self.folder} holds {state['name']}, not {self.name}: give another folder with "
                    f"{self.choose_folder}="
                )
            return state
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged: delete {self.folder} and prepare it again") from error

    def _clear(self) -> None:
        """Remove half-written files, and what is known to be left by options that did not fit."""
        state = self._state()
        if state is not None and state["options"] != self.options:
            for note in (self.folder / _WORK).rglob("*.json"):
                for file in json.loads(note.read_text(encoding="utf-8"))["files"]:
                    (self.folder / file).unlink(missing_ok=True)
            shutil.rmtree(self.folder / _WORK, ignore_errors=True)
        for path in self.folder.rglob(".*.tmp*"):
            path.unlink()

    def _write_state(self, facts: Facts | None = None, *, refused: bool = False) -> None:
        finished = None if facts is None else facts._asdict()
        state = {"name": self.name, "options": self.options, "refused": refused, "finished": finished}
        write_whole(self.folder / STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")


class Work:
    """The jobs of a preparation: each is noted once all of its files are written, and not done again then."""

    def __init__(self, folder: Path, num_workers: int, show_progress: bool) -> None:
        self.folder, self.num_workers, self.show_progress = folder, min(num_workers, num_cpus()), show_progress

    def do(self, stage: str, jobs: Mapping[str, Any], make: Callable[[Any], Made]) -> list[Any]:
        """Return the result of `make` for each job, in their order; done by processes, in any order.

        The keys name the jobs from one call of the program to the next; one that has changed is done again. `make` and
        the jobs must be picklable, and a job's repr must tell all about it.
        """
        notes = {
            key: self.folder / _WORK / stage / f"{key}-{hashlib.sha256(repr(job).encode()).hexdigest()[:12]}.json"
            for key, job in jobs.items()
        }
        results = {key: found for key, path in notes.items() if (found := self._noted(path)) is not None}
        left = [key for key in jobs if key not in results]
        if self.show_progress and left and not sys.stderr.isatty():  # where no bar shows
            print(f"{stage}: {len(left)} of {len(jobs)} steps to do", file=sys.stderr)
        with self._results({key: jobs[key] for key in left}, make) as made, self._progress() as bar:
            shown = bar.add_task(stage, total=len(jobs), completed=len(results))
            for key, (result, files) in made:
                sizes = {file: (self.folder / file).stat().st_size for file in files}
                note = json.dumps({"result": result, "files": sizes}, ensure_ascii=False)
                write_whole(notes[key], note)
                results[key] = json.loads(note)["result"]
                bar.advance(shown)
        return [results[key] for key in jobs]

    def _noted(self, path: Path) -> Any:
        """The result of a finished job whose files are all there."""
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            whole = all((self.folder / file).stat().st_size == size for file, size in note["files"].items())
        except (OSError, ValueError):
            return None
        return note["result"] if whole else None

    @contextmanager
    def _results(self, jobs: Mapping[str, Any], make: Callable[[Any], Made]) -> Iterator[Iterator[tuple[str, Made]]]:
        if self.num_workers == 0 or len(jobs) < 2:
            yield ((key, make(job)) for key, job in jobs.items())
            return
        before = set(multiprocessing.active_children())
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None  # at once, without imports
        context = multiprocessing.get_context(method)
        pool = ProcessPoolExecutor(min(self.num_workers, len(jobs)), context, _begin, (os.getpid(),))
        try:
            yield _finished({pool.submit(make, job): key for key, job in jobs.items()})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise
        pool.shutdown()

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.show_progress and sys.stderr.isatty()
        return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


def write_whole(path: Path, text: str) -> None:
    """Write a text so that the file appears whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def chunks(items: Sequence[Any], num: int) -> list[Sequence[Any]]:
    """Divide into parts of `num` items, the last one smaller.

    >>> chunks("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [items[start : start + num] for start in range(0, len(items), num)]


def _finished(keys: Mapping[Future[Made], str]) -> Iterator[tuple[str, Made]]:
    try:
        for future in as_completed(keys):
            yield keys[future], future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a process of the preparation was killed, perhaps because memory ran out: the same command goes on, with "
            "a smaller data.num_workers= where memory is short"
        ) from error


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, die of its SIGTERM without a word, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    process = multiprocessing.parent_process()
    while process is not None and os.getppid() == parent:
        wait([process.sentinel], timeout=1.0)
    os._exit(1)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two sets of options, in words.

    >>> _differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b=1 (now 3)']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in dict.fromkeys([*before, *now])
            for found in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name}={before} (now {now})"]
