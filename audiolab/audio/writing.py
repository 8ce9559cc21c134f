"""WAV files of any length, written block by block."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import soundfile as sf

SampleFormat = Literal["float", "pcm16", "pcm24"]
SUBTYPES: dict[SampleFormat, str] = {"float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}
BYTES: dict[SampleFormat, int] = {"float": 4, "pcm16": 2, "pcm24": 3}
_FULL_WAV_BYTES = 2**32 - 2**16  # of a RIFF header's 32 bits; longer files get the 64 bits of RF64
_BLOCK_SAMPLES = 2**18
_BYTES_BEFORE_CHUNKS = 12  # RIFF, the size, WAVE


class WaveWriter:
    """One channel into a WAV file whatever its suffix, block by block; keeps its level and peak.

    Context manager. `num_samples`, the length to be expected, chooses RF64 for more than 4 GB. The same samples give
    the same bytes. Raises OSError with the file's name where it cannot be written, as on a full disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, WaveWriter(Path(folder) / "a.part", 8000, 200) as writer:
    ...     writer.write(np.full(150, 0.1)), writer.write(np.full(50, -0.1))
    ...     round(writer.rms_dbfs, 3), round(writer.peak, 3), writer.num_samples
    (None, None)
    (-20.0, 0.1, 200)
    """

    def __init__(self, path: Path, sample_rate: int, num_samples: int, sample_format: SampleFormat = "float") -> None:
        self.path, self.num_samples, self.peak, self._energy = path, 0, 0.0, 0.0
        big = num_samples * BYTES[sample_format] > _FULL_WAV_BYTES
        options = {"format": "RF64" if big else "WAV", "subtype": SUBTYPES[sample_format]}
        try:
            self._file = sf.SoundFile(path, "w", sample_rate, 1, **options)
        except (sf.LibsndfileError, OSError) as error:
            raise self._failed(error) from error

    def write(self, block_t: np.ndarray) -> None:
        """Append samples (time,)."""
        try:
            self._file.write(block_t)
        except (sf.LibsndfileError, OSError, AssertionError) as error:  # soundfile asserts that all was written
            raise self._failed(error) from error
        if len(block_t):
            self.num_samples += len(block_t)
            self.peak = max(self.peak, float(np.abs(block_t).max()))
            self._energy += float(np.square(block_t, dtype=np.float64).sum())

    @property
    def rms_dbfs(self) -> float:
        """RMS of all samples in dBFS; -inf for silence."""
        return 10 * math.log10(self._energy / self.num_samples) if self._energy else -math.inf

    def __enter__(self) -> WaveWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._file.subtype == "FLOAT":
            _clear_time_of_writing(self.path)

    def _failed(self, error: BaseException) -> OSError:
        reason = str(error).rstrip(".") or "the disk took less than all"
        return OSError(errno.EIO, reason, str(self.path))


def _clear_time_of_writing(path: Path) -> None:
    """Set the time in a WAV file's PEAK chunk to 0, so that the same samples give the same bytes whenever written.

    libsndfile writes the chunk for floats, but not in RF64; soundfile cannot switch it off. Chunks are an id, a size
    and the content; that of PEAK begins with a version and the time, four bytes each.
    """
    with path.open("r+b") as file:
        file.seek(_BYTES_BEFORE_CHUNKS)
        while len(header := file.read(8)) == 8 and header[:4] != b"data":
            if header[:4] == b"PEAK":
                file.seek(4, os.SEEK_CUR)
                file.write(bytes(4))
                return
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)


def rewrite(path: Path, gain: float, sample_format: SampleFormat) -> None:
    """Replace a WAV file by one with a gain and in another sample format, block by block."""
    temporary = path.with_name(f"{path.name}.{sample_format}")
    with sf.SoundFile(path) as file, WaveWriter(temporary, file.samplerate, file.frames, sample_format) as writer:
        for block_t in file.blocks(_BLOCK_SAMPLES, dtype="float32"):
            writer.write(gain * block_t)
    temporary.replace(path)
