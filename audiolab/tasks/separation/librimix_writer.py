"""Two- and three-speaker mixtures in the LibriMix layout: which utterances meet, how they are mixed, how it is written.

    LibriSpeech/{train-clean-100,dev-clean,test-clean}/SPEAKER/.../UTTERANCE.flac       what the mixtures are made of
    metadata/LibriSpeech/{set}.csv                  speaker_ID,sex,subset,length,origin_path
    metadata/Libri2Mix/libri2mix_{set}.csv          mixture_ID,source_1_path,source_1_gain,...
    metadata/Libri2Mix/libri2mix_{set}_info.csv     mixture_ID,speaker_1_ID,speaker_1_sex,...
    Libri2Mix/wav16k/min/{train-100,dev,test}/{mix_clean,s1,s2}/MIXTURE.wav
    Libri2Mix/wav16k/min/metadata/{mixture,metrics}_{split}_mix_clean.csv
    train_sources.csv                               file,speaker,sex: the utterances of the training set, to mix anew

Paths in `mixture_*.csv` are relative to the corpus, those of utterances to `LibriSpeech/`. With L samples of a mixture
(of the shortest utterance, or of the longest in mode max) source i is round(gain_i x utterance_i[:L]) in 16 bits, and
the mixture is the sum of the sources, to the bit.

Shapes: s speaker, t time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiolab.audio.io import read_audio, write_audio
from audiolab.audio.mixing import fit_lengths, mean_power, mixing_gains
from audiolab.errors import InputError
from audiolab.training.preparation import write_whole

SETS = {"train": ("train-clean-100", "train-100"), "dev": ("dev-clean", "dev"), "test": ("test-clean", "test")}
"""Our sets, and what LibriMix calls them: the folder of the utterances, and that of the mixtures."""
UTTERANCES = "LibriSpeech"
SOURCES = "train_sources.csv"
_FULL_SCALE = 32768
_FAINT_DB = 20.0

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Utterance:
    """What one talker says in one file; `path` is relative to `LibriSpeech/`, `sex` is F, M or - (not known)."""

    id: str
    speaker: str
    sex: str
    path: str
    num_samples: int


@dataclass(frozen=True)
class PlannedMixture:
    """Utterances that are to be mixed; `snrs_db` are the levels of the first one over each of the others."""

    utterances: tuple[Utterance, ...]
    snrs_db: tuple[float, ...]

    @property
    def id(self) -> str:
        """The name of its files."""
        return "_".join(utterance.id for utterance in self.utterances)

    def num_samples(self, mode: Mode) -> int:
        """Return its length."""
        lengths = [utterance.num_samples for utterance in self.utterances]
        return min(lengths) if mode == "min" else max(lengths)


@dataclass(frozen=True)
class LibriMixFolder:
    """Where and in which form mixtures are written; `level_dbfs` is the RMS of every mixture."""

    folder: Path
    num_speakers: int
    sample_rate_hz: int
    mode: Mode
    level_dbfs: float

    @property
    def name(self) -> str:
        """Libri2Mix or Libri3Mix."""
        return f"Libri{self.num_speakers}Mix"

    @property
    def audio_folder(self) -> str:
        """The folder of the mixtures, relative to the corpus."""
        return f"{self.name}/wav{self.sample_rate_hz // 1000}k/{self.mode}"

    def mixture_path(self, set_name: str, part: str, mixture: PlannedMixture) -> str:
        """Return the file of a mixture (part `mix_clean`) or of one of its sources (`s1` ...) in the corpus."""
        return f"{self.audio_folder}/{SETS[set_name][1]}/{part}/{mixture.id}.wav"

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of mixtures and sources."""
        return ("mix_clean", *(f"s{number + 1}" for number in range(self.num_speakers)))


def draw_mixtures(
    utterances: Sequence[Utterance],
    num: int,
    num_speakers: int,
    snr_db: tuple[float, float],
    generator: np.random.Generator,
) -> list[PlannedMixture]:
    """Draw `num` different mixtures of different talkers, every utterance about equally often.

    The levels of the first utterance over the others are uniform in `snr_db`. Raises InputError where these utterances
    do not give as many.

    >>> said = [Utterance(f"{who}{n}", who, "F", "", 100) for who in "ABC" for n in range(2)]
    >>> drawn = draw_mixtures(said, 12, 2, (-3.0, 3.0), np.random.default_rng(0))
    >>> len({mixture.id for mixture in drawn})
    12
    """
    drawn: list[PlannedMixture] = []
    seen: set[frozenset[str]] = set()
    waiting: list[Utterance] = []
    while len(drawn) < num:
        group = _group(waiting, num_speakers, seen)
        if group is None:
            if len(waiting) > 8 * len(utterances) or len({one.speaker for one in utterances}) < num_speakers:
                raise InputError(
                    f"{len(utterances)} utterances of {len({one.speaker for one in utterances})} speakers gave "
                    f"{len(drawn)} different mixtures of {num_speakers} speakers and {num} are wanted: "
                    "want fewer, or take more speakers"
                )
            waiting += [utterances[index] for index in generator.permutation(len(utterances))]
            continue
        for utterance in group:
            waiting.remove(utterance)
        seen.add(frozenset(utterance.id for utterance in group))
        levels = tuple(float(level) for level in generator.uniform(*snr_db, num_speakers - 1))
        drawn.append(PlannedMixture(tuple(group), levels))
    return drawn


