"""One recording of any length to one score: windows, their mean, and the most spoof-like of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolab.audio.crop import fixed_length
from audiolab.audio.level import SILENCE_DBFS, rms_dbfs
from audiolab.audio.recording import Recording
from audiolab.audio.windows import sliding_windows
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.trials import SAMPLE_RATE_HZ

WINDOW_SAMPLES = 64_600  # 4.04 s, the field's window: of runs that judge whole utterances, where none is given
WHOLE_WINDOWS = 4  # such a run judges a recording of up to so many windows (16 s) as one utterance
SHORTEST_S = 0.1  # less than a syllable
QUIET_DB = 40.0  # a window so far below the loudest one has no speech in it, only what lies between
FRAME_SAMPLES = 160  # 10 ms: resolution of the picture's waveform


@dataclass(frozen=True)
class Windowing:
    """How a recording is cut: `window_s` and `hop_s` in seconds (None: the run's window, half of it); a batch's size.

    The run's window is its `eval_samples`. A run that judges whole utterances judges a recording of up to 16 s whole
    and a longer one in windows of 4.04 s, unless `window_s` is given.
    """

    window_s: float | None = None
    hop_s: float | None = None
    batch_size: int = 16

    def samples(self, num_samples: int, eval_samples: int | None, min_samples: int) -> tuple[int, int, bool]:
        """Return window and hop for a recording of `num_samples`, and whether a shorter recording is repeated.

        Raises InputError for lengths that do not fit the model or each other.
        """
        for name, given_s in (("--window-s", self.window_s), ("--hop-s", self.hop_s)):
            if given_s is not None and not 0 < given_s < math.inf:
                raise InputError(f"{name} {given_s:g}: give a positive number of seconds")
        if self.window_s is not None:
            window = round(self.window_s * SAMPLE_RATE_HZ)
        elif eval_samples is not None:
            window = eval_samples
        else:
            window = num_samples if num_samples <= WHOLE_WINDOWS * WINDOW_SAMPLES else WINDOW_SAMPLES
            window = max(window, min_samples)
        hop = max(1, window // 2) if self.hop_s is None else round(self.hop_s * SAMPLE_RATE_HZ)
        if window < min_samples:
            raise InputError(
                f"--window-s {self.window_s}: the model needs at least {min_samples / SAMPLE_RATE_HZ:.3f} s"
            )
        if hop < 1 or (hop > window and window < num_samples):
            raise InputError(
                f"--hop-s {self.hop_s} does not fit windows of {window / SAMPLE_RATE_HZ:.2f} s: "
                "give a positive hop of at most a window, or parts of the recording are never judged"
            )
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: give 1 or more")
        return window, min(hop, window), eval_samples is not None


@dataclass
class Judged:
    """What the windows of a recording gave: `start_s`, `end_s`, `level_dbfs`, `score` (NaN: silent), one a window."""

    start_s: np.ndarray
    end_s: np.ndarray
    level_dbfs: np.ndarray
    score: np.ndarray
    duration_s: float
    envelope: np.ndarray = field(repr=False)  # largest magnitude of each 10 ms

    @property
    def is_silent(self) -> np.ndarray:
        """Windows that were left out."""
        return np.isnan(self.score)

    def values(self) -> dict[str, Any]:
        """Return the score of the recording, and of its most spoof-like window.

        The score is the mean over windows: of log-likelihood ratios the mean keeps the scale of one window, so that
        the run's threshold and calibration hold for it, where the sum would grow with the length.
        """
        heard = ~self.is_silent
        lowest = int(np.nanargmin(self.score))
        return {
            "score": float(np.mean(self.score[heard], dtype=np.float64)),
            "duration_s": round(self.duration_s, 3),
            "judged_s": round(_covered(self.start_s[heard], self.end_s[heard]), 3),
            "num_windows": len(self.score),
            "num_silent": int(self.is_silent.sum()),
            "lowest_score": float(self.score[lowest]),
            "lowest_start_s": round(float(self.start_s[lowest]), 3),
            "lowest_end_s": round(float(self.end_s[lowest]), 3),
        }

    def windows(self) -> list[dict[str, float | None]]:
        """Return the curve as plain rows; the score of a silent window is None."""
        return [
            {"start_s": start, "end_s": end, "level_dbfs": level, "score": None if math.isnan(score) else score}
            for start, end, level, score in zip(
                *(column.tolist() for column in (self.start_s, self.end_s, self.level_dbfs, self.score)), strict=True
            )
        ]


def judge(
    recording: Recording,
    score: Callable[[Tensor], Tensor],
    device: torch.device,
    windowing: Windowing,
    *,
    eval_samples: int | None,
    min_samples: int,
) -> Judged:
    """Score a recording window by window; memory holds one batch of windows, however long it is.

    `score` maps waveforms (batch, time) to scores (batch,). A recording shorter than a window is repeated to
    `eval_samples` as in the evaluation (or to `min_samples`, below which the model cannot judge). Windows of digital
    silence, and those 40 dB below the loudest, are left out. Raises InputError for a recording that is silent
    or shorter than a syllable, and for scores that are not finite.
    """
    num_samples = recording.num_samples(SAMPLE_RATE_HZ)
    if num_samples < SHORTEST_S * SAMPLE_RATE_HZ:
        raise InputError(
            f"the recording of {num_samples / SAMPLE_RATE_HZ:.3f} s is too short to judge: give {SHORTEST_S} s or more"
        )
    window, hop, repeat = windowing.samples(num_samples, eval_samples, min_samples)
    peaks: list[np.ndarray] = []
    starts, ends, levels, scores = [], [], [], []
    batch: list[np.ndarray] = []
    waiting: list[int] = []  # windows of the batch, by number

    def flush() -> None:
        if batch:
            found = score(torch.from_numpy(np.stack(batch)).to(device)).float().cpu().tolist()
            for number, value in zip(waiting, found, strict=True):
                scores[number] = value
            batch.clear(), waiting.clear()

    for start, wave in sliding_windows(_with_peaks(recording, peaks), window, hop):
        level = float(rms_dbfs(wave))
        starts.append(start), ends.append(start + len(wave)), levels.append(level), scores.append(math.nan)
        if level < SILENCE_DBFS:
            continue
        if len(wave) < window and (repeat or len(wave) < min_samples):
            wave = fixed_length(wave, window if repeat else min_samples)
        batch.append(np.ascontiguousarray(wave)), waiting.append(len(starts) - 1)
        if len(batch) == windowing.batch_size:
            flush()
    flush()
    if max(levels) < SILENCE_DBFS:
        raise InputError("the recording is silent: there is no speech to judge")
    level_n, score_n = np.array(levels), np.array(scores)
    heard = level_n >= max(SILENCE_DBFS, level_n.max() - QUIET_DB)
    if not np.isfinite(score_n[heard]).all():
        raise InputError("the model's score is not a finite number: did its training diverge?")
    score_n[~heard] = np.nan
    start_n, end_n = (np.array(edges) / SAMPLE_RATE_HZ for edges in (starts, ends))
    return Judged(start_n, end_n, level_n, score_n, recording.duration_s, np.concatenate(peaks))


def _with_peaks(recording: Recording, peaks: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass the blocks on and note the largest magnitude of each 10 ms (a block's last frame may be shorter)."""
    for block in recording.blocks(SAMPLE_RATE_HZ):
        peaks.append(np.maximum.reduceat(np.abs(block), np.arange(0, len(block), FRAME_SAMPLES)))
        yield block


def _covered(start_s: np.ndarray, end_s: np.ndarray) -> float:
    """Return how many seconds lie in at least one of the windows, which are in order."""
    before = np.concatenate(([-math.inf], np.maximum.accumulate(end_s)[:-1]))
    return float(np.maximum(0.0, end_s - np.maximum(start_s, before)).sum())
