"""Overlapping chunks, each separated alone with its speakers in any order and at any gain, become one recording.

Shapes: c speaker, s slot (output of the model in one chunk), t time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from audiolab.tasks.separation.level_gains import LevelGains
from audiolab.tasks.separation.speaker_order import OrderDecoder
from audiolab.tasks.separation.voices import VoiceMemory

DELAY_CHUNKS = 8  # a decision waits for so many further chunks at most
_PAUSE = 1e-4  # an overlap 40 dB below the loudest chunk tells little
_VOICE_WEIGHT = 0.25  # of voices against what overlaps have in common, which tells more wherever anyone talks


@dataclass
class _Chunk:
    start: int
    estimate_st: np.ndarray
    mixture_t: np.ndarray
    gain_s: np.ndarray
    spectra: tuple[np.ndarray, np.ndarray]

    @property
    def end(self) -> int:
        return self.start + len(self.mixture_t)


class Stitcher:
    """Takes chunks in the order of their starts, gives the samples of each speaker that no further chunk can change.

    Orders: neighbours are held together by the inner products of their outputs on the samples they share, a normalised
    correlation in which a louder speaker counts more, so that one who is silent there does not decide by his noise, and
    a pause decides nothing. Then, weakly, the voice (`VoiceMemory`) tells. The best chain is chosen by `OrderDecoder`.
    Its limit: where everybody pauses for longer than an overlap, similar voices may be exchanged.

    Gains: with `match_level` each chunk is scaled to its mixture by `LevelGains`, as a model trained with SI-SDR has
    any gain and another in every chunk; else outputs keep the model's level (the gains then only weigh the score).
    Samples are added under Hann windows and divided by the sum of the windows.

    >>> wave = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    >>> stitcher = Stitcher(2, 8000)
    >>> chunks = [(0, wave[:, :600]), (400, 3 * wave[::-1, 400:])]  # the other order, another gain
    >>> parts = [stitcher.push(start, chunk, wave.sum(0)[start:][:600]) for start, chunk in chunks]
    >>> bool(np.abs(np.concatenate([*parts, stitcher.finish()], 1) - wave).max() < 1e-5)
    True
    """

    def __init__(
        self, num_speakers: int, sample_rate_hz: int, *, delay_chunks: int = DELAY_CHUNKS, match_level: bool = True
    ) -> None:
        self.orders: list[list[int]] = []
        """Of each decided chunk: the slot of each speaker."""
        self.match_level = match_level
        self._decoder = OrderDecoder(num_speakers, delay_chunks)
        self._voices = VoiceMemory(num_speakers, sample_rate_hz)
        self._last: _Chunk | None = None
        self._waiting: deque[_Chunk] = deque()
        self._loudest = 0.0
        self._begun = 0  # sample at which the sums begin; all before are given out
        self._sum_ct = np.zeros((num_speakers, 0), np.float32)
        self._weight_t = np.zeros(0, np.float32)

    def push(self, start: int, estimate_st: np.ndarray, mixture_t: np.ndarray) -> np.ndarray:
        """Add the chunk that begins at sample `start`; returns the samples finished by it (speaker, time), maybe none.

        Chunks are in order, leave no gap, and no later one ends before an earlier one.
        """
        self._loudest = max(self._loudest, float(np.square(mixture_t, dtype=np.float64).mean()))
        gain_s = LevelGains().add(estimate_st, mixture_t).gains()
        spectra = self._voices.spectra(estimate_st * gain_s[:, None], self._loudest)
        chunk = _Chunk(start, estimate_st, mixture_t, gain_s, spectra)
        if self._last is None:
            orders = self._decoder.push()
        else:
            assert self._last.start < start <= self._last.end <= chunk.end
            fit_cs = _VOICE_WEIGHT * self._voices.fit(spectra)
            orders = self._decoder.push(self._in_common(self._last, chunk), fit_cs)
        self._waiting.append(chunk)
        self._last = chunk
        return self._add(orders, until=None)

    def finish(self) -> np.ndarray:
        """Return the samples that were left, (speaker, time)."""
        if self._last is None:
            return self._sum_ct
        return self._add(self._decoder.finish(), until=self._last.end)

    def _in_common(self, before: _Chunk, after: _Chunk) -> np.ndarray:
        """Inner products (slot before, slot after) on the shared samples; the best order's sum is at most 1."""
        num_shared = before.end - after.start
        if num_shared == 0:
            return np.zeros((len(before.gain_s), len(after.gain_s)))
        before_st = before.estimate_st[:, -num_shared:] * before.gain_s[:, None]
        after_st = after.estimate_st[:, :num_shared] * after.gain_s[:, None]
        norm = np.linalg.norm(before_st) * np.linalg.norm(after_st)
        power = float(np.square(after.mixture_t[:num_shared], dtype=np.float64).mean())
        if norm == 0 or power == 0:
            return np.zeros((len(before_st), len(after_st)))
        return (before_st @ after_st.T).astype(np.float64) / norm * power / (power + _PAUSE * self._loudest)

    def _add(self, orders: list[np.ndarray], until: int | None) -> np.ndarray:
        """Add decided chunks to the sums; returns what lies before `until`, or before the next chunk can begin."""
        for order_c in orders:
            chunk = self._waiting.popleft()
            self.orders.append(order_c.tolist())
            self._voices.add(chunk.spectra, order_c)
            missing = chunk.end - self._begun - len(self._weight_t)
            self._sum_ct = np.pad(self._sum_ct, ((0, 0), (0, missing)))
            self._weight_t = np.pad(self._weight_t, (0, missing))
            weight_t = hann(len(chunk.mixture_t))
            gain_s = chunk.gain_s if self.match_level else np.ones_like(chunk.gain_s)
            here = slice(chunk.start - self._begun, chunk.end - self._begun)
            self._sum_ct[:, here] += (chunk.estimate_st * gain_s[:, None])[order_c] * weight_t
            self._weight_t[here] += weight_t
        if until is None:  # the next chunk begins after the last one did
            until = self._waiting[0].start if self._waiting else self._last.start + 1
        num_done = until - self._begun
        done_ct = self._sum_ct[:, :num_done] / self._weight_t[:num_done]
        self._sum_ct, self._weight_t = self._sum_ct[:, num_done:].copy(), self._weight_t[num_done:].copy()
        self._begun = until
        return done_ct


def hann(num_samples: int) -> np.ndarray:
    """Return the periodic Hann window, float32, with just enough weight at sample 0 that it can be divided by.

    >>> hann(4).round(3).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    window_t = np.sin(np.pi * np.arange(num_samples) / num_samples) ** 2
    return np.maximum(window_t, 1e-12).astype(np.float32)
