"""Mixtures of AISHELL-3's speakers in the LibriMix layout: made once by `python -m audiolab.prepare`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiolab.audio.io import AudioError, BadAudioPolicy, audio_info, read_audio, write_audio
from audiolab.audio.level import peak_gain, rms_dbfs
from audiolab.errors import InputError
from audiolab.tasks.separation.aishell3_lists import ListedRecording, Speaker, choose_speakers, read_speakers
from audiolab.tasks.separation.aishell3_options import MixtureOptions
from audiolab.tasks.separation.librimix_writer import (
    SETS,
    SOURCES,
    UTTERANCES,
    LibriMixFolder,
    Mode,
    PlannedMixture,
    Utterance,
    draw_mixtures,
    write_lists,
    write_mixture,
)
from audiolab.tasks.separation.prepared_picture import draw_prepared, speakers_in, write_picture
from audiolab.training.preparation import Facts, Made, Preparation, Work, chunks, write_whole

_RECORDINGS_A_JOB = 50
_MIXTURES_A_JOB = 25
_SILENT_DBFS = -70.0
_FLAC_SHARE = 0.7  # of the size of the samples, at most


class Aishell3Mixtures(Preparation):
    """Mixtures of the AISHELL-3 corpus at `root`, with all utterances of its chosen speakers, in `folder`.

    No speaker is in two sets. Unreadable, silent and repeated recordings are refused, or left out with `skip`.
    """

    name = "mixtures of AISHELL-3"
    choose_folder = "data.prepared"

    def __init__(
        self,
        root: Path,
        folder: Path,
        mixtures: MixtureOptions,
        *,
        num_speakers: int,
        sample_rate_hz: int,
        mode: Mode,
        on_bad_audio: Literal["raise", "skip"],
        max_bad_audio: float,
        num_workers: int,
    ) -> None:
        for set_name, number in mixtures.speakers.items():
            if number is not None and number < num_speakers:
                raise InputError(
                    f"data.mixtures.speakers.{set_name}={number} is too few for mixtures of {num_speakers} speakers"
                )
        self.root, self.folder, self.mixtures, self.num_workers = root, folder, mixtures, num_workers
        self.on_bad_audio, self.max_bad_audio = on_bad_audio, max_bad_audio
        self.corpus = LibriMixFolder(folder, num_speakers, sample_rate_hz, mode, mixtures.level_dbfs)
        self.options = {
            "version": 1,
            "root": str(root.resolve()),
            "num_speakers": num_speakers,
            "sample_rate_hz": sample_rate_hz,
            "length": mode,
            **asdict(mixtures),
        }
        self.options_of_a_run = {"model.num_speakers": num_speakers}

    @cached_property
    def chosen(self) -> dict[str, list[Speaker]]:
        """The speakers of each set."""
        options = self.mixtures
        return choose_speakers(
            read_speakers(self.root, options.subsets),
            options.speakers,
            options.min_utterances,
            options.balance_genders,
            np.random.default_rng((options.seed, 0)),
        )

    def needed_mb(self) -> float:
        """Estimate from the sizes of the recordings."""
        recordings = [one for group in self.chosen.values() for speaker in group for one in speaker.recordings]
        sizes = [one.path.stat().st_size for one in recordings if one.path.is_file()]
        if not sizes:
            raise InputError(
                f"{recordings[0].path} is not there, nor is any other recording of the chosen speakers: complete the "
                "corpus, whose list names them"
            )
        first = next(one.path for one in recordings if one.path.is_file())
        info = audio_info(first)
        seconds = sum(sizes) * info.duration_s / first.stat().st_size
        bytes_a_second = 2 * self.corpus.sample_rate_hz
        a_mixture_s = max(self.mixtures.min_s, seconds / len(sizes))
        mixed_s = sum(self.mixtures.num_mixtures.values()) * a_mixture_s * (1 + self.corpus.num_speakers)
        return bytes_a_second * (_FLAC_SHARE * seconds + mixed_s) / 2**20

    def make(self, work: Work) -> Facts:
        """Resample the utterances, draw mixtures of them, mix, and write lists, picture and README."""
        utterances, remarks = self._utterances(work)
        drawn = {
            set_name: self._draw(set_name, number, utterances[set_name]) for number, set_name in enumerate(SETS, 1)
        }
        jobs = {
            f"{set_name}-{number:04d}": (set_name, tuple(part))
            for set_name, mixtures in drawn.items()
            for number, part in enumerate(chunks(mixtures, _MIXTURES_A_JOB))
        }
        parts = work.do("mixtures", jobs, partial(_mix, self.corpus))
        facts: dict[str, list[dict[str, Any]]] = {set_name: [] for set_name in SETS}
        for (set_name, _), part in zip(jobs.values(), parts, strict=True):
            facts[set_name] += part
        for set_name, mixtures in drawn.items():
            write_lists(self.corpus, set_name, utterances[set_name], mixtures, facts[set_name])
        write_whole(self.folder / "README.txt", self._readme())
        rate = self.corpus.sample_rate_hz
        chosen = {name: len(group) for name, group in self.chosen.items()}
        picture = self.folder / "prepared.png"
        write_picture(draw_prepared(drawn, facts, chosen, rate, self.corpus.mode, self.name), picture)
        rows = {name: self._row(drawn[name], facts[name], utterances[name], self.chosen[name]) for name in SETS}
        remarks += [
            f"{len(unheard)} of {len(self.chosen[name])} speakers of {name} are in none of its mixtures"
            for name, mixtures in drawn.items()
            if (unheard := {one.id for one in self.chosen[name]} - speakers_in(mixtures).keys())
        ]
        return Facts(rows, [*remarks, f"picture: {picture}"])

    def _utterances(self, work: Work) -> tuple[dict[str, list[Utterance]], list[str]]:
        """Write what the chosen speakers say at the wanted rate; returns it by set, and what was left out in words."""
        speakers = {one.id: (name, one) for name, group in self.chosen.items() for one in group}
        jobs = {
            f"{speaker.id}-{number:03d}": tuple(part)
            for _, speaker in speakers.values()
            for number, part in enumerate(chunks(speaker.recordings, _RECORDINGS_A_JOB))
        }
        rate, options = self.corpus.sample_rate_hz, self.mixtures
        subsets = {speaker: SETS[name][0] for speaker, (name, _) in speakers.items()}
        make = partial(_resample, self.folder, subsets, rate, options.min_s, options.short == "join")
        found = dict(zip(jobs, work.do("utterances", jobs, make), strict=True))
        bad = self._bad(jobs, found)
        said: dict[str, list[Utterance]] = {name: [] for name in SETS}
        for key, part in found.items():
            set_name, speaker = speakers[key.rpartition("-")[0]]
            for id_, path, num_samples, recordings in part["units"]:
                if not bad & set(recordings):
                    said[set_name].append(Utterance(id_, speaker.id, speaker.sex, path, num_samples))
        joined = sum(len(unit[3]) > 1 for part in found.values() for unit in part["units"])
        short = sum(part["short"] for part in found.values())
        remarks = [f"{joined:,} utterances are several short ones in a row"] if joined else []
        remarks += [f"{short:,} utterances shorter than {options.min_s:g} s were left out"] if short else []
        remarks += [f"{len(bad):,} recordings were left out: {self.folder / 'bad_audio.csv'}"] if bad else []
        return said, remarks

    def _bad(self, jobs: Mapping[str, Sequence[ListedRecording]], found: Mapping[str, dict[str, Any]]) -> set[str]:
        """Refuse or count what cannot be used; returns the names of such recordings."""
        reasons: dict[str, str] = {}
        paths = {one.id: str(one.path) for part in jobs.values() for one in part}
        first: dict[str, str] = {}
        for part in found.values():
            reasons |= part["bad"]
            for id_, digest in part["digests"].items():
                if first.setdefault(digest, id_) != id_:
                    reasons[id_] = f"has the same samples as {paths[first[digest]]}"
        policy = BadAudioPolicy(self.on_bad_audio, self.max_bad_audio, num_files=len(paths))
        if reasons and self.on_bad_audio == "raise":
            id_, reason = next(iter(reasons.items()))
            raise InputError(
                f"{len(reasons)} of {len(paths)} recordings cannot be used, the first: {paths[id_]} {reason}; copy "
                f"them again, or leave them out with data.on_bad_audio=skip data.max_bad_audio={len(reasons)}"
            )
        policy.add({paths[id_]: reason for id_, reason in reasons.items()})
        if reasons:
            policy.write_list(self.folder / "bad_audio.csv")
        return set(reasons)

    def _draw(self, set_name: str, number: int, utterances: list[Utterance]) -> list[PlannedMixture]:
        options = self.mixtures
        generator = np.random.default_rng((options.seed, number))
        low, high = options.snr_db
        num = options.num_mixtures[set_name]
        try:
            return draw_mixtures(utterances, num, self.corpus.num_speakers, (low, high), generator)
        except InputError as error:
            raise InputError(
                f"{set_name}: {error} (data.mixtures.num_mixtures.{set_name}, data.mixtures.speakers.{set_name})"
            ) from error

    def _row(
        self,
        mixtures: Sequence[PlannedMixture],
        facts: Sequence[dict[str, Any]],
        utterances: Sequence[Utterance],
        speakers: Sequence[Speaker],
    ) -> dict[str, Any]:
        snrs_db = [fact["snrs_db"][0] for fact in facts]
        rate = self.corpus.sample_rate_hz
        women = sum(speaker.sex == "F" for speaker in speakers)
        return {
            "mixtures": len(mixtures),
            "hours": sum(mixture.num_samples(self.corpus.mode) for mixture in mixtures) / rate / 3600,
            "speakers": len(speakers),
            "F / M": f"{women} / {len(speakers) - women}",
            "utterances": len(utterances),
            "hours of them": sum(one.num_samples for one in utterances) / rate / 3600,
            "SNR of source 1 (dB)": f"{min(snrs_db):.1f} to {max(snrs_db):.1f}, mean {np.mean(snrs_db):.1f}",
        }

    def _readme(self) -> str:
        speakers = "\n".join(f"  {name:<6}" + " ".join(one.id for one in group) for name, group in self.chosen.items())
        return f"""Mixtures of {self.corpus.num_speakers} speakers of AISHELL-3 (openslr.org/93), made by audiolab.

