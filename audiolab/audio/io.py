"""The one place that opens audio files: every rate, channel count and container that soundfile reads."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import soundfile as sf

from audiolab.audio.resample import resample
from audiolab.errors import InputError

logger = logging.getLogger(__name__)

Channel = int | Literal["mix", "all"]
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's answer for a stream whose header has no frame count
# Sizes that writers to a pipe leave in a header which they cannot go back to fill in.
_STREAMED_SIZES = (range(0x7FFF0000, 0x80000001), range(0xFFFFFFFF, 0x100000000))
# libsndfile reads a WAV, W64, RF64, AIFF or AU file that was cut off without an error; only its log tells.
_SHORT_DATA = re.compile(r"^\s*(?:data|SSND|Data Size|Riff size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioError(InputError):
    """An audio file that cannot be read or written as asked; ``path`` and ``reason`` are kept apart for lists.

    It survives pickling, so a worker process can hand it to the main process as a value (see `BadAudioPolicy`).
    """

    def __init__(self, message: str, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason or message


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says."""

    sample_rate: int
    num_channels: int
    num_frames: int
    encoding: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header only; raises `AudioError` as `read_audio` does for what shows without decoding."""
    with open_audio(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, f"{file.format} {file.subtype}")


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    channel: Channel = "mix",
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> tuple[np.ndarray, int]:
    """Read a file, or a part of it without decoding the rest, as float32 with its sampling rate.

    The waveform is (time,) for ``channel="mix"`` (mean of the channels) or a channel number from 0, and
    (channel, time) for ``channel="all"``. Full scale of integer encodings is 1.0; float files may exceed it.
    With ``sample_rate`` the part read is resampled (`audiolab.audio.resample.resample`). The start is rounded to a
    sample of the file; the length is round(duration_s x rate) samples, or less where the file ends before.

    Raises `AudioError` where the file is missing, a folder, not permitted, empty, not audio, damaged or shorter than
    its header says, has no such channel, nothing after ``start_s``, or samples that are NaN or infinite. What cannot
    be noticed: a cut Ogg file (the format has no frame count), wrong guesses at the length of an MP3 without a Xing
    header, and damage outside the part read.
    """
    if start_s < 0 or (duration_s is not None and duration_s <= 0):
        raise InputError(f"start_s={start_s}, duration_s={duration_s}: give a start from 0 and a positive duration.")
    with open_audio(path) as file:
        rate = file.samplerate
        _check_channel(path, channel, file.channels)
        start = round(start_s * rate)
        if start >= file.frames:
            reason = f"has {file.frames / rate:.3f} s, and {start_s:.3f} s was asked for as the start"
            _fail(path, reason, "Check the segment times against this file.")
        # One frame more than needed where the end falls between two: the exact length is cut after resampling.
        stop = file.frames if duration_s is None else min(file.frames, start + math.ceil(duration_s * rate - 1e-6))
        frames_tc = _read_frames(file, path, start, stop)
    if channel == "all":
        waveform = np.ascontiguousarray(frames_tc.T)
    elif channel == "mix":
        waveform = frames_tc.mean(axis=1) if frames_tc.shape[1] > 1 else frames_tc[:, 0]
    else:
        waveform = np.ascontiguousarray(frames_tc[:, channel])
    if sample_rate is not None:
        waveform, rate = resample(waveform, rate, sample_rate), sample_rate
    if duration_s is not None:
        waveform = waveform[..., : round(duration_s * rate)]
    return waveform, rate


def write_audio(
    path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int, subtype: str | None = None
) -> None:
    """Write (time,) or (channel, time) so that the file appears complete or not at all; the suffix names the format.

    ``subtype`` is soundfile's name of the encoding ("PCM_16", "PCM_24", "FLOAT" ...), by default that of the format.
    The folder is made where needed. Raises `AudioError` for samples that are not finite, for samples beyond
    full scale in an encoding that would clip them, and for a suffix or encoding that cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_audio(f"{folder}/call.wav", np.zeros((2, 8000)), 8000)
    ...     waveform, sample_rate = read_audio(f"{folder}/call.wav", channel=1, duration_s=0.5)
    >>> waveform.shape, sample_rate
    ((4000,), 8000)
    """
    path, waveform = Path(path), np.asarray(waveform)
    if waveform.ndim not in (1, 2) or waveform.size == 0:
        _fail(path, f"a waveform of shape {waveform.shape} was to be written", "Give (time,) or (channel, time).")
    if not np.isfinite(waveform).all():
        _fail(path, "the waveform to write has NaN or infinite samples", "Find the step that made them.")
    file_format = path.suffix[1:].upper()
    if file_format not in sf.available_formats():
        _fail(path, f"{path.suffix or 'no suffix'!r} names no audio format to write", "Use .wav or .flac.")
    encoding = subtype or sf.default_subtype(file_format)
    peak = float(np.abs(waveform).max())
    if peak > 1.0 and encoding not in ("FLOAT", "DOUBLE"):
        remedy = "Scale the waveform (audiolab.audio.level.normalize_peak) or write .wav with subtype='FLOAT'."
        _fail(path, f"the peak {peak:.4g} is beyond full scale and {encoding} would clip it", remedy)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(temporary, waveform.T, sample_rate, subtype=encoding, format=file_format)
        temporary.replace(path)
    except (OSError, ValueError, TypeError, sf.LibsndfileError) as error:
        _fail(path, f"cannot be written ({error})", "Check the folder's permission and space, and the encoding.")
    finally:
        with suppress(OSError):
            temporary.unlink()


class BadAudioPolicy:
    """What a data set does about files that `read_audio` refuses: ``raise`` at the first, or ``skip`` up to a cap.

    ``max_bad_audio`` is a number of files, or, below 1.0, a share of ``num_files``. Each file counts once however often
    it is met; above the cap, `handle` raises. ``skipped`` maps each file to its reason.

    Worker processes of a DataLoader pass the errors on as items, so that the main process counts them
    (`audiolab.training.data`).

    With several processes of training each has its own policy; `add` counts what the others have met.

    >>> policy = BadAudioPolicy("skip", max_bad_audio=1)
    >>> policy.handle(AudioError("a.wav is empty.", "a.wav", "is empty"))
    >>> policy.handle(AudioError("a.wav is empty.", "a.wav", "is empty"))
    >>> policy.skipped
    {'a.wav': 'is empty'}
    """

    def __init__(
        self, mode: Literal["raise", "skip"] = "raise", max_bad_audio: float = 0.01, num_files: int | None = None
    ) -> None:
        if mode not in ("raise", "skip"):
            raise InputError(f"on_bad_audio is {mode!r}: it must be 'raise' or 'skip'.")
        is_share = 0 < max_bad_audio < 1
        if max_bad_audio < 0 or not (is_share or float(max_bad_audio).is_integer()):
            raise InputError(f"max_bad_audio is {max_bad_audio}: give a number of files, or a share between 0 and 1.")
        if mode == "skip" and is_share and num_files is None:
            raise InputError(f"max_bad_audio={max_bad_audio} is a share, so num_files must say of how many files.")
        self.mode = mode
        self.max_bad_audio = max_bad_audio
        self.num_files = num_files
        self.skipped: dict[str, str] = {}

    @property
    def cap(self) -> int:
        """The number of files that may be skipped."""
        share = self.num_files if 0 < self.max_bad_audio < 1 else 1
        return math.floor(self.max_bad_audio * (share or 0))

    def handle(self, error: AudioError) -> None:
        """Raise the error, or count its file as skipped and raise `InputError` once there are too many."""
        if self.mode == "raise":
            raise error
        self._count({error.path: error.reason}, str(error))

    def add(self, skipped: Mapping[str, str]) -> None:
        """Count several files, each with its reason; all of them are before it raises as `handle` does."""
        for path, reason in list(skipped.items())[-1:]:
            self._count(skipped, f"{path} {reason}.")

    def _count(self, found: Mapping[str, str], last: str) -> None:
        new = {path: reason for path, reason in found.items() if path not in self.skipped}
        self.skipped |= new
        for path, reason in new.items():
            logger.warning("skipped %s: %s", path, reason)
        if new and len(self.skipped) > self.cap:
            of = "" if self.num_files is None else f" of {self.num_files}"
            raise InputError(
                f"{len(self.skipped)}{of} audio files cannot be used and data.max_bad_audio={self.max_bad_audio:g} "
                f"allows {self.cap}; the last one: {last} Repair or remove them, or allow more: "
                f"data.max_bad_audio={len(self.skipped)} would do for these."
            )

    def write_list(self, path: str | os.PathLike[str]) -> None:
        """Write the skipped files as CSV with the columns ``file`` and ``reason``, in the order they were met."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "reason"), *self.skipped.items()])
        temporary.replace(path)


@contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[sf.SoundFile]:
    """Open for reading and refuse what the header already shows to be unusable."""
    try:
        file = sf.SoundFile(os.fsencode(path) if os.name == "posix" else path)  # bytes: names need not be UTF-8
    except sf.LibsndfileError as error:
        _explain(path, error)
    with file:
        if file.frames == 0:
            _fail(path, "has a header and no samples", "Write it again from its source, or leave it out.")
        if file.frames == _UNKNOWN_FRAMES:
            reason = "has no length in its header (it was written to a pipe), so soundfile cannot find its end"
            _fail(path, reason, "Encode it again to a file, for example: ffmpeg -i old.flac new.flac.")
        for declared, present in _SHORT_DATA.findall(file.extra_info):
            missing = int(declared) - int(present)
            # one byte may be the padding, which many writers leave out
            if missing > 1 and not any(int(declared) in sizes for sizes in _STREAMED_SIZES):
                _damaged(path, f"is cut off: its header promises {declared} bytes and {present} are there")
        yield file


def _read_frames(file: sf.SoundFile, path: str | os.PathLike[str], start: int, stop: int) -> np.ndarray:
    """Frames [start, stop) of a file just opened as (time, channel); all of them, or an error."""
    if start and not file.seekable():  # GSM 06.10 in WAV, for one
        next_frames(file, path, 0, start)
    elif start:
        try:
            file.seek(start)
        except sf.LibsndfileError as error:
            _damaged(path, f"is damaged or cut off: {error.error_string.strip('. ')} at frame {start}")
    return next_frames(file, path, start, stop)


