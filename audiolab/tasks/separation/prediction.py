"""What `predict` and `infer` give of a recording: a WAV file or an array for each talker, levels, a picture.

Files are 32-bit float by default: a talker has the level that he has in the mixture, and nothing is clipped or rounded
whatever his peak. In 16 or 24 bits all talkers of a recording get one gain where a peak would not fit, and `gain_db`
says which.

Shapes: c speaker, t time.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from audiolab.audio.level import SILENCE_DBFS, peak_gain
from audiolab.audio.recording import Recording
from audiolab.audio.writing import SUBTYPES, SampleFormat, WaveWriter, rewrite
from audiolab.errors import InputError
from audiolab.reporting.plots import plain_title
from audiolab.reporting.running_spectrogram import RunningSpectrogram
from audiolab.reporting.spectrograms import level_panels
from audiolab.tasks.separation.inference import CHUNK_S, Chunking, separate_recording, stream_recording
from audiolab.tasks.separation.level_gains import LevelGains
from audiolab.tasks.separation.separator import Separator
from audiolab.training.task import Prediction

log = logging.getLogger(__name__)

_SILENT = "silent"

COLUMNS: dict[str, type] = {
    "num_speakers": int,
    "duration_s": float,
    "sample_rate": int,
    "levels_dbfs": str,
    "gain_db": float,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this task to those of the verb `predict`."""
    parser.add_argument(
        "--chunk-s",
        type=float,
        help=f"length of the overlapping chunks that a recording is separated in (default {CHUNK_S:g})",
    )
    parser.add_argument("--hop-s", type=float, help="from a chunk's start to the next (default: 3/4 of a chunk)")
    parser.add_argument(
        "--streaming", action="store_true", help="causal models: as one stream from the beginning, without chunks"
    )
    parser.add_argument(
        "--sample-format",
        choices=tuple(SUBTYPES),
        default="float",
        help="of the WAV files (default float, which never clips; else one gain for all talkers where a peak needs it)",
    )
    parser.add_argument("--plots", action="store_true", help="write spectrograms/<name>.png of mixture and talkers")


