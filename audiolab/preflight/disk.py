"""Whether the outputs' disk takes the checkpoints, and whether the folder can be written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from audiolab.preflight.findings import Finding, size

GROUP = "disk"
_TIGHT = 2.0  # warn where less than this many times the need is free


def check_disk(folder: Path, needed_mb: float | None, free_mb: float, writable: bool) -> Finding:
    """Compare what a run writes with what is free; `needed_mb` is None where the model could not be built.

    >>> check_disk(Path("outputs"), 6000.0, 4000.0, writable=True).state
    'problem'
    >>> check_disk(Path("outputs"), 6000.0, 8000.0, writable=True).found
    'checkpoints take up to 5.9 GiB, 7.8 GiB are free in outputs, which leaves little room'
    """
    if not writable:
        return Finding(GROUP, "outputs", "problem", f"{folder} cannot be written", "choose another one with outputs=")
    if needed_mb is None:
        return Finding(GROUP, "outputs", "ok", f"{folder} can be written, {size(free_mb)} are free")
    found = f"checkpoints take up to {size(needed_mb)}, {size(free_mb)} are free in {folder}"
    remedy = "free some, choose another disk with outputs=, or keep fewer checkpoints"
    if free_mb < needed_mb:
        return Finding(GROUP, "outputs", "problem", f"{found}, which does not suffice", remedy)
    if free_mb < _TIGHT * needed_mb:
        return Finding(GROUP, "outputs", "warning", f"{found}, which leaves little room", remedy)
    return Finding(GROUP, "outputs", "ok", found)


def examine_disk(outputs: Path, run_folder: Path, needed_mb: float | None) -> Finding:
    """Check the disk of the outputs; what the run's own checkpoints take already counts as free."""
    there = next(path for path in (outputs, *outputs.absolute().parents) if path.exists())
    if not there.is_dir():
        found = f"{there} is a file, so {outputs} cannot be a folder"
        return Finding(GROUP, "outputs", "problem", found, "choose another one with outputs=")
    own_mb = sum(path.stat().st_size for path in run_folder.glob("checkpoints/*.ckpt")) / 2**20
    return check_disk(outputs, needed_mb, shutil.disk_usage(there).free / 2**20 + own_mb, _is_writable(there))


def examine_space(folder: Path, needed_mb: float, option: str) -> Finding:
    """Check the disk for a corpus that is written to `folder`, chosen by `option`; what lies there counts as free."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        found = f"{there} is a file, so {folder} cannot be a folder"
        return Finding(GROUP, "space", "problem", found, f"choose another one with {option}=")
    if not _is_writable(there):
        return Finding(GROUP, "space", "problem", f"{there} cannot be written", f"choose another folder with {option}=")
    own_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    return check_space(folder, needed_mb, shutil.disk_usage(there).free / 2**20 + own_mb, option)


def check_space(folder: Path, needed_mb: float, free_mb: float, option: str) -> Finding:
    """Compare what a corpus takes with what is free.

    >>> check_space(Path("mixtures"), 6000.0, 4000.0, "data.prepared").found
    'about 5.9 GiB will be written to mixtures and 3.9 GiB are free, which does not suffice'
    """
    found = f"about {size(needed_mb)} will be written to {folder} and {size(free_mb)} are free"
    remedy = f"free some, or choose another disk with {option}="
    if free_mb < needed_mb:
        return Finding(GROUP, "space", "problem", f"{found}, which does not suffice", remedy)
    if free_mb < _TIGHT * needed_mb:
        return Finding(GROUP, "space", "warning", f"{found}, which leaves little room", remedy)
    return Finding(GROUP, "space", "ok", found)


def _is_writable(folder: Path) -> bool:
    """Try: permissions alone do not tell on a read-only or full file system."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError:
        return False
    return True
