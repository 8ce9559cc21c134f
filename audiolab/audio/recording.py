"""A recording that a model is applied to: a file or samples in memory, handed out block by block at any rate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soxr

from audiolab.audio.io import audio_info, next_frames, open_audio
from audiolab.errors import InputError

BLOCK_S = 20.0


class Recording:
    """Mono samples of a file (mean of its channels) or of an array (time,), which need not fit into memory at once.

    `on_read` is called with the share of the recording read so far, for a progress bar. Raises AudioError as
    `read_audio` does, on making it for what the header shows, in `blocks` for what decoding shows.

    >>> recording = Recording(np.zeros(44100 * 50, np.float32), 44100)
    >>> sum(len(block) for block in recording.blocks(16000)), recording.num_samples(16000)
    (800000, 800000)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | np.ndarray,
        sample_rate: int | None = None,
        on_read: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._source, self._on_read = source, on_read
        if isinstance(source, np.ndarray):
            if not sample_rate or sample_rate < 0:
                raise InputError(f"a sampling rate of {sample_rate} Hz cannot be used: give that of the waveform")
            if source.ndim != 1 or len(source) == 0:
                raise InputError(
                    f"a waveform of shape {source.shape} cannot be used: give one channel as (time,), "
                    "for stereo the mean of the channels"
                )
            if not np.isfinite(source).all():
                raise InputError(f"sample {int(np.argmin(np.isfinite(source)))} of the waveform is not a finite number")
            self.sample_rate, self.num_frames = sample_rate, len(source)
        else:
            info = audio_info(source)
            self.sample_rate, self.num_frames = info.sample_rate, info.num_frames

    @property
    def name(self) -> str:
        """The name of the file; empty for an array."""
        return "" if isinstance(self._source, np.ndarray) else Path(self._source).name

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate

    def num_samples(self, sample_rate: int) -> int:
        """Return the number of samples at a rate, which `blocks` adds up to."""
        return (2 * self.num_frames * sample_rate + self.sample_rate) // (2 * self.sample_rate)

    def blocks(self, sample_rate: int, block_s: float = BLOCK_S) -> Iterator[np.ndarray]:
        """Yield the samples, float32 (time,), resampled; together they are what `read_audio` gives (MP3: to 3e-7)."""
        resampler = None
        if sample_rate != self.sample_rate:
            resampler = soxr.ResampleStream(self.sample_rate, sample_rate, 1, dtype="float32", quality="HQ")
        done = 0
        for block in self._native_blocks(max(1, round(block_s * self.sample_rate))):
            done += len(block)
            if resampler is not None:
                block = resampler.resample_chunk(block, last=done == self.num_frames)
            self._on_read(done / self.num_frames)
            if len(block):
                yield block

    def read(self, sample_rate: int) -> np.ndarray:
        """Return the whole recording at once."""
        return np.concatenate(list(self.blocks(sample_rate)))

    def _native_blocks(self, size: int) -> Iterator[np.ndarray]:
        edges = [(start, min(start + size, self.num_frames)) for start in range(0, self.num_frames, size)]
        if isinstance(self._source, np.ndarray):
            for start, stop in edges:
                yield self._source[start:stop].astype(np.float32)
            return
        with open_audio(self._source) as file:
            for start, stop in edges:
                frames_tc = next_frames(file, self._source, start, stop)
                yield frames_tc.mean(axis=1) if frames_tc.shape[1] > 1 else frames_tc[:, 0]
