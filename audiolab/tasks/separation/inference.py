"""A recording of any length and rate, talker by talker, in constant memory: in overlapping chunks, or as a stream.

Shapes: b batch (chunks), s slot (output of the model in one chunk), c speaker, t time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from audiolab.audio.recording import Recording
from audiolab.audio.windows import sliding_windows
from audiolab.errors import InputError
from audiolab.tasks.separation.level_gains import LevelGains
from audiolab.tasks.separation.stitching import Stitcher

CHUNK_S = 8.0
HOP_SHARE = 0.75  # of a chunk; the share that overlaps, 2 s of 8 s, costs a third more computing
STREAM_BLOCK_S = 1.0

Heard = Callable[[np.ndarray], None]


class Stream(Protocol):
    """A causal model at work: samples go in and come out with a delay, in all as many as went in."""

    def step(self, wave_bt: Tensor) -> Tensor:
        """Take the next samples, (batch, time), and return those finished by them, (batch, speaker, time)."""

    def flush(self) -> Tensor:
        """Return the samples that were left, (batch, speaker, time)."""


@dataclass(frozen=True)
class Chunking:
    """How a recording is cut: `chunk_s`, `hop_s` between starts of chunks (None: 3/4 of a chunk), chunks at once.

    Chunks that overlap by more keep the order of speakers over longer pauses, and cost more computing.
    """

    chunk_s: float = CHUNK_S
    hop_s: float | None = None
    batch_size: int = 1

    def samples(self, sample_rate_hz: int) -> tuple[int, int]:
        """Return the lengths of chunk and hop; raises InputError where they do not fit each other."""
        for name, given_s in (("chunk_s", self.chunk_s), ("hop_s", self.hop_s)):
            if given_s is not None and not 0 < given_s < math.inf:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{name}={given_s:g} ({option}): give a positive number of seconds")
        chunk = round(self.chunk_s * sample_rate_hz)
        hop = max(1, round(HOP_SHARE * chunk)) if self.hop_s is None else round(self.hop_s * sample_rate_hz)
        if not 1 <= hop < chunk:
            raise InputError(
                f"hop_s={hop / sample_rate_hz:g} (--hop-s) does not fit chunks of {self.chunk_s:g} s: give less than a "
                "chunk, as speakers are followed by what two chunks share"
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} (--batch-size): give 1 or more")
        return chunk, hop


@torch.inference_mode()
def separate_recording(
    recording: Recording,
    separate: Callable[[Tensor], Tensor],
    sample_rate_hz: int,
    chunking: Chunking | None = None,
    *,
    device: torch.device | str = "cpu",
    match_level: bool = True,
    heard: Heard = lambda wave_t: None,
) -> Iterator[np.ndarray]:
    """Yield blocks (speaker, time), float32, at the recording's rate, in all as many samples as it has, without delay.

    `separate` maps mixtures (batch, time) at `sample_rate_hz` to estimates (batch, speaker, time), in any order and at
    any gain from chunk to chunk: `stitching.Stitcher`; with `match_level` the talkers add up to the mixture as far as
    gains can bring them there. Speakers are numbered as the first chunk has them. Memory holds some chunks, however
    long the recording is. Above half of `sample_rate_hz` the talkers have nothing. `heard` gets the mixture as the
    model does. Raises InputError for estimates that are not finite and for less than one sample at `sample_rate_hz`.
    """
    _require_a_sample(recording, sample_rate_hz)
    separated = _separate_chunks(recording, separate, sample_rate_hz, chunking or Chunking(), device, heard)
    yield from _at_rate(_stitched(separated, sample_rate_hz, match_level), recording, sample_rate_hz)


@torch.inference_mode()
def stream_recording(
    recording: Recording,
    stream: Stream,
    sample_rate_hz: int,
    *,
    device: torch.device | str = "cpu",
    levels: LevelGains | None = None,
    heard: Heard = lambda wave_t: None,
) -> Iterator[np.ndarray]:
    """Yield blocks as `separate_recording` does, from a causal model that hears the recording once, from its beginning.

    There are no chunks, so no order can be lost between them. The level is the model's, as one that fits the mixture is
    known only at the end: `levels` gathers what gives it.
    """

    _require_a_sample(recording, sample_rate_hz)

    def blocks() -> Iterator[np.ndarray]:
        ahead_t = np.zeros(0, np.float32)  # of the mixture, not separated yet
        for wave_t in chain(recording.blocks(sample_rate_hz, STREAM_BLOCK_S), [None]):
            if wave_t is None:
                estimate_ct = _finite(stream.flush())[0]
            else:
                heard(wave_t)
                ahead_t = np.concatenate((ahead_t, wave_t))
                estimate_ct = _finite(stream.step(torch.from_numpy(wave_t)[None].to(device)))[0]
            num_done = estimate_ct.shape[1]
            if levels is not None:
                levels.add(estimate_ct, ahead_t[:num_done])
            ahead_t = ahead_t[num_done:]
            yield estimate_ct

    yield from _at_rate(blocks(), recording, sample_rate_hz)


def _separate_chunks(
    recording: Recording,
    separate: Callable[[Tensor], Tensor],
    sample_rate_hz: int,
    chunking: Chunking,
    device: torch.device | str,
    heard: Heard,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (start, estimate (slot, time), mixture (time,)) of each chunk, `batch_size` of them computed at once."""
    waiting: list[tuple[int, np.ndarray]] = []

    def separated() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if waiting:
            waves_bt = np.stack([wave_t for _, wave_t in waiting])
            estimates_bst = _finite(separate(torch.from_numpy(waves_bt).to(device)))
            for (start, wave_t), estimate_st in zip(waiting, estimates_bst, strict=True):
                yield start, estimate_st, wave_t
            waiting.clear()

    for start, wave_t in sliding_windows(_heard(recording, sample_rate_hz, heard), *chunking.samples(sample_rate_hz)):
        waiting.append((start, wave_t))
        if len(waiting) == chunking.batch_size:
            yield from separated()
    yield from separated()


