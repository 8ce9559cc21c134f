"""A corpus of a few real recordings that tests may break."""

from __future__ import annotations

import shutil
from pathlib import Path

PROTOCOLS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


def make_tiny_la(la_mini: Path, root: Path) -> Path:
    """Copy 24 train, 16 dev and 16 eval trials of la_mini, half of them bona fide, the rest of two attacks."""
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
