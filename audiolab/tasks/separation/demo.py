"""The built-in corpus: mixtures of two synthetic talkers on disk, in the layout of LibriMix.

Talkers are espeak-ng voices, two thirds of them English and one third Mandarin. It lets every command run anywhere in
minutes; its numbers say nothing about real speech.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from audiolab.audio import level, mixing, talkers
from audiolab.audio.built_in import built_in_corpus, make_all
from audiolab.audio.espeak import synthesize
from audiolab.audio.io import write_audio
from audiolab.audio.resample import resample
from audiolab.errors import InputError
from audiolab.tasks.separation import librimix_writer
from audiolab.tasks.separation.data import SeparationData
from audiolab.tasks.separation.librimix_writer import (
    SETS,
    UTTERANCES,
    LibriMixFolder,
    PlannedMixture,
    Utterance,
    draw_mixtures,
    write_lists,
    write_mixture,
)

FOLDER = "separation_demo"
SAMPLE_RATE = 8000
SNR_DB = (-5.0, 5.0)
LEVEL_DBFS = -25.0
_CORPUS = "audiolab built-in separation corpus"
_NUM_SPEAKERS = 2
_UTTERANCES_PER_TALKER = 16

# Talkers are espeak voice variants, women first; no variant is in two sets. Every third one speaks Mandarin.
_VARIANTS = {
    "train": (
        ("f1", "f2", "f4", "Annie", "linda", "steph", "anika", "Andrea"),
        ("m1", "m3", "m5", "m7", "Alex", "Denis", "max", "Marco", "Lee", "victor", "Hugo", "sandro"),
    ),
    "dev": (("f3", "belinda", "aunty"), ("m2", "Andy", "john", "Diogo")),
    "test": (("f5", "Alicia", "grandma", "steph2"), ("m4", "m8", "david", "Gene", "travis", "antonio")),
}


@dataclass(frozen=True)
class _Talker:
    id: str
    variant: str
    sex: str
    language: str
    pitch: tuple[int, int]


class DemoData(SeparationData):
    """The built-in synthetic corpus: made under `root` when it is not there yet, then read like any other."""

    def prepare_data(self) -> None:
        """Make the corpus (seconds); only one process does. A folder of another name must be there already."""
        root = Path(self.root).expanduser()
        if root.name != FOLDER and not root.exists():
            raise InputError(
                f"data.root={root} does not exist, and data=separation/demo is the built-in synthetic corpus: "
                "for a corpus of yours choose data=separation/libri2mix data.root=<folder>"
            )
        prepare_demo_corpus(root)


def prepare_demo_corpus(
    root: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 400,
    num_dev: int = 40,
    num_test: int = 60,
    show_progress: bool = True,
) -> Path:
    """Make the built-in corpus in the folder ``root`` unless it is there already, and return the folder.

    Two speakers at 8 kHz, mode `min`, mixtures of one to four seconds at -25 dBFS and -5 to 5 dB SNR; the talkers of
    train, dev and test differ, and the utterances lie beside the mixtures for dynamic mixing. The same arguments give
    the same bytes. The folder appears complete or not at all, and is made again when the arguments or the code that
    makes it have changed. Raises `InputError` where ``root`` holds anything else, or espeak-ng is missing.
    """
    sizes = {"train": num_train, "dev": num_dev, "test": num_test}
    for name, num in sizes.items():
        if num < 1:
            raise InputError(f"num_{name} is {num}: the built-in corpus needs at least 1 mixture a set.")

    def build(folder: Path) -> None:
        _build(folder, seed, sizes, show_progress)

    code = (prepare_demo_corpus, librimix_writer, mixing, level, talkers, synthesize, resample)
    recipe = {"seed": seed, "mixtures": sizes}
    return built_in_corpus(root, _CORPUS, recipe, code, build, show_progress=show_progress)


def _build(folder: Path, seed: int, sizes: dict[str, int], show_progress: bool) -> None:
    corpus = LibriMixFolder(folder, _NUM_SPEAKERS, SAMPLE_RATE, "min", LEVEL_DBFS)
    (folder / "README.txt").write_text(_readme(seed, sizes))
    said: dict[tuple[str, str, int], Utterance] = {}

    def speak(job: tuple[str, _Talker, int]) -> None:
        set_name, talker, number = job
        said[set_name, talker.id, number] = _speak(folder, SETS[set_name][0], talker, number, seed)

    jobs = [
        (set_name, talker, number)
        for set_name, size in sizes.items()
        for talker in _talkers(set_name, seed)
        for number in range(_num_utterances(size))
    ]
    make_all(jobs, speak, show_progress=show_progress)
    mixtures: dict[str, list[PlannedMixture]] = {}
    for set_number, (set_name, size) in enumerate(sizes.items()):
        generator = np.random.default_rng((seed, set_number, 1))
        spoken = [said[key] for key in sorted(said) if key[0] == set_name]
        mixtures[set_name] = draw_mixtures(spoken, size, _NUM_SPEAKERS, SNR_DB, generator)
    for set_name in sizes:
        facts: dict[str, dict] = {}

        def mix(mixture: PlannedMixture, set_name: str, facts: dict[str, dict]) -> None:
            facts[mixture.id] = write_mixture(corpus, set_name, mixture)

        make_all(mixtures[set_name], partial(mix, set_name=set_name, facts=facts), show_progress=show_progress)
        spoken = [said[key] for key in sorted(said) if key[0] == set_name]
        write_lists(corpus, set_name, spoken, mixtures[set_name], [facts[one.id] for one in mixtures[set_name]])


def _num_utterances(num_mixtures: int) -> int:
    """Fewer for the small corpora of tests."""
    return min(_UTTERANCES_PER_TALKER, 2 + num_mixtures // 6)


def _talkers(set_name: str, seed: int) -> Sequence[_Talker]:
    women, men = _VARIANTS[set_name]
    first = {"train": 100, "dev": 200, "test": 300}[set_name]
    generator = np.random.default_rng((seed, first))
    found = []
    for number, variant in enumerate((*women, *men)):
        centre = int(generator.integers(35, 66))  # a pitch of one's own, beside that of the variant
        language = "cmn" if number % 3 == 2 else "en-us"
        sex = "F" if variant in women else "M"
        found.append(_Talker(str(first + number), variant, sex, language, (centre - 5, centre + 5)))
    return found


def _speak(folder: Path, subset: str, talker: _Talker, number: int, seed: int) -> Utterance:
    generator = np.random.default_rng((seed, int(talker.id), number))
    speech = talkers.speak_sentence(talker.variant, generator, SAMPLE_RATE, talker.language, talker.pitch)
    id_ = f"{talker.id}-1-{number:04d}"
    path = f"{subset}/{talker.id}/1/{id_}.flac"
    write_audio(folder / UTTERANCES / path, speech, SAMPLE_RATE, "PCM_16")
    return Utterance(id_, talker.id, talker.sex, path, len(speech))


def _readme(seed: int, sizes: dict[str, int]) -> str:
    counts = ", ".join(f"{name} {number}" for name, number in sizes.items())
    voices = "\n".join(
        f"  {name:<6}" + ", ".join(f"{one.id} {one.variant} {one.language}" for one in _talkers(name, seed))
        for name in sizes
    )
    return f"""SYNTHETIC: built-in demonstration corpus of audiolab (task separation).

No human speaks here and nothing is from LibriSpeech or LibriMix: only the folders, file names and columns follow
LibriMix. Scores measured on it say nothing about real speech; it exists so that every command runs on any machine
within minutes.

Made with seed {seed}: {counts} mixtures of two talkers at {SAMPLE_RATE} Hz, mode min, {SNR_DB[0]:g} to {SNR_DB[1]:g} dB
SNR, {LEVEL_DBFS:g} dBFS. Talkers are espeak-ng voice variants, each with a pitch of its own, disjoint between sets:
{voices}
Delete the folder freely: it is made again when needed.
"""