def next_frames(file: sf.SoundFile, path: str | os.PathLike[str], start: int, stop: int) -> np.ndarray:
    """Read on from `start`, where the file is, to `stop`: (time, channel), all finite.

    Raises `AudioError` where it is damaged, ends before, or has samples that are NaN or infinite.
    """
    try:
        frames_tc = file.read(stop - start, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        _damaged(path, f"is damaged or cut off: {error.error_string.strip('. ')} between frames {start} and {stop}")
    if len(frames_tc) < stop - start:
        end = start + len(frames_tc)
        _damaged(path, f"is cut off: its header promises {file.frames} frames and decoding stops after {end}")
    if not np.isfinite(frames_tc).all():
        bad = int(np.flatnonzero(~np.isfinite(frames_tc).all(axis=1))[0])
        at_s = (start + bad) / file.samplerate
        reason = f"sample {start + bad} ({at_s:.3f} s) is {frames_tc[bad]}, not a finite number"
        _fail(path, reason, "Write the file again from its source, or leave it out.")
    return frames_tc


def _check_channel(path: str | os.PathLike[str], channel: Channel, num_channels: int) -> None:
    if channel in ("mix", "all"):
        return
    if isinstance(channel, bool) or not isinstance(channel, Integral):
        raise InputError(f"channel is {channel!r}: it must be 'mix', 'all' or a number from 0.")
    if not 0 <= channel < num_channels:
        reason = f"has {num_channels} channel{'s' * (num_channels > 1)}, and channel {channel} was asked for"
        _fail(path, reason, f"Give a number from 0 to {num_channels - 1}, or 'mix'.")


def _explain(path: str | os.PathLike[str], error: sf.LibsndfileError) -> NoReturn:
    """Say why a file cannot be opened: the system's reason is clearer than libsndfile's."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        folder = Path(path).absolute().parent
        reason = "does not exist" if folder.is_dir() else f"does not exist, nor does its folder {folder}"
        _fail(path, reason, "Check the data root and the list that names it.")
    except IsADirectoryError:
        _fail(path, "is a folder", "Give an audio file.")
    except PermissionError:
        _fail(path, "may not be read by this user", "Change its permissions or copy it.")
    except OSError as system_error:
        _fail(path, f"cannot be opened ({system_error.strerror})", "Check the disk and the path.")
    if size == 0:
        _fail(path, "is empty (0 bytes)", "Copy it again from its source.")
    reason = f"is not audio that libsndfile {sf.__libsndfile_version__} reads ({error.error_string.strip('. ')})"
    _fail(path, reason, "Convert it to FLAC or WAV, or leave it out.")


def _damaged(path: str | os.PathLike[str], reason: str) -> NoReturn:
    _fail(path, reason, "Copy it again from its source, or leave it out (on_bad_audio: skip).")


def _fail(path: str | os.PathLike[str], reason: str, remedy: str) -> NoReturn:
    raise AudioError(f"{os.fspath(path)} {reason}. {remedy}", os.fspath(path), reason) from None
