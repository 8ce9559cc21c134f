"""What came out of a run or a test: metrics.json and the list of bad audio, and the tables that a user reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.markup import escape

from audiolab import build as builder
from audiolab.folder import RunFolder
from audiolab.reporting.scores import write_text
from audiolab.reporting.tables import breakdown_tables, console, headline_lines, results_table
from audiolab.tracking import waits_for_wandb
from audiolab.training.data import SpeechData
from audiolab.training.task import Task


def write_results(folder: Path, results: dict[str, dict[str, float]], *, add: bool = False) -> None:
    """Write metrics.json of an evaluation outside a run; with `add` the other sets that it holds already stay."""
    path = folder / "metrics.json"
    before = json.loads(path.read_text(encoding="utf-8")) if add and path.is_file() else {}
    write_text(path, json.dumps({**before, **results}, indent=1))


def write_bad_audio(data: SpeechData, folder: Path) -> None:
    """List the files that were left out, if any, and say how many."""
    if data.bad_audio.skipped:
        data.bad_audio.write_list(folder / "bad_audio.csv")
        print(f"{len(data.bad_audio.skipped)} unreadable files were left out: {folder / 'bad_audio.csv'}")


def report(run: RunFolder) -> None:
    """Print the result tables of a finished run and what to do next."""
    results = run.results
    if results is None:
        return
    terminal, path = console(), shlex.quote(str(run.path))
    task = builder.locate(run.config["module"]["_target_"])
    print_breakdowns(results, task.headline)
    terminal.print(results_table(results, task.headline, escape(f"{run.config['task']}: {run.path}")))
    terminal.print(
        "\n".join(f"{name:<8}{run.path / name}" for name in ("scores", "plots", "audio") if (run.path / name).is_dir()),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if waits_for_wandb(run.path):
        upload = f"wandb sync {path}/wandb/offline-run-*"
        terminal.print(f"wandb   {upload}          uploads it", highlight=False, markup=False, soft_wrap=True)
    terminal.print(
        "next    "
        f"python -m audiolab.predict {path} my.wav          {task.prediction_in_words}\n"
        f"        python -m audiolab.test {path} data=<set> data.root=<folder>\n"
        f"        {run.config.get('next_step') or 'python -m audiolab.run            lists tasks and recipes'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def print_breakdowns(results: dict[str, dict[str, float]], headline: dict[str, str]) -> None:
    """Print the tables by attack, codec, speaker ... of every set."""
    terminal = console()
    for set_name, metrics in results.items():
        for table in breakdown_tables(set_name, metrics, headline, terminal.width):
            terminal.print(table)


def print_intervals(results: dict[str, dict[str, float]], task: type[Task]) -> None:
    """Print the headline metrics of all sets as one table, where one of them has an interval: plain lines have none."""
    if any(f"{name}_low" in metrics for metrics in results.values() for name in task.headline):
        console().print(results_table(results, task.headline, "with 95 % intervals"))


def print_headline(results: dict[str, dict[str, float]], task: type[Task]) -> None:
    """Print the headline metrics as plain lines, one a line, under the set's name where there are several."""
    for set_name, metrics in results.items():
        if len(results) > 1:
            print(f"{set_name}:")
        for line in headline_lines(metrics, task.headline):
            print(line)
