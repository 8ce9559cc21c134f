"""The built-in corpus: synthetic speech and vocoded spoofs of it on disk, in the layout of ASVspoof 2019 LA.

Bona fide here is plain espeak-ng speech, a spoof is the same kind of speech after one of the vocoders of
`audiolab.augment.vocoders`; both then go through the same random room, tone, noise and level, so that no such trait
tells the classes apart. It lets every command run anywhere in minutes; its numbers say nothing about real attacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft

from audiolab.audio.built_in import built_in_corpus, make_all
from audiolab.audio.espeak import synthesize
from audiolab.audio.io import write_audio
from audiolab.audio.level import normalize_rms
from audiolab.audio.resample import resample
from audiolab.audio.talkers import speak_sentence
from audiolab.augment import vocoders
from audiolab.augment.vocoders import Vocoder
from audiolab.errors import InputError

SAMPLE_RATE = 16000
_CORPUS = "audiolab built-in spoofing corpus"

# Talkers are espeak voice variants; no talker is in two splits. The numbers are those of the public corpus's speakers.
_TRAIN_VARIANTS = ("f1", "f2", "f4", "m1", "m3", "m5", "m7", "Alex", "Annie", "Denis", "linda", "max")
_DEV_VARIANTS = ("f3", "m2", "Andy", "belinda", "john", "steph")
_EVAL_VARIANTS = ("f5", "m4", "m8", "Alicia", "david", "Gene", "shelby", "travis")


@dataclass(frozen=True)
class _Attack:
    """How a spoof is made, and the mean of its simulated verification scores: higher where it keeps the voice."""

    make: Vocoder
    asv_mean: float


def _shift_and_griffin_lim(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    return vocoders.griffin_lim(vocoders.shift(waveform, sample_rate, generator), sample_rate, generator)


# As in the public corpus, eval has attacks of its own, and A16 is the training attack A04 on other talkers.
_ATTACKS = {
    "A01": _Attack(vocoders.griffin_lim, 1.5),
    "A02": _Attack(vocoders.lpc, 0.0),
    "A03": _Attack(vocoders.harmonic_noise, 1.0),
    "A04": _Attack(vocoders.shift, -2.0),
    "A07": _Attack(vocoders.cepstral, 0.5),
    "A08": _Attack(vocoders.channel, -0.5),
    "A09": _Attack(_shift_and_griffin_lim, -2.5),
    "A16": _Attack(vocoders.shift, -2.0),
}


@dataclass(frozen=True)
class _Split:
    """What differs between train, dev and eval."""

    name: str
    letter: str
    protocol: str
    variants: tuple[str, ...]
    first_speaker: int
    attacks: tuple[str, ...]
    num_targets: int = 0
    num_nontargets: int = 0


_SPLITS = (
    _Split("train", "T", "train.trn", _TRAIN_VARIANTS, 79, ("A01", "A02", "A03", "A04")),
    _Split("dev", "D", "dev.trl", _DEV_VARIANTS, 69, ("A01", "A02", "A03", "A04"), 300, 1200),
    _Split("eval", "E", "eval.trl", _EVAL_VARIANTS, 1, ("A07", "A08", "A09", "A16"), 500, 2500),
)


@dataclass(frozen=True)
class _Trial:
    """One file to make; ``attack`` is None for bona fide."""

    file_id: str
    speaker: str
    variant: str
    attack: str | None
    seed: tuple[int, ...]

    @property
    def protocol_line(self) -> str:
        return f"{self.speaker} {self.file_id} - {self.attack or '-'} {'spoof' if self.attack else 'bonafide'}"


def prepare_demo_corpus(
    root: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 300,
    num_dev: int = 120,
    num_eval: int = 240,
    show_progress: bool = True,
) -> Path:
    """Make the built-in corpus in the folder ``root`` unless it is there already, and return the folder.

    A third of each split is bona fide. The same arguments give the same bytes. The folder appears complete or not at
    all, whatever is interrupted and however many processes build at once; it is made again when the arguments or the
    code that makes it have changed. Raises `InputError` where ``root`` holds anything else, or espeak-ng is missing.
    """
    sizes = {"train": num_train, "dev": num_dev, "eval": num_eval}
    for split in _SPLITS:
        least = 3 * len(split.attacks)
        if sizes[split.name] < least:
            raise InputError(f"num_{split.name} is {sizes[split.name]}: the built-in corpus needs at least {least}.")

    def build(folder: Path) -> None:
        _build(folder, seed, sizes, show_progress)

    code = (_waveform, vocoders, synthesize, speak_sentence, normalize_rms, resample)
    recipe = {"seed": seed, "files": sizes}
    return built_in_corpus(root, _CORPUS, recipe, code, build, show_progress=show_progress)


def _build(folder: Path, seed: int, sizes: dict[str, int], show_progress: bool) -> None:
    protocols = folder / "ASVspoof2019_LA_cm_protocols"
    scores = folder / "ASVspoof2019_LA_asv_scores"
    for new_folder in (protocols, scores):
        new_folder.mkdir(parents=True)
    jobs: list[tuple[Path, _Trial]] = []
    for split_number, split in enumerate(_SPLITS):
        trials = list(_trials(split, sizes[split.name], (seed, split_number)))
        flac = folder / f"ASVspoof2019_LA_{split.name}" / "flac"
        jobs += [(flac / f"{trial.file_id}.flac", trial) for trial in trials]
        lines = sorted(trial.protocol_line for trial in trials)
        (protocols / f"ASVspoof2019.LA.cm.{split.protocol}.txt").write_text("\n".join(lines) + "\n")
        if split.num_targets:
            lines = list(_asv_lines(split, trials, np.random.default_rng((seed, split_number, 0, 1))))
            (scores / f"ASVspoof2019.LA.asv.{split.name}.gi.trl.scores.txt").write_text("\n".join(lines) + "\n")
    (folder / "README.txt").write_text(_readme(seed, sizes))

    def make(job: tuple[Path, _Trial]) -> None:
        write_audio(job[0], _waveform(job[1]), SAMPLE_RATE)

    make_all(jobs, make, show_progress=show_progress)


def _trials(split: _Split, num_files: int, seed: tuple[int, int]) -> Iterator[_Trial]:
    """Each talker has each class in turn; numbers are shuffled so that neither number nor order tells the class."""
    numbers = np.random.default_rng((*seed, 0)).permutation(num_files) + 1
    num_spoofs = 0
    for index, number in enumerate(numbers.tolist()):
        attack = None
        turn = index // 3
        if index % 3 > 0:
            attack = split.attacks[num_spoofs % len(split.attacks)]
            turn = num_spoofs // len(split.attacks)
            num_spoofs += 1
        talker = turn % len(split.variants)
        yield _Trial(
            file_id=f"LA_{split.letter}_{number:07d}",
            speaker=f"LA_{split.first_speaker + talker:04d}",
            variant=split.variants[talker],
            attack=attack,
            seed=(*seed, number),
        )


def _waveform(trial: _Trial) -> np.ndarray:
    """One file: speak, spoof where it is one, place in silence, and pass through the channel."""
    generator = np.random.default_rng(trial.seed)
    duration = round(generator.uniform(1.5, 2.5) * SAMPLE_RATE)
    speech = speak_sentence(trial.variant, generator, SAMPLE_RATE)
    if trial.attack is not None:
        speech = _ATTACKS[trial.attack].make(speech, SAMPLE_RATE, generator)
    lead = round(generator.uniform(0.05, 0.2) * SAMPLE_RATE)
    speech = speech[: duration - 2 * lead]
    fade = SAMPLE_RATE // 100
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    speech[:fade] *= ramp
    speech[-fade:] *= ramp[::-1]
    return _channel(np.pad(speech, (lead, duration - lead - len(speech))), generator)


def _channel(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Room, tone, noise floor, polarity and level, all drawn without regard to the class."""
    num_samples = len(waveform)
    time_s = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    # reverberation time 0.1 to 0.3 s (-60 dB = e^-6.9), 6 to 16 dB below the direct sound
    tail = generator.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / generator.uniform(0.1, 0.3))
    tail *= 10 ** (-generator.uniform(6, 16) / 20) / np.linalg.norm(tail)
    fft_size = scipy.fft.next_fast_len(num_samples + len(tail), real=True)
    frequency = scipy.fft.rfftfreq(fft_size)
    # tone: a smooth curve of a few dB; noise: white to pink, 25 to 45 dB below the speech
    curve_db = sum(generator.normal(0, 2) * np.cos(2 * np.pi * order * frequency) for order in (1, 2, 3))
    spectrum = scipy.fft.rfft(waveform, fft_size) * (1 + scipy.fft.rfft(tail, fft_size)) * 10 ** (curve_db / 20)
    roomy = scipy.fft.irfft(spectrum, fft_size)[:num_samples]
    white = scipy.fft.rfft(generator.standard_normal(fft_size))
    noise = scipy.fft.irfft(white * (frequency + 0.005) ** -generator.uniform(0, 0.8), fft_size)[:num_samples]
    noise *= np.sqrt(np.mean(roomy**2) / np.mean(noise**2)) * 10 ** (-generator.uniform(25, 45) / 20)
    polarity = generator.choice((-1.0, 1.0))
    return normalize_rms((polarity * (roomy + noise)).astype(np.float32), generator.normal(-27, 2))


