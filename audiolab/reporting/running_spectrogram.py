"""The spectrogram of a signal of any length, gathered block by block."""

from __future__ import annotations

import math

import numpy as np

WINDOW_S = 0.032
MAX_COLUMNS = 1200  # more are not to be seen


class RunningSpectrogram:
    """Mean power over time and frequency of `num_samples` that are added block by block, in at most 1,200 columns.

    >>> picture = RunningSpectrogram(16000, 8000)
    >>> for block in np.sin(0.8 * np.arange(16000)).reshape(4, 4000):
    ...     picture.add(block)
    >>> level_db = picture.level_db()
    >>> level_db.shape, round(float(np.argmax(level_db[:, 50])) / level_db.shape[0] * 4000, -2)
    ((129, 247), 1000.0)
    """

    def __init__(self, num_samples: int, sample_rate: int) -> None:
        self._size = 2 * max(4, round(WINDOW_S * sample_rate / 2))
        self._hop = self._size // 4
        self._all_frames = 1 + max(0, math.ceil((num_samples - self._size) / self._hop))
        self._frames_a_column = math.ceil(self._all_frames / MAX_COLUMNS)
        num_columns = math.ceil(self._all_frames / self._frames_a_column)
        self._window = np.hanning(self._size + 1)[:-1].astype(np.float32)
        self._sum_kf = np.zeros((self._size // 2 + 1, num_columns))
        self._num_f = np.zeros(num_columns)
        self._num_frames = 0
        self._kept = np.zeros(0, np.float32)

    def add(self, block_t: np.ndarray) -> None:
        """Take the next samples (time,)."""
        self._kept = np.concatenate((self._kept, block_t))
        self._take((len(self._kept) - self._size) // self._hop + 1)

    def level_db(self) -> np.ndarray:
        """Return the levels (frequency, column) in dB, a sine of full scale at 0; ends the signal."""
        missing = self._all_frames - self._num_frames
        length = self._size + (missing - 1) * self._hop
        self._kept = np.pad(self._kept, (0, max(0, length - len(self._kept))))
        self._take(missing)
        power_kf = self._sum_kf / np.maximum(self._num_f, 1)
        return 10 * np.log10(np.maximum(power_kf, 1e-20))

    def _take(self, num_frames: int) -> None:
        if num_frames < 1:
            return
        frames_ft = np.lib.stride_tricks.sliding_window_view(self._kept, self._size)[:: self._hop][:num_frames]
        spectrum_fk = np.fft.rfft(frames_ft * self._window) * (2 / self._window.sum())
        column_f = (self._num_frames + np.arange(num_frames)) // self._frames_a_column
        np.add.at(self._sum_kf.T, column_f, np.abs(spectrum_fk) ** 2)
        np.add.at(self._num_f, column_f, 1)
        self._num_frames += num_frames
        self._kept = self._kept[num_frames * self._hop :]
