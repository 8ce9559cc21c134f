"""Audio files read at one rate, in part or whole, and perhaps kept in memory."""

from __future__ import annotations

import numpy as np

from audiolab.audio.io import audio_info, read_audio


class AudioFiles:
    """Reads files by path as mono (mean of the channels) float32 at `sample_rate_hz`, whatever their own rate is.

    With `in_memory` whole files are kept after the first reading (4 bytes a sample and process), else what their
    headers say; the samples are the same. Raises `AudioError` as `read_audio` does.

    >>> AudioFiles(16000, in_memory=True).read("nowhere.wav")
    Traceback (most recent call last):
    audiolab.audio.io.AudioError: nowhere.wav does not exist. Check the data root and the list that names it.
    """

    def __init__(self, sample_rate_hz: int, *, in_memory: bool) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._kept: dict[str, np.ndarray] | None = {} if in_memory else None
        self._headers: dict[str, tuple[int, int]] = {}

    def num_samples(self, path: str) -> int:
        """Return the length of a file at this rate."""
        if self._kept is not None:
            return len(self._whole(path))
        own_hz, num_frames = self._header(path)
        return (2 * num_frames * self.sample_rate_hz + own_hz) // (2 * own_hz)  # halves upward, as the resampler rounds

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return samples [start, stop) of a file, (time,), not to be written to; to its end where `stop` is None."""
        if self._kept is not None or (start == 0 and stop is None):
            return self._whole(path)[start:stop]
        own_hz, num_frames = self._header(path)
        if own_hz != self.sample_rate_hz:  # a part by itself would be resampled to other samples at its ends
            return self._whole(path)[start:stop]
        stop = num_frames if stop is None else min(stop, num_frames)
        return read_audio(path, start_s=start / own_hz, duration_s=(stop - start) / own_hz)[0]

    def _header(self, path: str) -> tuple[int, int]:
        if path not in self._headers:
            info = audio_info(path)
            self._headers[path] = info.sample_rate, info.num_frames
        return self._headers[path]

    def _whole(self, path: str) -> np.ndarray:
        if self._kept is None:
            return read_audio(path, sample_rate=self.sample_rate_hz)[0]
        if path not in self._kept:
            self._kept[path] = read_audio(path, sample_rate=self.sample_rate_hz)[0]
        return self._kept[path]
