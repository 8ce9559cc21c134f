"""Apply a trained run to audio files: python -m audiolab.predict outputs/<task>/<name> a.wav folder/ -o out/

The run folder comes first; its task adds options of its own: python -m audiolab.predict <run> --help. The same command
again judges only what is new, changed, or could not be used before. Exit code 2: some file could not be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolab.command import run_command
from audiolab.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audiolab.training.task import Known, Task


def main(argv: Sequence[str]) -> int:
    """Print one line a file and write the predictions; returns 2 when a file could not be used."""
    parents = [_task_options(_task_class(argv[0]))] if argv and not argv[0].startswith("-") else []
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m audiolab.predict", description=__doc__, formatter_class=raw, parents=parents
    )
    parser.add_argument("run", help="the run folder")
    parser.add_argument(
        "inputs", nargs="*", help="audio files, folders that are searched for them, or - for a list on standard input"
    )
    parser.add_argument(
        "--list", action="append", default=[], help="a file with one path a line, relative to the working folder"
    )
    parser.add_argument("-o", "--out", help="folder for what is written (default: <run>/predictions)")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="of the predictions (default csv)")
    parser.add_argument("--batch-size", type=int, help="windows of a recording at once (default: the task's)")
    parser.add_argument("--overwrite", action="store_true", help="forget the predictions in the folder and start anew")
    options = vars(parser.parse_intermixed_args(argv))
    names = ("run", "inputs", "list", "out", "format", "batch_size", "overwrite")
    run, inputs, lists, out, form, batch_size, overwrite = map(options.pop, names)
    files = gather_files(inputs, lists)
    rows = _apply(run, files, out, form, batch_size, overwrite, options, verbose=True)
    return 2 if any(row["status"] != "ok" for row in rows) else 0


def predict(
    run_folder: str | Path,
    inputs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    form: Literal["csv", "jsonl"] = "csv",
    batch_size: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Apply a run's best weights to audio files and folders; returns one dict a file, in order, as in the output.

    `status` is `ok` or `error`, `error` the sentence about a file that could not be used. `options` are those of the
    task, `batch_size` the number of windows of a recording at once (None: the task's). What the output folder (by
    default `<run>/predictions`) holds of the same run and options is not judged again. Raises InputError for inputs
    that do not exist, options that do not fit, and output made with others.
    """
    from audiolab.audio.find import find_audio

    return _apply(run_folder, find_audio(inputs), out, form, batch_size, overwrite, options, verbose=False)


def gather_files(inputs: Sequence[str], lists: Sequence[str]) -> list[Path]:
    """Return the audio files that the command line means; `-` is a list on standard input.

    Raises InputError where there is none, and for a path on the command line that does not exist; paths in lists may be
    missing: that becomes a row of the output.
    """
    from audiolab.audio.find import find_audio, listed_paths

    files = []
    for given in inputs:
        if given == "-":
            files += find_audio(listed_paths(sys.stdin.buffer.read(), "standard input"), must_exist=False)
        else:
            files += find_audio([given])
    for name in lists:
        try:
            text = Path(name).read_bytes()
        except OSError as error:
            raise InputError(
                f"--list {name} cannot be read ({error.strerror}): give a file with one path a line"
            ) from None
        files += find_audio(listed_paths(text, name), must_exist=False)
    if not files:
        raise InputError("no input: give audio files, folders, --list <file>, or - for a list on standard input")
    return list(dict.fromkeys(files))


