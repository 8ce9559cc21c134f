"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference numbers and small real corpora, beside the project."""
    folder = Path(os.environ.get("AUDIOLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.fail(f"{folder} has no reference/ folder: put the shared folder beside the project or set AUDIOLAB_SHARED")
    return folder


@pytest.fixture(scope="session")
def la_mini(shared: Path) -> Path:
    """The small real corpus in the ASVspoof 2019 LA layout."""
    return shared / "data" / "la_mini"


PROTOCOLS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


@pytest.fixture
def tiny_la(la_mini: Path, tmp_path: Path) -> Path:
    """A writable corpus of a few real recordings: 24 train, 16 dev and 16 eval trials, half of them bona fide."""
    root = tmp_path / "tiny_la"
    source = la_mini / "LA"
    for name, number in (("train", 24), ("dev", 16), ("eval", 16)):
        protocol = Path("ASVspoof2019_LA_cm_protocols") / f"ASVspoof2019.LA.cm.{PROTOCOLS[name]}.txt"
        lines = (source / protocol).read_text().splitlines()
        attacks = sorted({line.split()[3] for line in lines} - {"-"})[:2]
        chosen = [line for line in lines if line.endswith("bonafide")][: number // 2]
        for attack in attacks:
            chosen += [line for line in lines if line.split()[3] == attack][: number // 4]
        (root / "LA" / protocol).parent.mkdir(parents=True, exist_ok=True)
        (root / "LA" / protocol).write_text("\n".join(chosen) + "\n")
        flac = root / "LA" / f"ASVspoof2019_LA_{name}" / "flac"
        flac.mkdir(parents=True)
        for line in chosen:
            file = f"{line.split()[1]}.flac"
            shutil.copyfile(source / f"ASVspoof2019_LA_{name}" / "flac" / file, flac / file)
        if name != "train":
            scores = Path("ASVspoof2019_LA_asv_scores") / f"ASVspoof2019.LA.asv.{name}.gi.trl.scores.txt"
            kept = [
                line
                for line in (source / scores).read_text().splitlines()
                if line.split()[1] != "spoof" or line.split()[0] in attacks
            ]
            (root / "LA" / scores).parent.mkdir(exist_ok=True)
            (root / "LA" / scores).write_text("\n".join(kept) + "\n")
    return root
