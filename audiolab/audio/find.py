"""Which audio files are meant: files, folders that are searched, lists of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from audiolab.errors import InputError

# What libsndfile calls differently, and audio that it cannot read: listed, so that it is said rather than passed over.
_FURTHER = (".opus", ".oga", ".aif", ".aifc", ".m4a", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm")


def find_audio(inputs: Iterable[str | Path], *, must_exist: bool = True) -> list[Path]:
    """List audio files: files as given, folders searched through (without hidden files), in order and each once.

    Raises InputError for a folder without audio and, with `must_exist`, for a path that does not exist.
    """
    import soundfile

    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | set(_FURTHER)
    files: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found = [p for p in given.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith(".")]
            if not found:
                raise InputError(
                    f"no audio files in {given}: folders are searched for .wav, .flac, .mp3, .ogg "
                    "and what else libsndfile reads"
                )
            files += sorted(p for p in found if p.is_file())
        elif given.exists() or not must_exist:
            files.append(given)
        else:
            raise InputError(f"{given} does not exist: give audio files or folders with audio files")
    return list(dict.fromkeys(files))


def listed_paths(text: bytes, name: str) -> list[Path]:
    """Return the paths of a list, one a line, or NUL-separated as from `find -print0`; relative to the working folder.

    Raises InputError for a list without any, and for audio.

    >>> [path.as_posix() for path in listed_paths(b"a, b.wav\\r\\n\\nfolder/c.flac", "list.txt")]
    ['a, b.wav', 'folder/c.flac']
    """
    if text[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff") or text[:3] == b"ID3":
        raise InputError(f"{name} is audio, not a list of paths: save it as a file and give the file")
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\0" if b"\0" in text else b"\n")
    paths = [Path(line.rstrip(b"\r").decode("utf-8", "surrogateescape")) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{name} names no files: give one path a line")
    return paths


def missing_files(paths: Iterable[str]) -> list[int]:
    """Return which of many files are not there, by their number; every folder is listed only once."""
    listed: dict[str, set[str]] = {}
    missing = []
    for index, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            listed[folder] = names_in(Path(folder))
        if name not in listed[folder]:
            missing.append(index)
    return missing


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; none where there is no such folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}
