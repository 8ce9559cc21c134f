"""Listed mixtures with their audio, stored or mixed while reading.

Shapes: s source, t time.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from audiolab.audio import mixing
from audiolab.audio.files import AudioFiles
from audiolab.audio.io import AudioError
from audiolab.audio.level import SILENCE_DBFS
from audiolab.tasks.separation.corpora.base import Mixture, MixtureSet
from audiolab.training.items import Item, Utterances

Short = Literal["pad", "repeat"]
TRIES = 10  # windows that are drawn until every source is heard in one
PAUSE_DB = 40.0  # what is this far below a source, or below its own recording, is a pause of it


class Mixtures(Utterances):
    """Mixtures of a set: `wave` (time,), `sources` (source, time), both float32 at one rate, and facts.

    Training items are a drawn window of `crop_samples`, the same of mixture and sources, drawn again (ten times at
    most) while one of the sources pauses in it; a source that stays silent is left to the loss. Shorter mixtures are
    padded with silence or repeated (`short`). With `crop_samples` None items are whole, or their first `most_samples`.
    The level is `level_dbfs` RMS of the mixture, one gain for it and its sources (None: as it is).
    """

    def __init__(
        self,
        listed: MixtureSet,
        files: AudioFiles,
        level_dbfs: float | None,
        *,
        crop_samples: int | None,
        short: Short,
        most_samples: int | None,
    ) -> None:
        self.listed, self.mixtures, self.files, self.level_dbfs = listed, listed.mixtures, files, level_dbfs
        self.crop_samples, self.short, self.most_samples = crop_samples, short, most_samples
        self.ids = [mixture.id for mixture in self.mixtures]

    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Read one mixture."""
        mixture = self.mixtures[index]
        num_samples = self.length(mixture)
        if self.crop_samples is None:
            mixture_t, sources_st = self.signals(mixture, 0, min(num_samples, self.most_samples or num_samples))
        else:
            mixture_t, sources_st = self._window(mixture, num_samples, self.crop_samples, generator)
        if self.level_dbfs is not None:
            gain = np.float32(mixing.common_gain(mixture_t, sources_st, self.level_dbfs))
            mixture_t, sources_st = mixture_t * gain, sources_st * gain
        return item_of(mixture_t, sources_st, self.files.sample_rate_hz, mixture)

    def _window(
        self, mixture: Mixture, num_samples: int, wanted: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if num_samples <= wanted:
            mixture_t, sources_st = self.signals(mixture, 0, num_samples)
            return lengthen(mixture_t, wanted, self.short), lengthen(sources_st, wanted, self.short)
        for _ in range(TRIES):
            start = int(generator.integers(num_samples - wanted + 1))
            mixture_t, sources_st = self.signals(mixture, start, start + wanted)
            if all_heard(sources_st):
                break
        return mixture_t, sources_st

    def length(self, mixture: Mixture) -> int:
        """Return the length of a mixture. Raises `AudioError` where a stored mixture and its sources differ in it."""
        lengths = [self.files.num_samples(path) for path in mixture.files]
        if mixture.file is None:
            return min(lengths) if self.listed.length == "min" else max(lengths[: len(mixture.sources)])
        for path, length in zip(mixture.files[1:], lengths[1:], strict=True):
            if length != lengths[0]:
                reason = f"has {length} samples and its mixture {mixture.file} has {lengths[0]}"
                remedy = "Sources are as long as their mixture: write them again, or leave this one out."
                raise AudioError(f"{path} {reason}: {remedy}", path, reason)
        return lengths[0]

    def signals(self, mixture: Mixture, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return samples [start, stop) of a mixture (time,) and of its sources (source, time) as listed."""
        if mixture.file is not None:
            sources_st = np.stack([self.files.read(source.file, start, stop) for source in mixture.sources])
            return self.files.read(mixture.file, start, stop), sources_st
        scaled = [self._scaled(source.file, source.gain, start, stop) for source in mixture.sources]
        sources_st = np.stack(scaled)
        mixture_t = sources_st.sum(axis=0)
        if mixture.noise is not None:
            noise = mixture.noise
            times = -(-stop // self.files.num_samples(noise.file))  # more than 1 of `max` mixtures alone
            if times > 1:
                whole = self._scaled(noise.file, noise.gain, 0, self.files.num_samples(noise.file))
                mixture_t = mixture_t + np.tile(whole, times)[start:stop]
            else:
                mixture_t = mixture_t + self._scaled(noise.file, noise.gain, start, stop)
        return mixture_t, sources_st

    def _scaled(self, path: str, gain: float, start: int, stop: int) -> np.ndarray:
        """Samples of a file at its gain, followed by silence where the file is shorter."""
        end = self.files.num_samples(path)
        wave = self.files.read(path, start, min(stop, end)) if start < end else np.zeros(0, np.float32)
        steps = self.listed.steps
        scaled = (
            wave * np.float32(gain) if steps is None else mixing.round_to_steps(wave.astype(np.float64) * gain, steps)
        )
        return scaled if len(scaled) == stop - start else np.pad(scaled, (0, stop - start - len(scaled)))


def item_of(mixture_t: np.ndarray, sources_st: np.ndarray, sample_rate_hz: int, mixture: Mixture) -> Item:
    """Return the item of a mixture and its sources: the waveforms, and what metrics are broken down by.

    `snr_db` is the level of source 1 against all else in the mixture (NaN where either is silent), `overlap` the share
    of time in which all talk; `genders` is as in MF, `speakers` as in 1992/322, in the order of the sources.
    """
    facts: dict[str, Any] = {
        "num_speakers": len(sources_st),
        "snr_db": mixing.input_snr_db(mixture_t, sources_st[0]),
        "genders": mixture.genders,
        "overlap": mixing.overlap(sources_st, sample_rate_hz),
        "speakers": mixture.speakers,
    }
    return {"wave": np.ascontiguousarray(mixture_t), "sources": np.ascontiguousarray(sources_st), **facts}


def lengthen(wave_st: np.ndarray, num_samples: int, short: Short) -> np.ndarray:
    """Return (..., time) with silence after its end, or repeated, up to a length.

    >>> lengthen(np.array([1.0, 2.0]), 5, "repeat").tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0]
    """
    if short == "pad":
        return np.pad(wave_st, [(0, 0)] * (wave_st.ndim - 1) + [(0, num_samples - wave_st.shape[-1])])
    times = -(-num_samples // wave_st.shape[-1])
    return np.concatenate([wave_st] * times, axis=-1)[..., :num_samples]


def all_heard(sources_st: np.ndarray) -> bool:
    """Whether no source is silent, or 40 dB below the loudest one.

    >>> all_heard(np.array([[0.1, 0.1], [0.0, 0.0]]))
    False
    """
    powers = mixing.mean_power(sources_st)
    return is_heard(float(powers.min()), float(powers.max()))


def is_heard(power: float, beside: float) -> bool:
    """Whether a signal of mean power `power` is no pause beside one of another: not silent, nor 40 dB below it.

    >>> is_heard(1e-6, beside=1e-3), is_heard(1e-6, beside=1e-1)
    (True, False)
    """
    return power > max(10 ** (SILENCE_DBFS / 10), beside * 10 ** (-PAUSE_DB / 10))