def _asv_lines(split: _Split, trials: list[_Trial], generator: np.random.Generator) -> Iterator[str]:
    """Verification scores drawn from normal distributions, not from a verifier."""
    for score in generator.normal(3.0, 1.8, split.num_targets):
        yield f"bonafide target {score:.4f}"
    for score in generator.normal(-5.0, 2.6, split.num_nontargets):
        yield f"bonafide nontarget {score:.4f}"
    for attack in sorted(trial.attack for trial in trials if trial.attack is not None):
        yield f"{attack} spoof {generator.normal(_ATTACKS[attack].asv_mean, 2.0):.4f}"


def _readme(seed: int, sizes: dict[str, int]) -> str:
    counts = ", ".join(f"{name} {number}" for name, number in sizes.items())
    attacks = "\n".join(f"  {name}  {attack.make.__name__.strip('_')}" for name, attack in _ATTACKS.items())
    return f"""SYNTHETIC: built-in demonstration corpus of audiolab (task asvspoof).

No human speaks here and nothing is from ASVspoof: only the folders, file names and protocol columns follow
ASVspoof 2019 LA. Scores measured on it say nothing about real spoofing attacks; it exists so that every command
runs on any machine within minutes.

Made with seed {seed}: {counts} files, a third of each bona fide. "Bona fide" is espeak-ng speech; a spoof is the same
kind of speech after one of these vocoders (audiolab.augment.vocoders):
{attacks}
Both then go through the same random room, tone, noise and level. Speakers are espeak-ng voice variants, disjoint
between splits. The ASV scores are drawn from normal distributions, not from a verifier. Delete the folder freely:
it is made again when needed.
"""
