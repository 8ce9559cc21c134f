"""Audio files read at one rate, in part or whole, and perhaps kept in memory."""

from __future__ import annotations

import numpy as np

from audiolab.audio.io import audio_info, read_audio


class AudioFiles:
    """Reads files by path as mono (mean of the channels) float32 at `sample_rate_hz`, whatever their own rate is.

    With `in_memory` whole files are kept after the first reading (4 bytes a sample and process), else only their
    lengths. Raises `AudioError` as `read_audio` does.

    >>> AudioFiles(16000, in_memory=True).read("nowhere.wav")
    Traceback (most recent call last):
    audiolab.audio.io.AudioError: nowhere.wav does not exist. Check the data root and the list that names it.
    """

    def __init__(self, sample_rate_hz: int, *, in_memory: bool) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._whole: dict[str, np.ndarray] | None = {} if in_memory else None
        self._lengths: dict[str, int] = {}

    def num_samples(self, path: str) -> int:
        """Return the length of a file at this rate, from its header."""
        if path not in self._lengths:
            if self._whole is not None:
                self._lengths[path] = len(self._read_whole(path))
            else:
                info = audio_info(path)
                # as the resampler rounds: halves upward
                self._lengths[path] = (2 * info.num_frames * self.sample_rate_hz + info.sample_rate) // (
                    2 * info.sample_rate
                )
        return self._lengths[path]

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return samples [start, stop) of a file, (time,); its end where `stop` is None. Not to be written to."""
        if self._whole is not None:
            return self._read_whole(path)[start:stop]
        if start == 0 and stop is None:
            return self._read_whole(path)
        stop = self.num_samples(path) if stop is None else min(stop, self.num_samples(path))
        rate = self.sample_rate_hz
        wave, _ = read_audio(path, sample_rate=rate, start_s=start / rate, duration_s=(stop - start) / rate)
        return wave if len(wave) == stop - start else np.pad(wave, (0, stop - start - len(wave)))

    def _read_whole(self, path: str) -> np.ndarray:
        if self._whole is None:
            return read_audio(path, sample_rate=self.sample_rate_hz)[0]
        if path not in self._whole:
            self._whole[path] = read_audio(path, sample_rate=self.sample_rate_hz)[0]
        return self._whole[path]