def _apply(
    run_folder: str | Path,
    files: list[Path],
    out: str | Path | None,
    form: Literal["csv", "jsonl"],
    batch_size: int | None,
    overwrite: bool,
    options: dict[str, Any],
    verbose: bool,
) -> list[dict[str, Any]]:
    import torch

    from audiolab import engine, out_of_memory
    from audiolab.audio.recording import Recording
    from audiolab.folder import RunFolder
    from audiolab.reporting.predictions import PredictionFile
    from audiolab.training.faults import explained
    from audiolab.training.task import Known

    run = RunFolder.open(run_folder)
    task = engine.load_task(run)
    defaults = vars(_task_options(type(task)).parse_args([]))
    if unknown := sorted(set(options) - set(defaults)):
        raise InputError(f"predict has no option {unknown[0]}: this task has {', '.join(defaults)}")
    options = defaults | options
    batch_size = task.prediction_batch_size if batch_size is None else batch_size
    known = Known((run.results or {}).get("dev", {}), run.calibration)
    legend = task.prediction_legend(known, batch_size=batch_size, **options)
    settings = {"run": _digest(run.config["module"], known, task), **options}
    folder = Path(out) if out else run.path / "predictions"
    predictions = PredictionFile(folder, task.prediction_columns, settings, form, overwrite=overwrite)
    files = predictions.without_own(files)
    todo = predictions.begin(files)
    names = _names(map(Path, predictions.rows), files)

    def show(line: str) -> None:
        if verbose:
            print(line, flush=True)

    if len(todo) < len(files):
        show(f"{len(files) - len(todo)} of {len(files)} files are in {predictions.path} already")
    if todo:
        show(legend)
    task.to("cuda" if torch.cuda.is_available() else "cpu")
    width = min(48, max((len(_shown(path)) for path in todo), default=0))
    try:
        with explained(folder, "The same command goes on."), _progress(todo, show, verbose) as (advance, line_above):
            for path in todo:
                scratch = folder / f".unfinished-{names[path]}"
                shutil.rmtree(scratch, ignore_errors=True)  # of a killed command
                try:
                    recording = Recording(path, on_read=advance(path))
                    with out_of_memory.told(out_of_memory.in_prediction(path, batch_size, task.device)):
                        given = {"scratch": scratch, "batch_size": batch_size, **options}
                        found = task.predict_recording(recording, known, **given)
                    made = {name.replace("*", names[path]): content for name, content in found.files.items()}
                    for name, content in made.items():
                        _write(folder / name, content)
                except InputError as error:
                    predictions.add(path, {}, error=str(error))
                    line_above(f"{_shown(path):<{width}}  cannot be used: {error}")
                    continue
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
                predictions.add(path, found.values, files=list(made))
                line_above(f"{_shown(path):<{width}}  {found.sentence}")
    except KeyboardInterrupt:
        show(f"stopped: the same command goes on with what {predictions.path} lacks")
        raise
    rows = predictions.finish()
    num_errors = sum(row["status"] != "ok" for row in rows)
    unusable = f", {num_errors} of them could not be used" if num_errors else ""
    show(f"{len(rows)} file{'s' * (len(rows) != 1)}{unusable}: {predictions.path}")
    return rows


def _task_class(run_folder: str) -> type[Task]:
    from audiolab import build
    from audiolab.folder import RunFolder

    return build.locate(RunFolder.open(run_folder).config["module"]["_target_"])


def _task_options(task_class: type[Task]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    task_class.add_predict_options(parser.add_argument_group("options of this task"))
    return parser


def _digest(module: dict[str, Any], known: Known, task: Task) -> str:
    """Identify what the numbers depend on beside the options: weights, module options, threshold and calibration."""
    import torch

    facts = [module, known.dev, known.calibration]
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for name, tensor in task.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _progress(
    files: Sequence[Path], show: Callable[[str], None], verbose: bool
) -> Iterator[tuple[Callable[[Path], Callable[[float], None]], Callable[[str], None]]]:
    """Show a bar with the time left, by bytes, in a terminal; yields what makes a file's `on_read`, and a printer."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    sizes = {path: max(1, path.stat().st_size) if path.is_file() else 1 for path in files}
    columns = (TextColumn("file {task.fields[number]} of {task.fields[of]}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)
    shown = {"console": console, "disable": not console.is_terminal, "transient": True}
    # Lines go above the bar in one terminal, and to standard output where that is a file or a pipe.
    same_terminal = verbose and console.is_terminal and sys.stdout.isatty()
    with Progress(*columns, **shown, redirect_stdout=False, redirect_stderr=False) as progress:
        bar = progress.add_task("", total=sum(sizes.values()), number=0, of=len(files))
        done = number = 0

        def advance(path: Path) -> Callable[[float], None]:
            nonlocal done, number
            begun, done, number = done, done + sizes[path], number + 1
            progress.update(bar, completed=begun, number=number)
            return lambda share: progress.update(bar, completed=begun + share * sizes[path])

        def line_above(line: str) -> None:
            if same_terminal:
                console.print(line)
            else:
                show(line)

        yield advance, line_above


def _write(path: Path, content: str | Figure | Path) -> None:
    from audiolab.reporting.scores import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        write_text(path, content)
    elif isinstance(content, Path):
        content.replace(path)
    else:
        content.savefig(path)


def _names(known: Iterable[Path], files: Iterable[Path]) -> dict[Path, str]:
    """Name what belongs to each recording: its name without suffix, told apart where another one has it too."""
    paths = list(dict.fromkeys([*known, *files]))
    stems = {path: path.stem[:80].replace(";", "_") for path in paths}
    number = Counter(stem.casefold() for stem in stems.values())
    digests = {path: hashlib.blake2b(os.fsencode(path), digest_size=3).hexdigest() for path in paths}
    return {path: stem if number[stem.casefold()] == 1 else f"{stem}-{digests[path]}" for path, stem in stems.items()}


def _shown(path: Path) -> str:
    """Return a path as a terminal can show it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


if __name__ == "__main__":
    run_command(main)
