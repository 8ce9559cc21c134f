"""Judge bare score files of any system: python -m audiolab.score task=asvspoof scores.txt protocol.txt"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiolab import config as conf
from audiolab.command import run_command
from audiolab.errors import InputError

if TYPE_CHECKING:
    from audiolab.training.task import Task

USAGE = """\
python -m audiolab.score task=<task> SCORES [PROTOCOL ...] [-o FOLDER]             one system
python -m audiolab.score task=<task> SCORES SCORES ... --protocol PROTOCOL          several, compared

No model, GPU or audio is needed. Files are recognised by their columns; what they were read as is printed.
python -m audiolab.score task=<task> --help lists the files and options of a task.
"""


def main(argv: Sequence[str]) -> int:
    """Print tables and headline metrics of score files; returns the exit code."""
    chosen = [word.partition("=")[2] for word in argv if word.startswith("task=")]
    if not chosen:
        if not argv or {"-h", "--help"} & set(argv):
            print(USAGE, end="")
            return 0
        slips = [word for word in argv if "=" in word and conf.nearest(word.partition("=")[0], ["task"])]
        hint = f"did you mean task= instead of {slips[0].partition('=')[0]}=?" if slips else "give task= with one of "
        raise InputError(f"no task is chosen; {hint}{'' if slips else ', '.join(_tasks())}")
    task = task_class(chosen[-1])
    arguments = _parser(chosen[-1], task).parse_args([word for word in argv if not word.startswith("task=")])
    given = {name: value for name, value in vars(arguments).items() if name not in ("files", "out") and value}
    files = list(task.scoring_files)
    if "protocol" in given:
        scores = arguments.files
    else:
        scores, more = arguments.files[:1], arguments.files[1:]
        if len(more) > len(files):
            raise InputError(
                f"{len(arguments.files)} files are more than scores and {', '.join(files)}: to compare several systems "
                "name their trial list with --protocol"
            )
        for name, value in zip(files, more, strict=False):
            if given.setdefault(name.replace("-", "_"), value) != value:
                raise InputError(f"{name} is given twice: {value} and --{name} {given[name.replace('-', '_')]}")
    score(chosen[-1], scores, out=arguments.out, **given)
    return 0


def score(
    task_name: str, scores: Sequence[str | Path], *, out: str | Path | None = None, **given: str
) -> dict[str, dict[str, float]]:
    """Judge score files; returns the metrics by system.

    `given` are the files and options of the task (`protocol`, `asv` ... for asvspoof). Metrics, tables, plots and
    scores in our own format are written to `out`, by default a folder beside the (first) score file.
    """
    from audiolab.reporting.plots import save_figure
    from audiolab.reporting.scores import check_writable
    from audiolab.reporting.tables import console, systems_table
    from audiolab.results import print_breakdowns, print_headline, write_results
    from audiolab.training.evaluation import write_set

    task = task_class(task_name)
    systems = dict(zip(unique_names(scores), map(Path, scores), strict=True))
    first = next(iter(systems.values()))
    folder = Path(out) if out else first.parent / (f"{first.stem}_scored" if len(systems) == 1 else "systems_scored")
    check_writable(folder)
    tables = task.read_systems(systems, **given)
    sources = {file: what for table in tables.values() for file, what in table.attrs.get("sources", {}).items()}
    for file, what in sources.items():
        print(f"{file}: {what}")
    results = {name: task.metrics(table) for name, table in tables.items()}
    for name, table in tables.items():
        write_set(folder, name, task, table, results[name])
    if len(tables) > 1:
        for name, figure in task.comparison(tables).items():
            save_figure(figure, folder / "plots" / f"{name}.png")
    write_results(folder, results)
    print_breakdowns(results, task.headline)
    console().print(systems_table(results, task.headline, task_name))
    print_headline(results, task)
    print(f"metrics, tables, plots and scores: {folder}")
    return results


@functools.cache
def task_class(name: str) -> type[Task]:
    """Return the class of a task; InputError with the nearest name for one that does not exist."""
    from audiolab import build

    config = conf.compose([f"task={name}"])
    return build.locate(config["module"]["_target_"])


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """Name files after their stem, with the folder where two have the same; InputError for a file given twice.

    >>> unique_names(["a/scores.txt", "b/scores.txt", "c.txt"])
    ['a-scores', 'b-scores', 'c']
    """
    files = [Path(path) for path in paths]
    for number, path in enumerate(files):
        if path in files[:number]:
            raise InputError(f"{path} is given twice: give every system once")
    names = [path.stem for path in files]
    for depth in range(2, max((len(path.parts) for path in files), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = [
            "-".join([*path.parts[-depth:-1], path.stem]).replace("/", "") if names.count(name) > 1 else name
            for name, path in zip(names, files, strict=True)
        ]
    return names if len(set(names)) == len(names) else [f"{number}-{name}" for number, name in enumerate(names, 1)]


def _parser(name: str, task: type[Task]) -> argparse.ArgumentParser:
    order = " ".join(f"[{file}" for file in task.scoring_files)
    parser = argparse.ArgumentParser(
        prog=f"python -m audiolab.score task={name}",
        usage=f"%(prog)s scores {order}{']' * len(task.scoring_files)} [options]\n"
        "       %(prog)s scores scores ... --protocol PROTOCOL [options]",
        description="Judge score files of any system; files are recognised by their columns. With --protocol all "
        "other files are systems to compare, else the first is the system and the others follow in the order above.",
    )
    parser.add_argument("files", nargs="+", help="score files, one a system")
    for option, text in {**task.scoring_files, **task.scoring_options}.items():
        parser.add_argument(f"--{option}", help=text)
    parser.add_argument("-o", "--out", help="folder for metrics, tables and plots (default: beside the scores)")
    return parser


def _tasks() -> list[str]:
    return conf.choices("task", [conf.config_folder()])


if __name__ == "__main__":
    run_command(main)
