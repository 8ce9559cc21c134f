"""Fuse the scores of several runs, with weights fitted on dev: python -m audiolab.fuse <run> <run> ... -o out/"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolab.command import run_command
from audiolab.errors import InputError
from audiolab.score import unique_names

if TYPE_CHECKING:
    import pandas as pd

    from audiolab.folder import RunFolder

FUSION = "fusion"


def main(argv: Sequence[str]) -> int:
    """Print each run and the fusion on every test set that all runs have; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m audiolab.fuse", description=__doc__)
    parser.add_argument("runs", nargs="+", help="finished run folders of one task, two or more")
    parser.add_argument("-o", "--out", help="folder for scores, plots and weights (default: beside the first run)")
    arguments = parser.parse_args(argv)
    fuse(arguments.runs, out=arguments.out)
    return 0


def fuse(runs: Sequence[str | Path], *, out: str | Path | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Fit the fusion on the development scores of finished runs and apply it; returns the metrics by set and system.

    Sets are the runs' own test sets and those of `audiolab.test` (`tests/<data>/<set>`), as far as all runs have them.
    Raises InputError for runs of different tasks or of different trials.
    """
    from audiolab import build
    from audiolab.reporting.plots import save_figure
    from audiolab.reporting.scores import check_writable, read_scores, write_text
    from audiolab.reporting.tables import console, systems_table
    from audiolab.results import print_headline, write_results
    from audiolab.training.calibration import fitted_on
    from audiolab.training.evaluation import write_set

    if len(runs) < 2:
        raise InputError(f"there is one run, {runs[0]}, and nothing to fuse it with: give two or more")
    names = unique_names([Path(run).resolve() for run in runs])
    if FUSION in names:
        raise InputError(f"a run is named {FUSION!r}, as the result will be: rename its folder")
    folders = dict(zip(names, map(_finished, runs), strict=True))
    first = next(iter(folders.values()))
    for name, run in folders.items():
        if run.config["task"] != first.config["task"]:
            raise InputError(
                f"{name} is a run of {run.config['task']}, {names[0]} of {first.config['task']}: fuse runs of one task"
            )
    folder = Path(out) if out else first.path.parent / f"fused_{_joint_name(folders)}"
    check_writable(folder)
    task = build.locate(first.config["module"]["_target_"])

    dev = {name: {key: read_scores(path) for key, path in dev_sets(run).items()} for name, run in folders.items()}
    fusion = task.fusion(_pooled(dev))
    if fusion is None:
        raise InputError(f"the task {first.config['task']} has no fusion of systems")
    paths = {name: evaluated_sets(run) for name, run in folders.items()}
    common = [key for key in paths[names[0]] if all(key in others for others in paths.values())]
    if not common:
        raise InputError(f"{', '.join(names)} have no test set in common: evaluate them with python -m audiolab.test")
    sets = {}
    for key in common:
        tables = {name: read_scores(paths[name][key]) for name in names}
        require_same_rows(tables, key)
        if not fitted_on(first.calibration, tables[names[0]]):  # a later test of dev
            sets[key] = tables

    write_text(folder / "weights.json", json.dumps({**fusion, "fitted_on": sorted(dev[names[0]])}, indent=1))
    for line in task.fusion_in_words(fusion):
        print(line)
    results = {}
    for key, tables in sets.items():
        label = key.replace("/", "-")
        systems = {**tables, FUSION: task.fused(tables, fusion)}
        for name, table in systems.items():
            table.attrs["set"] = f"{key} {name}"  # what warnings and titles call it
        results[key] = {name: task.metrics(table) for name, table in systems.items()}
        write_set(folder, label, task, systems[FUSION], results[key][FUSION])
        for plot, figure in task.comparison(systems).items():
            save_figure(figure, folder / "plots" / f"{label}_{plot}_all.png")
        console().print(systems_table(results[key], task.headline, key))
    write_results(folder, results)
    for key, systems in results.items():
        print(f"{key}, fusion:")
        print_headline({FUSION: systems[FUSION]}, task)
    print(f"scores, plots and weights: {folder}")
    return results


def _joint_name(folders: Mapping[str, RunFolder]) -> str:
    """Name a fusion after its runs: another set of runs is another name, however alike their folders' names are."""
    digest = hashlib.blake2b("\n".join(str(run.path.resolve()) for run in folders.values()).encode(), digest_size=3)
    return f"{'+'.join(folders).replace('/', '-')[:80]}_{digest.hexdigest()}"


def dev_sets(run: RunFolder) -> dict[str, Path]:
    """Return the score files of a run's development sets, by name.

    Raises InputError for a run without a calibration, which names them.
    """
    calibration = run.calibration
    if calibration is None:
        raise InputError(
            f"{run.path} has no checkpoints/calibration.json, which names its development sets: it is of a task "
            "without calibration or was made before there was one; train it again"
        )
    return {name: _dev_scores(run, name, calibration) for name in sorted(calibration["sets"])}


def _dev_scores(run: RunFolder, name: str, calibration: Mapping[str, Any]) -> Path:
    """Return the run's own scores of a development set; a run that was handed over has those of a later test."""
    from audiolab.reporting.scores import read_scores
    from audiolab.training.calibration import fitted_on

    own = run.path / "scores" / f"{name}.csv"
    if not run.is_handed_over or own.is_file():
        return own
    for path in sorted((run.path / "tests").glob(f"*/scores/{name}.csv")):
        if fitted_on(calibration, read_scores(path)):
            return path
    raise InputError(
        f"{run.path} was handed over without scores of {name}, on which weights are fitted: "
        f"python -m audiolab.test {run.path} data=<set> data.root=<folder> --set {name}"
    )


def evaluated_sets(run: RunFolder) -> dict[str, Path]:
    """Return the score files of a run's test sets and of its later tests, as `<set>` and `<data>/<set>`."""
    dev = dev_sets(run)
    own = {path.stem: path for path in sorted((run.path / "scores").glob("*.csv")) if path.stem not in dev}
    later = {f"{p.parents[1].name}/{p.stem}": p for p in sorted((run.path / "tests").glob("*/scores/*.csv"))}
    return {**own, **later}


def require_same_rows(tables: Mapping[str, pd.DataFrame], set_name: str) -> None:
    """Raise InputError unless all systems have the same rows with the same truth."""
    (first_name, first), *others = tables.items()
    for name, table in others:
        differing = sorted(set(first["id"]) ^ set(table["id"]))
        if differing:
            raise InputError(
                f"{set_name}: {first_name} and {name} were not judged on the same trials, {len(differing)} are in one "
                f"of them only, the first is {differing[0]}: fuse runs of the same data"
            )
        if (first["label"].to_numpy() != table["label"].to_numpy()).any():
            raise InputError(f"{set_name}: {first_name} and {name} have different labels: fuse runs of the same data")


def _finished(path: str | Path) -> RunFolder:
    from audiolab.folder import RunFolder

    run = RunFolder.open(path)
    if run.results is None and not run.is_handed_over:
        raise InputError(f"{path} is not finished: python -m audiolab.resume {path}")
    return run


def _pooled(dev: Mapping[str, Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Put the development sets of each system below one another, the same rows for all."""
    import pandas as pd

    first_name, first = next(iter(dev.items()))
    for name, tables in dev.items():
        if set(tables) != set(first):
            raise InputError(
                f"{name} was developed on {', '.join(tables)}, {first_name} on {', '.join(first)}: the weights need "
                "the same development trials"
            )
    for key in first:
        require_same_rows({name: tables[key] for name, tables in dev.items()}, key)
    return {name: pd.concat(list(tables.values()), ignore_index=True) for name, tables in dev.items()}


if __name__ == "__main__":
    run_command(main)