def _heard(recording: Recording, sample_rate_hz: int, heard: Heard) -> Iterator[np.ndarray]:
    for block in recording.blocks(sample_rate_hz):
        heard(block)
        yield block


def _stitched(
    separated: Iterable[tuple[int, np.ndarray, np.ndarray]], sample_rate_hz: int, match_level: bool
) -> Iterator[np.ndarray]:
    stitcher = None
    for start, estimate_st, wave_t in separated:
        stitcher = stitcher or Stitcher(len(estimate_st), sample_rate_hz, match_level=match_level)
        yield stitcher.push(start, estimate_st, wave_t)
    if stitcher:
        yield stitcher.finish()


def _at_rate(blocks: Iterable[np.ndarray], recording: Recording, from_hz: int) -> Iterator[np.ndarray]:
    """Resample blocks (speaker, time) to the recording's rate and to exactly its length."""
    if from_hz == recording.sample_rate:
        yield from (block for block in blocks if block.shape[1])
        return
    resampler, missing = None, recording.num_frames
    silence_samples = math.ceil(2 * from_hz / recording.sample_rate) + 1  # lengths are rounded twice: then cut
    num_speakers = 0
    for block in blocks:
        num_speakers = len(block)
        resampler = resampler or soxr.ResampleStream(
            from_hz, recording.sample_rate, num_speakers, dtype="float32", quality="HQ"
        )
        done = resampler.resample_chunk(np.ascontiguousarray(block.T)).T[:, :missing]
        missing -= done.shape[1]
        if done.shape[1]:
            yield done
    if resampler:
        silence = np.zeros((silence_samples, num_speakers), np.float32)
        yield resampler.resample_chunk(silence, last=True).T[:, :missing]


def _require_a_sample(recording: Recording, sample_rate_hz: int) -> None:
    if recording.num_samples(sample_rate_hz) == 0:
        raise InputError(
            f"the recording has {recording.num_frames} samples at {recording.sample_rate} Hz, less than one at the "
            f"model's {sample_rate_hz} Hz: there is nothing to separate"
        )


def _finite(estimate_bst: Tensor) -> np.ndarray:
    estimate = estimate_bst.float().cpu().numpy()
    if not np.isfinite(estimate).all():
        raise InputError("the model's estimates are not finite numbers: did its training diverge?")
    return estimate
