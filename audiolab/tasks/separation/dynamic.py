"""Dynamic mixing: other talkers, levels and speeds in every epoch, from the single sources of the training set.

Shapes: s source, t time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soxr

from audiolab.audio import mixing
from audiolab.audio.files import AudioFiles
from audiolab.audio.io import AudioError
from audiolab.augment.equalizer import NUM_KNOTS, equalize
from audiolab.augment.room import reverberate, room_response
from audiolab.errors import InputError
from audiolab.tasks.separation.corpora.base import UNKNOWN, Mixture, Source, warn_once
from audiolab.tasks.separation.mixtures import TRIES, Mixtures, Short, is_heard, item_of, lengthen
from audiolab.training.items import BadItem, Item, Utterances
from audiolab.training.limits import check_interval
from audiolab.training.text_files import read_csv

LOUDEST_POWER = 1.0  # of a recording within full scale
MOST_UNREADABLE = 100  # draws with an unreadable file in a row
FADE_S = 0.005  # where a talker begins late or ends early


@dataclass(frozen=True)
class DynamicMixing:
    """How training mixtures are drawn; ranges are [lowest, highest] of an even distribution.

    A share `p` of the items is mixed anew from sources of different talkers, the others are listed mixtures;
    `num_items` is the size of an epoch (None: as many as are listed), `sources` a CSV file `file,speaker[,sex]` of
    recordings to mix instead of those in the listed mixtures. Each source but the first is `snr_db` below the first,
    by power over the `whole` item or over `active` frames. `speed` plays a source so much faster, with higher pitch;
    `equalizer_db` is the standard deviation, at ten frequencies, of a random smooth filter on each source;
    `gain_db` changes the level of the mixture. `overlap` is the share of the item in which none has yet to begin or
    has ended. With `join` a source that is too short is continued by others of its talker, drawn so that none follows
    itself where he has several; without it as `short` says.
    `reverb_p` of the items are in a room with a reverberation time of `reverb_s` and the direct sound `direct_db`
    above the rest; targets are in the room too, so the mixture stays the sum of its sources.
    """

    p: float
    num_items: int | None
    sources: str | None
    snr_db: list[float]
    snr_on: Literal["whole", "active"]
    speed: list[float]
    equalizer_db: float
    gain_db: list[float]
    overlap: list[float]
    join: bool
    reverb_p: float
    reverb_s: list[float]
    direct_db: list[float]

    def __post_init__(self) -> None:
        for name, least, most in (
            ("snr_db", -60, 60),
            ("speed", 0.25, 4),
            ("gain_db", -80, 40),
            ("overlap", 0, 1),
            ("reverb_s", 0.01, 5),
            ("direct_db", -20, 60),
        ):
            check_interval(f"data.dynamic.{name}", getattr(self, name), least, most)
        for name in ("p", "reverb_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.dynamic.{name}={getattr(self, name)} does not fit: give a share from 0 to 1")
        if not 0 <= self.equalizer_db <= 20:
            raise InputError(f"data.dynamic.equalizer_db={self.equalizer_db} does not fit: give a number from 0 to 20")
        if self.num_items is not None and self.num_items < 1:
            raise InputError(f"data.dynamic.num_items={self.num_items} does not fit: give 1 or more, or null")


class SourcePool:
    """Sources by talker, from which different talkers are drawn; each recording as often as any other.

    Raises InputError where there are fewer talkers than `num_speakers`. Sources of unknown talkers count as talkers
    of their own, and a warning says so.
    """

    def __init__(self, sources: Iterable[Source], num_speakers: int) -> None:
        distinct = {source.file: source for source in sources}
        unknown = sum(source.speaker == UNKNOWN for source in distinct.values())
        if unknown:
            warn_once(
                f"the talkers of {unknown} of {len(distinct)} sources are not known: dynamic mixing may mix a talker "
                "with himself"
            )
        talkers: dict[str, list[Source]] = {}
        for source in distinct.values():
            talkers.setdefault(source.file if source.speaker == UNKNOWN else source.speaker, []).append(source)
        if len(talkers) < num_speakers:
            raise InputError(
                f"dynamic mixing of {num_speakers} talkers needs as many, and the training sources have "
                f"{len(talkers)}: set data.dynamic.p=0, or give recordings of more talkers"
            )
        self.talkers, self.num_speakers = list(talkers.values()), num_speakers
        self._ends = np.cumsum([len(recordings) for recordings in self.talkers])

    def draw(self, generator: np.random.Generator) -> list[list[Source]]:
        """Return the recordings of different talkers."""
        chosen: list[int] = []
        while len(chosen) < self.num_speakers:
            talker = int(np.searchsorted(self._ends, generator.integers(self._ends[-1]), side="right"))
            if talker not in chosen:
                chosen.append(talker)
        return [self.talkers[talker] for talker in chosen]


class DynamicMixtures(Utterances):
    """A training set of which a share is mixed anew in each epoch; what an item is follows from its generator alone."""

    def __init__(self, listed: Mixtures, options: DynamicMixing, pool: SourcePool) -> None:
        assert listed.crop_samples is not None
        self.listed, self.options, self.pool, self.num_samples = listed, options, pool, listed.crop_samples
        self.files: AudioFiles = listed.files
        number = options.num_items or len(listed)
        self.ids = [f"dynamic-{index:06d}" for index in range(number)]
        self._powers: dict[str, float] = {}

    def read(self, index: int, generator: np.random.Generator) -> Item:
        """Mix item `index`, or read a listed mixture in its place; unreadable files are listed under `bad`.

        Another draw stands in for one with an unreadable file, whoever reads it and whenever.
        """
        # The next item that stands in for an unreadable one has its generator, and must not be the same again.
        generator = np.random.default_rng([int(generator.integers(2**63)), index])
        bad: list[BadItem] = []
        for attempt in range(MOST_UNREADABLE):
            try:
                return {**self._drawn(generator), "bad": bad}
            except AudioError as error:
                if attempt == MOST_UNREADABLE - 1:
                    raise
                bad.append(BadItem(error.path, error))
        raise AssertionError

    def _drawn(self, generator: np.random.Generator) -> Item:
        if generator.random() < self.options.p:
            return self._mixed(generator)
        return self.listed.read(int(generator.integers(len(self.listed))), generator)

    def _mixed(self, generator: np.random.Generator) -> Item:
        options, rate = self.options, self.files.sample_rate_hz
        drawn = [self._source(recordings, generator) for recordings in self.pool.draw(generator)]
        sources_st = np.stack([wave for _, wave in drawn])
        if options.equalizer_db > 0:
            for wave_t in sources_st:
                wave_t[:] = equalize(wave_t, generator.normal(0, options.equalizer_db, NUM_KNOTS))
        if generator.random() < options.reverb_p:
            reverberation_s = generator.uniform(*options.reverb_s)
            for wave_t in sources_st:
                response = room_response(reverberation_s, generator.uniform(*options.direct_db), rate, generator)
                wave_t[:] = reverberate(wave_t, response)
        if options.overlap[0] < 1:
            sources_st = stagger(sources_st, generator.uniform(*options.overlap), rate, generator)
        whole = options.snr_on == "whole"
        powers = mixing.mean_power(sources_st) if whole else mixing.active_power(sources_st, rate)
        snrs_db = generator.uniform(*options.snr_db, size=len(sources_st) - 1)
        gain_db, level_dbfs = generator.uniform(*options.gain_db), self.listed.level_dbfs
        if level_dbfs is None:
            gains_s = 10 ** (gain_db / 20) * mixing.mixing_gains(sources_st, snrs_db, None, powers)
        else:
            gains_s = mixing.mixing_gains(sources_st, snrs_db, level_dbfs + gain_db, powers)
        mixture_t, sources_st = mixing.mix(sources_st, gains_s)
        return item_of(mixture_t, sources_st, rate, Mixture("", None, tuple(source for source, _ in drawn)))

    def _source(self, recordings: Sequence[Source], generator: np.random.Generator) -> tuple[Source, np.ndarray]:
        """Draw a recording and a window of it, again (ten times at most) while it is a pause of the recording."""
        for _ in range(TRIES):
            index = int(generator.integers(len(recordings)))
            speed = generator.uniform(*self.options.speed)
            wave = self._window(index, recordings, speed, generator)
            if self._is_heard(wave, recordings[index].file):
                break
        return recordings[index], wave

    def _is_heard(self, wave: np.ndarray, file: str) -> bool:
        power = float(mixing.mean_power(wave))
        if is_heard(power, beside=LOUDEST_POWER):  # then beside its own recording too, which need not be read for it
            return True
        if file not in self._powers:
            self._powers[file] = float(mixing.mean_power(self.files.read(file)))
        return is_heard(power, self._powers[file])

    def _window(
        self, index: int, recordings: Sequence[Source], speed: float, generator: np.random.Generator
    ) -> np.ndarray:
        source = recordings[index]
        needed = self.num_samples if speed == 1 else math.ceil(self.num_samples * speed) + 1
        num_samples = self.files.num_samples(source.file)
        if num_samples >= needed:
            start = int(generator.integers(num_samples - needed + 1))
            wave = self.files.read(source.file, start, start + needed)
        else:
            parts = [self.files.read(source.file)]
            while self.options.join and (num_samples := sum(map(len, parts))) < needed:
                index = another(index, len(recordings), generator)
                parts.append(self.files.read(recordings[index].file))
            start = int(generator.integers(max(0, num_samples - needed) + 1))
            wave = np.concatenate(parts)[start : start + needed]
        if speed != 1:
            wave = soxr.resample(wave, speed, 1.0, quality="MQ")  # flat to 90 % of the band, in half of the time of HQ
        wave = wave[: self.num_samples]
        return wave if len(wave) == self.num_samples else self._lengthened(wave, self.listed.short, generator)

    def _lengthened(self, wave: np.ndarray, short: Short, generator: np.random.Generator) -> np.ndarray:
        if short == "repeat":
            return lengthen(wave, self.num_samples, short)
        before = int(generator.integers(self.num_samples - len(wave) + 1))
        return np.pad(wave, (before, self.num_samples - len(wave) - before))


def another(index: int, num: int, generator: np.random.Generator) -> int:
    """Draw one of `num` indices other than `index`, each as likely; where there is but one, that one.

    >>> {another(1, 3, np.random.default_rng(seed)) for seed in range(20)}, another(0, 1, np.random.default_rng(0))
    ({0, 2}, 0)
    """
    return (index + int(generator.integers(1, num))) % num if num > 1 else index


def stagger(sources_st: np.ndarray, overlap: float, sample_rate_hz: int, generator: np.random.Generator) -> np.ndarray:
    """Let talkers begin late or end early, so that all of them are in for a share `overlap` of the time, at once.

    One begins with the item and one ends with it; where they come and go the level fades within 5 ms.

    >>> staggered = stagger(np.ones((2, 1000)), 0.4, 1000, np.random.default_rng(0))
    >>> abs(int((staggered.min(axis=0) > 0).sum()) - 400) <= 5, int((staggered.max(axis=0) > 0).sum())
    (True, 1000)
    """
    num_sources, num_samples = sources_st.shape
    apart = round((1 - overlap) * num_samples)
    late = int(generator.integers(apart + 1))
    begins, ends = (
        generator.integers(late + 1, size=num_sources),
        generator.integers(num_samples - apart + late, num_samples + 1, size=num_sources),
    )
    order = generator.permutation(num_sources)
    first, last = order[0], order[1]
    begins[first], ends[first] = 0, num_samples - apart + late
    begins[last], ends[last] = late, num_samples
    fade = max(1, round(FADE_S * sample_rate_hz))
    time = np.arange(num_samples)
    rise_st = np.where(begins[:, None] > 0, (time - begins[:, None]) / fade, 1.0)
    fall_st = np.where(ends[:, None] < num_samples, (ends[:, None] - 1 - time) / fade, 1.0)
    return sources_st * np.minimum(rise_st, fall_st).clip(0.0, 1.0).astype(sources_st.dtype)


def read_sources(path: Path) -> list[Source]:
    """Read a CSV file with `file,speaker` and perhaps `sex`, paths relative to it."""
    if not path.is_file():
        raise InputError(
            f"data.dynamic.sources={path} is not there, or no file: give a CSV file file,speaker[,sex], or null for "
            "the sources of the listed mixtures"
        )
    rows = read_csv(path, ["file", "speaker"], ["sex"])
    return [
        Source(str(path.parent / row["file"]), speaker=row["speaker"], sex=row.get("sex", "")[:1].upper() or UNKNOWN)
        for _, row in rows
    ]
