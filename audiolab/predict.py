"""Apply a trained run to audio files: python -m audiolab.predict outputs/<task>/<name> a.wav folder/ -o out/"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from audiolab.command import run_command
from audiolab.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Print one line a file and write predictions.csv; returns 2 when a file could not be used."""
    parser = argparse.ArgumentParser(prog="python -m audiolab.predict", description=__doc__)
    parser.add_argument("run", help="the run folder")
    parser.add_argument("inputs", nargs="+", help="audio files, or folders that are searched for them")
    parser.add_argument("-o", "--out", help="folder for predictions.csv (default: <run>/predictions)")
    arguments = parser.parse_args(argv)
    _, errors = predict(arguments.run, arguments.inputs, out=arguments.out)
    for error in errors:
        print(f"audiolab: {error}", file=sys.stderr)
    return 2 if errors else 0


def predict(
    run_folder: str, inputs: Sequence[str | Path], *, out: str | Path | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Apply a run's best weights to audio files; returns one dict a file, and the sentences about unreadable ones."""
    import torch
    from rich.progress import track

    from audiolab import engine
    from audiolab.audio.io import AudioError, read_audio
    from audiolab.folder import RunFolder
    from audiolab.reporting.scores import write_text

    files = find_audio(inputs)
    run = RunFolder.open(run_folder)
    task = engine.load_task(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task.to(device)
    known = (run.results or {}).get("dev", {})
    results, errors = [], []
    for path in track(files, description="files", transient=True, disable=not sys.stderr.isatty()):
        try:
            waveform, sample_rate = read_audio(path)
            with torch.inference_mode():
                found = task.infer(torch.from_numpy(waveform).to(device), sample_rate)
        except AudioError as error:
            errors.append(str(error))
            continue
        except InputError as error:
            errors.append(f"{path}: {error}")
            continue
        found = {"file": str(path), **task.interpret(found, known)}
        if not results:
            print("  ".join(found))
        results.append(found)
        print("  ".join(str(value) if not isinstance(value, float) else f"{value:.4f}" for value in found.values()))
    if results:
        folder = Path(out) if out else run.path / "predictions"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(results[0]))
        writer.writeheader()
        writer.writerows(results)
        write_text(folder / "predictions.csv", text.getvalue())
        print(f"{len(results)} files: {folder / 'predictions.csv'}")
    return results, errors


def find_audio(inputs: Iterable[str | Path]) -> list[Path]:
    """List audio files: files as given, folders searched through, in order and each once.

    Raises InputError for a path that does not exist and when nothing is found.
    """
    import soundfile

    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".oga", ".aif", ".aifc"}
    files: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            files += sorted(p for p in given.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        elif given.is_file():
            files.append(given)
        else:
            raise InputError(f"{given} does not exist: give audio files or folders with audio files")
    if not files:
        raise InputError(
            f"no audio files in {', '.join(map(str, inputs))}: folders are searched for .wav, .flac, .mp3, .ogg "
            "and what else libsndfile reads"
        )
    return list(dict.fromkeys(files))


if __name__ == "__main__":
    run_command(main)
