"""What every audio file holds, decoded once: read by several threads, kept in a cache between calls."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from audiolab.audio.io import AudioError, next_frames, open_audio

log = logging.getLogger(__name__)

BLOCK_FRAMES = 2**19  # files are read in blocks, so that hours fit into memory
FULL_SCALE = 0.9999
_CHUNK = 64  # files a thread reads before it hands them over


class FileFacts(NamedTuple):
    """What decoding a file shows: `peak` of 1.0, the share of samples at full scale, and a name for the samples.

    Two files with the same samples have the same `digest`, whatever their containers.
    """

    sample_rate: int
    num_channels: int
    num_frames: int
    peak: float
    clipped: float
    digest: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate


def read_facts(path: str) -> FileFacts:
    """Decode a file, exactly as far as training would; raises `AudioError` as `read_audio` does."""
    digest = hashlib.blake2b(digest_size=16)
    peak, num_clipped = 0.0, 0
    with open_audio(path) as file:
        for start in range(0, file.frames, BLOCK_FRAMES):
            frames_tc = next_frames(file, path, start, min(start + BLOCK_FRAMES, file.frames))
            digest.update(frames_tc)
            magnitude = np.abs(frames_tc)
            peak = max(peak, float(magnitude.max()))
            num_clipped += int(np.count_nonzero(magnitude >= FULL_SCALE)) if peak >= FULL_SCALE else 0
        size = file.frames * file.channels
        name = f"{file.channels}:{digest.hexdigest()}"
        return FileFacts(file.samplerate, file.channels, file.frames, peak, num_clipped / size, name)


class FactsCache:
    """Facts by path, valid while size and modification time stay the same; a context manager.

    One SQLite file, which several processes may use at once. Where it cannot be used, a warning says so and nothing
    is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> FactsCache:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        return self

    def _open(self) -> sqlite3.Connection:
        for attempt in range(2):
            database = sqlite3.connect(self.path, timeout=10)
            try:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS facts (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
                    "sample_rate INTEGER, num_channels INTEGER, num_frames INTEGER, peak REAL, clipped REAL, "
                    "digest TEXT)"
                )
                return database
            except sqlite3.OperationalError:  # locked, read-only ...: nothing is wrong with the file
                database.close()
                raise
            except sqlite3.DatabaseError:  # damaged: it only saves time, so it is made anew
                database.close()
                if attempt:
                    raise
                self.path.unlink()
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.close()

    def load(self, paths: Sequence[str]) -> dict[str, tuple[int, int, FileFacts]]:
        """Return (size, mtime_ns, facts) of those paths that are known."""
        known: dict[str, tuple[int, int, FileFacts]] = {}
        for start in range(0, len(paths) if self._database is not None else 0, 500):
            part = paths[start : start + 500]
            query = f"SELECT * FROM facts WHERE path IN ({','.join('?' * len(part))})"
            try:
                for path, size, mtime_ns, *facts in self._database.execute(query, part):
                    known[path] = (size, mtime_ns, FileFacts(*facts))
            except sqlite3.Error as error:
                self._give_up(error)
                break
        return known

    def save(self, rows: Sequence[tuple[str, int, int, FileFacts]]) -> None:
        """Keep the facts of files of a size and time; what is saved stays, whatever is interrupted later."""
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?,?,?,?)",
                    [(path, size, mtime_ns, *facts) for path, size, mtime_ns, facts in rows],
                )
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("%s cannot be used (%s): the next check reads all files again", self.path, error)
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None


def read_files(
    paths: Sequence[str], cache: FactsCache, num_threads: int, on_read: Callable[[int], None] = lambda number: None
) -> tuple[dict[str, FileFacts], dict[str, str]]:
    """Return the facts of each file, and the reasons why others cannot be used.

    `on_read` is called with the number of files just done, those of the cache included. An interrupt loses nothing
    that was read before.
    """
    paths = list(dict.fromkeys(paths))
    known = cache.load(paths)
    facts: dict[str, FileFacts] = {}
    reasons: dict[str, str] = {}

    def examine(part: Sequence[str]) -> list[tuple[str, int, int, FileFacts | str, bool]]:
        return [_examine(path, known.get(path)) for path in part]

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(examine, part) for part in _parts(paths)]
        try:
            for future in as_completed(futures):
                found = future.result()
                cache.save([(p, size, t, what) for p, size, t, what, new in found if new and not isinstance(what, str)])
                for path, _, _, what, _ in found:
                    if isinstance(what, str):
                        reasons[path] = what
                    else:
                        facts[path] = what
                on_read(len(found))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return facts, reasons


def _examine(path: str, known: tuple[int, int, FileFacts] | None) -> tuple[str, int, int, FileFacts | str, bool]:
    """The size, time and facts of a file, or a reason, and whether it had to be read."""
    size = mtime_ns = 0
    try:
        with suppress(OSError):  # reading says why
            state = Path(path).stat()
            size, mtime_ns = state.st_size, state.st_mtime_ns
        if known is not None and known[:2] == (size, mtime_ns):
            return path, size, mtime_ns, known[2], False
        return path, size, mtime_ns, read_facts(path), True
    except AudioError as error:
        return path, size, mtime_ns, error.reason, True


def _parts(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), _CHUNK):
        yield paths[start : start + _CHUNK]