def _group(waiting: Sequence[Utterance], num_speakers: int, seen: set[frozenset[str]]) -> list[Utterance] | None:
    """The first utterances in line that may be mixed: of different talkers, and not mixed before."""
    if not waiting:
        return None
    group = [waiting[0]]
    for utterance in waiting[1:]:
        if utterance.speaker in {one.speaker for one in group}:
            continue
        if len(group) == num_speakers - 1 and frozenset(one.id for one in [*group, utterance]) in seen:
            continue
        group.append(utterance)
        if len(group) == num_speakers:
            return group
    return None


def write_mixture(corpus: LibriMixFolder, set_name: str, mixture: PlannedMixture) -> dict[str, Any]:
    """Mix, write mixture and sources, and return a row of facts: gains, and the SNR of every source.

    The SNR that was drawn holds for what is mixed, silence included; a source that is all but silent in it (20 dB
    below its whole utterance) counts as no quieter than that, so that its noise is not blown up.
    """
    waves = [
        read_audio(corpus.folder / UTTERANCES / one.path, sample_rate=corpus.sample_rate_hz)[0].astype(np.float64)
        for one in mixture.utterances
    ]
    placed_st = fit_lengths(waves, corpus.mode)
    powers_s = audible_powers(placed_st, waves)
    gains_s = mixing_gains(placed_st, mixture.snrs_db, corpus.level_dbfs, powers_s)
    sources_st = np.round(gains_s[:, None] * placed_st * _FULL_SCALE)
    signals = [sources_st.sum(0), *sources_st]
    for part, signal in zip(corpus.parts, signals, strict=True):
        path = corpus.folder / corpus.mixture_path(set_name, part, mixture)
        write_audio(path, (signal / _FULL_SCALE).astype(np.float32), corpus.sample_rate_hz, "PCM_16")
    powers = np.square(sources_st).sum(1)
    noise = np.square(signals[0] - sources_st).sum(1)
    snrs_db = 10 * np.log10(np.maximum(powers, 1e-9) / np.maximum(noise, 1e-9))
    return {"gains": [round(float(gain), 8) for gain in gains_s], "snrs_db": [round(float(snr), 4) for snr in snrs_db]}


def audible_powers(placed_st: np.ndarray, waves: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean powers of sources as placed, none more than 20 dB below that of its whole utterance."""
    return np.maximum(mean_power(placed_st), [float(mean_power(wave)) * 10 ** (-_FAINT_DB / 10) for wave in waves])


def write_lists(
    corpus: LibriMixFolder,
    set_name: str,
    utterances: Iterable[Utterance],
    mixtures: Sequence[PlannedMixture],
    facts: Sequence[dict[str, Any]],
) -> None:
    """Write the lists of a set; `facts` are those of `write_mixture`, in the order of the mixtures."""
    utterances = list(utterances)
    subset, split = SETS[set_name]
    metadata, audio = corpus.folder / "metadata", corpus.folder / corpus.audio_folder / "metadata"
    definition = metadata / corpus.name / f"{corpus.name.lower()}_{subset}.csv"
    numbers = range(1, corpus.num_speakers + 1)
    _write_csv(
        metadata / UTTERANCES / f"{subset}.csv",
        ("speaker_ID", "sex", "subset", "length", "origin_path"),
        [(one.speaker, one.sex, subset, one.num_samples, one.path) for one in utterances],
    )
    if set_name == "train":
        rows = [(f"{UTTERANCES}/{one.path}", one.speaker, one.sex) for one in utterances]
        _write_csv(corpus.folder / SOURCES, ("file", "speaker", "sex"), rows)
    _write_csv(
        definition,
        ("mixture_ID", *(f"source_{n}_{what}" for n in numbers for what in ("path", "gain"))),
        [
            (
                mixture.id,
                *(x for one, gain in zip(mixture.utterances, fact["gains"], strict=True) for x in (one.path, gain)),
            )
            for mixture, fact in zip(mixtures, facts, strict=True)
        ],
    )
    _write_csv(
        definition.with_name(f"{definition.stem}_info.csv"),
        ("mixture_ID", *(f"speaker_{n}_{what}" for n in numbers for what in ("ID", "sex"))),
        [(mixture.id, *(x for one in mixture.utterances for x in (one.speaker, one.sex))) for mixture in mixtures],
    )
    _write_csv(
        audio / f"metrics_{split}_mix_clean.csv",
        ("mixture_ID", *(f"source_{n}_SNR" for n in numbers)),
        [(mixture.id, *fact["snrs_db"]) for mixture, fact in zip(mixtures, facts, strict=True)],
    )
    _write_csv(
        audio / f"mixture_{split}_mix_clean.csv",
        ("mixture_ID", "mixture_path", *(f"source_{n}_path" for n in numbers), "length"),
        [
            (
                mixture.id,
                *(corpus.mixture_path(set_name, part, mixture) for part in corpus.parts),
                mixture.num_samples(corpus.mode),
            )
            for mixture in mixtures
        ],
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(path, text.getvalue())