Only folders, file names and columns follow LibriMix: no audio is from LibriSpeech. LibriSpeech/ holds all utterances
of the chosen speakers at {self.corpus.sample_rate_hz} Hz, {SOURCES} lists those of the training set. prepared.json has
the options. No speaker is in two sets:
{speakers}
"""


def _resample(
    folder: Path,
    subsets: Mapping[str, str],
    sample_rate_hz: int,
    min_s: float,
    join: bool,
    recordings: Sequence[ListedRecording],
) -> Made:
    """Write recordings of one speaker at another rate; what is too short together with those that follow."""
    subset, speaker = subsets[recordings[0].speaker], recordings[0].speaker
    bad: dict[str, str] = {}
    digests: dict[str, str] = {}
    units: list[tuple[str, str, int, list[str]]] = []
    short = 0
    waiting: list[tuple[str, np.ndarray]] = []
    for recording in recordings:
        try:
            wave, _ = read_audio(recording.path, sample_rate=sample_rate_hz)
        except AudioError as error:
            bad[recording.id] = error.reason
            continue
        if float(rms_dbfs(wave)) < _SILENT_DBFS:
            bad[recording.id] = f"is silent (below {_SILENT_DBFS:g} dBFS)"
            continue
        digests[recording.id] = hashlib.sha256(wave.tobytes()).hexdigest()[:24]
        waiting.append((recording.id, wave))
        unit = np.concatenate([wave for _, wave in waiting])
        if len(unit) >= min_s * sample_rate_hz:
            names = [name for name, _ in waiting]
            id_ = names[0] if len(names) == 1 else f"{names[0]}-{names[-1].removeprefix(speaker)}"
            path = f"{subset}/{speaker}/{id_}.flac"
            unit = unit * peak_gain(float(np.abs(unit).max()))
            write_audio(folder / UTTERANCES / path, unit, sample_rate_hz, "PCM_16")
            units.append((id_, path, len(unit), names))
            waiting = []
        elif not join:
            short += 1
            waiting = []
    result = {"units": units, "bad": bad, "digests": digests, "short": short + len(waiting)}
    return Made(result, [f"{UTTERANCES}/{path}" for _, path, _, _ in units])


def _mix(corpus: LibriMixFolder, job: tuple[str, Sequence[PlannedMixture]]) -> Made:
    set_name, mixtures = job
    facts = [write_mixture(corpus, set_name, mixture) for mixture in mixtures]
    return Made(facts, [corpus.mixture_path(set_name, part, one) for one in mixtures for part in corpus.parts])