@dataclass(frozen=True)
class RecordingSeparation:
    """A model, its rate, and how it is applied: in chunks (None: `CHUNK_S`), or with `streaming` as one stream.

    Raises InputError for options that do not fit each other or the model.
    """

    model: Separator
    sample_rate_hz: int
    device: torch.device | str = "cpu"
    batch_size: int = 1
    chunk_s: float | None = None
    hop_s: float | None = None
    streaming: bool = False

    def __post_init__(self) -> None:
        self.chunking.samples(self.sample_rate_hz)
        if self.streaming and not (self.model.causal and hasattr(self.model, "stream")):
            raise InputError(
                "streaming=True (--streaming) needs a causal model, which hears nothing of the future: leave it out, "
                "or train one (model=separation/conv_tasnet_causal)"
            )
        if self.streaming and (self.chunk_s is not None or self.hop_s is not None):
            log.warning("chunk_s (--chunk-s) and hop_s (--hop-s) have no effect with streaming, which has no chunks")

    @property
    def chunking(self) -> Chunking:
        """How recordings are cut."""
        return Chunking(CHUNK_S if self.chunk_s is None else self.chunk_s, self.hop_s, self.batch_size)

    def blocks(self, recording: Recording, levels: LevelGains, **options: Any) -> Iterator[np.ndarray]:
        """Yield blocks (speaker, time) at the recording's rate; a stream's level is to be corrected by `gains`."""
        if self.streaming:
            stream = self.model.stream()
            return stream_recording(
                recording, stream, self.sample_rate_hz, device=self.device, levels=levels, **options
            )
        return separate_recording(
            recording, self.model, self.sample_rate_hz, self.chunking, device=self.device, **options
        )

    def gains(self, levels: LevelGains) -> np.ndarray:
        """Return what each talker is to be multiplied by, (speaker, 1): 1 for chunks, which are at their level."""
        return levels.gains()[:, None] if self.streaming else np.ones((self.model.num_speakers, 1), np.float32)

    def talkers(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Return the talkers (speaker, time), float32, of a recording (time,), at its rate, at their level in it."""
        levels = LevelGains()
        recording = Recording(np.asarray(waveform, dtype=np.float32), sample_rate)
        talkers_ct = np.concatenate(list(self.blocks(recording, levels)), axis=1)
        return talkers_ct * self.gains(levels)

    def predict(self, recording: Recording, scratch: Path, sample_format: SampleFormat, *, plots: bool) -> Prediction:
        """Write `*_spk1.wav ...` while the recording is read; memory does not grow with its length."""
        scratch.mkdir(parents=True)
        rate, num_frames, levels = recording.sample_rate, recording.num_frames, LevelGains()
        paths = [scratch / f"spk{number}.part" for number in range(1, self.model.num_speakers + 1)]
        heard = RunningSpectrogram(recording.num_samples(self.sample_rate_hz), self.sample_rate_hz)
        seen = [RunningSpectrogram(num_frames, rate) for _ in paths]
        with ExitStack() as files:
            writers = [files.enter_context(WaveWriter(path, rate, num_frames)) for path in paths]
            options = {"heard": heard.add} if plots else {}
            for block_ct in self.blocks(recording, levels, **options):
                for writer, picture, block_t in zip(writers, seen, block_ct, strict=True):
                    writer.write(block_t)
                    if plots:
                        picture.add(block_t)
        gain_c = self.gains(levels)[:, 0]
        peak = max(abs(float(gain)) * writer.peak for gain, writer in zip(gain_c, writers, strict=True))
        common = 1.0 if sample_format == "float" else peak_gain(peak)
        for path, gain in zip(paths, common * gain_c, strict=True):
            if sample_format != "float" or gain != 1:
                rewrite(path, float(gain), sample_format)
        gain_db_c = 20 * np.log10(np.maximum(np.abs(gain_c), 1e-9))
        shown = [_level(w.rms_dbfs + gain) for w, gain in zip(writers, gain_db_c.tolist(), strict=True)]
        values = {
            "num_speakers": len(paths),
            "duration_s": round(recording.duration_s, 3),
            "sample_rate": rate,
            "levels_dbfs": ";".join(shown),
            "gain_db": round(20 * math.log10(common), 3),
        }
        sentence = f"{recording.duration_s:8.2f} s  {len(paths)} talkers{_levels_in_words(shown)}"
        if common < 1:
            sentence += f"; all written {-values['gain_db']:.1f} dB softer, as {sample_format} would clip"
        if rate < self.sample_rate_hz:
            sentence += f"; at {rate} Hz it has nothing above {rate / 2000:g} kHz: trust this less"
        kept: dict[str, str | Figure | Path] = {f"*_{path.stem}.wav": path for path in paths}
        if plots:
            highest_hz = min(rate, self.sample_rate_hz) / 2
            kept["spectrograms/*.png"] = _picture(
                heard, seen, gain_db_c, highest_hz, values, plain_title(recording.name)
            )
        return Prediction(values, sentence, kept)


def legend(applied: RecordingSeparation, plots: bool) -> str:
    """Say what is written."""
    how = "as one stream" if applied.streaming else f"in chunks of {applied.chunking.chunk_s:g} s"
    pictures = ", spectrograms/<name>.png" if plots else ""
    return f"{applied.model.num_speakers} talkers a recording, separated {how}: <name>_spk1.wav ...{pictures}"


def _level(level_dbfs: float) -> str:
    return f"{level_dbfs:.1f}" if level_dbfs > SILENCE_DBFS else _SILENT


def _with_unit(level: str) -> str:
    return level if level == _SILENT else f"{level} dBFS"


def _levels_in_words(levels: list[str]) -> str:
    """Say how loud talkers are, to follow their number.

    >>> [_levels_in_words(levels) for levels in (["-25.1", "-30.0"], ["-25.1", "silent"], ["silent", "silent"])]
    [' at -25.1, -30.0 dBFS', ' at -25.1 dBFS, silent', ', silent']
    """
    if _SILENT not in levels:
        return f" at {', '.join(levels)} dBFS"
    if set(levels) == {_SILENT}:
        return f", {_SILENT}"
    return f" at {', '.join(map(_with_unit, levels))}"


def _picture(
    heard: RunningSpectrogram,
    seen: list[RunningSpectrogram],
    gain_db_c: np.ndarray,
    highest_hz: float,
    values: dict[str, Any],
    title: str,
) -> Figure:
    """Draw the mixture and below it each talker, up to the lower of the rates' halves."""
    levels = [heard.level_db(), *(one.level_db() + gain for one, gain in zip(seen, gain_db_c, strict=True))]
    num_bins = min(len(level) for level in levels)  # their bins are the same 31 Hz apart whatever the rate
    shown = values["levels_dbfs"].split(";")
    names = ["mixture", *(f"talker {number}: {_with_unit(level)}" for number, level in enumerate(shown, 1))]
    rows = [[(name, level[:num_bins])] for name, level in zip(names, levels, strict=True)]
    return level_panels(rows, values["duration_s"], highest_hz, title)
