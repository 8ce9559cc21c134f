"""Corpora of a few real recordings, in each published layout, that tests may break."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import soundfile

from audiolab.tasks.asvspoof.data import SpoofingData

PROTOCOLS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


class Recording(NamedTuple):
    """A real file of la_mini and what its protocol says."""

    path: Path
    speaker: str
    attack: str
    label: str


def recordings(la_mini: Path, split: str, num_bonafide: int, num_of_attack: int) -> list[Recording]:
    """Take bona fide trials of a split, then as many of each of its first two attacks."""
    source = la_mini / "LA"
    lines = (source / f"ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{PROTOCOLS[split]}.txt").read_text()
    rows = [line.split() for line in lines.splitlines()]
    found = []
    for attack in ("-", *sorted({row[3] for row in rows} - {"-"})[:2]):
        chosen = [row for row in rows if row[3] == attack][: num_bonafide if attack == "-" else num_of_attack]
        flac = source / f"ASVspoof2019_LA_{split}" / "flac"
        found += [Recording(flac / f"{name}.flac", speaker, attack, key) for speaker, name, _, _, key in chosen]
    return found


def make_tiny_la(la_mini: Path, root: Path) -> Path:
    """Copy 24 train, 16 dev and 16 eval trials of la_mini, half of them bona fide, the rest of two attacks."""
    for name, number in (("train", 24), ("dev", 16), ("eval", 16)):
        chosen = recordings(la_mini, name, number // 2, number // 4)
        folder = root / "LA" / f"ASVspoof2019_LA_{name}" / "flac"
        lines = [f"{one.speaker} {one.path.stem} - {one.attack} {one.label}" for one in chosen]
        _write(root / "LA/ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{PROTOCOLS[name]}.txt", lines)
        for one in chosen:
            _copy(one, folder / one.path.name)
        if name != "train":
            scores = Path("LA/ASVspoof2019_LA_asv_scores") / f"ASVspoof2019.LA.asv.{name}.gi.trl.scores.txt"
            attacks = {one.attack for one in chosen}
            published = (la_mini / scores).read_text().splitlines()
            _write(root / scores, [row for row in published if row.split()[1] != "spoof" or row.split()[0] in attacks])
    return root


def make_tiny_la2021(la_mini: Path, root: Path) -> Path:
    """16 trials of the subset eval through two codecs, 4 of progress; ASV scores of both codecs and attacks."""
    lines = []
    for number, one in enumerate(recordings(la_mini, "eval", 10, 5)):
        name, codec = f"LA_E_{9332001 + number}", ("none", "alaw")[number % 2]
        subset = "progress" if number in (8, 9, 14, 19) else "eval"
        attack = "bonafide" if one.attack == "-" else one.attack
        lines.append(f"{one.speaker} {name} {codec} ita_tx {attack} {one.label} notrim {subset}")
        _copy(one, root / "ASVspoof2021_LA_eval/flac" / f"{name}.flac")
    _write(root / "keys/LA/CM/trial_metadata.txt", lines)
    metadata, scores = [], []
    for number in range(240):
        key, attack = (("target", "bonafide"), ("nontarget", "bonafide"), ("spoof", "A07"), ("spoof", "A08"))[
            number % 4
        ]
        codec, subset = ("none", "alaw")[number // 4 % 2], ("eval", "eval", "progress")[number // 8 % 3]
        trial = f"LA_0009 LA_E_{9400001 + number}"
        metadata.append(f"{trial} {codec} ita_tx {attack} {key} notrim {subset}")
        mean = {"target": 3.0, "nontarget": -3.0}.get(key, 1.0 if codec == "alaw" else 0.0)
        scores.append(f"{trial} {mean + (number * 37 % 100 - 50) / 20:.4f}")
    _write(root / "keys/LA/ASV/trial_metadata.txt", metadata)
    _write(root / "keys/LA/ASV/ASVtorch_kaldi/score.txt", scores)
    return root


def make_tiny_df2021(la_mini: Path, root: Path, *, merged: bool) -> Path:
    """24 trials of two compressions, vocoder types and sources; the audio in one folder or in two parts."""
    lines = []
    for number, one in enumerate(recordings(la_mini, "eval", 12, 6)):
        name, codec = f"DF_E_{2900001 + number}", ("nocodec", "low_mp3")[number % 2]
        vocoder = {"-": "bonafide", "A07": "traditional_vocoder"}.get(one.attack, "neural_vocoder_autoregressive")
        source = ("asvspoof", "vcc2020")[number // 2 % 2]
        columns = f"{codec} {source} {one.attack} {one.label} notrim eval {vocoder} - - - -"
        lines.append(f"{one.speaker} {name} {columns}")
        part = "" if merged else f"ASVspoof2021_DF_eval_part0{number % 2}/"
        _copy(one, root / f"{part}ASVspoof2021_DF_eval/flac" / f"{name}.flac")
    _write(root / "keys/DF/CM/trial_metadata.txt", lines)
    return root


def make_tiny_asvspoof5(la_mini: Path, root: Path) -> Path:
    """Train, dev and eval; eval through one codec and none."""
    files = (("train", "T", "train", "flac_T"), ("dev", "D", "dev.track_1", "flac_D"))
    for split, letter, name, folder in (*files, ("eval", "E", "eval.track_1", "flac_E_eval")):
        lines = []
        for number, one in enumerate(recordings(la_mini, split, 8, 4)):
            trial, coded = f"{letter}_{9000000001 + number}", split == "eval" and number % 2
            attack = "bonafide" if one.attack == "-" else one.attack
            codec = "C05 2" if coded else "- -"
            lines.append(f"{letter}_{one.speaker} {trial} F {codec} - AC1 {attack} {one.label} -")
            _copy(one, root / folder / f"{trial}.flac")
        _write(root / f"ASVspoof5.{name}.tsv", lines)
    return root


def make_tiny_in_the_wild(la_mini: Path, root: Path) -> Path:
    """16 .wav files, speakers with spaces in their names."""
    lines = ["file,speaker,label"]
    for number, one in enumerate(recordings(la_mini, "eval", 8, 4)):
        label = "bona-fide" if one.label == "bonafide" else "spoof"
        lines.append(f"{number}.wav,Speaker {number % 4},{label}")
        _copy(one, root / "release_in_the_wild" / f"{number}.wav")
    _write(root / "release_in_the_wild/meta.csv", lines)
    return root


def make_tiny_csv(la_mini: Path, root: Path) -> Path:
    """Train, dev and eval in one list; audio of three formats in two folders."""
    lines = ["file,label,speaker,attack,codec,set,remark"]
    for split in ("train", "dev", "eval"):
        for number, one in enumerate(recordings(la_mini, split, 8, 4)):
            file = f"{split}/{number} a.{('wav', 'flac', 'ogg')[number % 3]}"
            attack = "" if one.attack == "-" else one.attack
            lines.append(f"{file},{one.label},{one.speaker},{attack},{('x', 'y')[number % 2]},{split},none")
            _copy(one, root / file)
    _write(root / "own.csv", lines)
    return root / "own.csv"


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _copy(one: Recording, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == one.path.suffix:
        shutil.copyfile(one.path, path)
    else:
        wave, rate = soundfile.read(one.path)
        soundfile.write(path, wave, rate)


def corpus(root: Path, layout: str = "la2019", **options) -> SpoofingData:
    """The DataModule of a small corpus, with options that suit tests."""
    defaults = {"subset": None, "corpora": None, "published_size": False, "conditions": [], "crop_samples": 16000}
    defaults |= {"random_crop": True, "eval_samples": None, "in_memory": False, "asv_scores": "auto", "batch_size": 4}
    defaults |= {"eval_batch_size": 1, "num_workers": 0, "on_bad_audio": "raise", "max_bad_audio": 0.1}
    defaults |= {"feature_cache": None, "feature_cache_dtype": "float32"}
    return SpoofingData(layout=layout, root=str(root), **(defaults | options))
