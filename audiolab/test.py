"""Evaluate a trained run: python -m audiolab.test outputs/<task>/<name> data=<corpus> data.root=<folder>"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from audiolab import config as conf
from audiolab.cluster import num_processes, rank
from audiolab.command import run_command
from audiolab.errors import InputError


def main(argv: Sequence[str]) -> None:
    """Evaluate the best checkpoint and print the headline metrics, one a line."""
    parser = argparse.ArgumentParser(prog="python -m audiolab.test", description=__doc__)
    parser.add_argument("run", metavar="outputs/<task>/<name>", help="the run folder")
    overrides = {"nargs": "*", "default": [], "metavar": "option=value"}
    parser.add_argument("overrides", **overrides, help="data=<group> data.<option>=<value> trainer.<option>=<value>")
    parser.add_argument(
        "--set", dest="sets", action="append", help="the set to evaluate (default: the data's test sets)"
    )
    parser.add_argument("-o", "--out", help="folder for scores and plots (default: <run>/tests/<data or sets>)")
    arguments = parser.parse_intermixed_args(argv)
    test(arguments.run, arguments.overrides, sets=arguments.sets, out=arguments.out)


def test(
    run_folder: str, overrides: Sequence[str] = (), *, sets: Sequence[str] | None = None, out: str | None = None
) -> dict[str, dict[str, float]]:
    """Evaluate a run on sets of a corpus; returns the metrics by set.

    `overrides` choose the corpus and its options as on the command line of `audiolab.run`. Scores, plots and metrics
    are written to `out`, by default `tests/<data>` inside the run folder.
    """
    from pathlib import Path

    from audiolab.folder import RunFolder
    from audiolab.reporting.scores import check_writable

    run = RunFolder.open(run_folder)
    overrides = conf.quoted(overrides)
    config = test_config(run.config, overrides)
    folder = Path(out) if out else run.path / "tests" / _label(config["data"], overrides, sets)
    check_writable(folder)
    from audiolab import build, engine
    from audiolab.launch import in_processes
    from audiolab.results import print_breakdowns, print_headline, print_intervals

    evaluate = partial(engine.evaluate_run, add=out is None)
    results = in_processes(evaluate, num_processes(config["trainer"]), str(run.path), config, sets, str(folder))
    if rank() == 0:
        task = build.locate(config["module"]["_target_"])
        print_breakdowns(results, task.headline)
        print_intervals(results, task)
        print_headline(results, task)
        print(f"scores and plots: {folder}")
    return results


def _label(data: dict[str, Any], overrides: Sequence[str], sets: Sequence[str] | None) -> str:
    """Name an evaluation after its data, or after the `sets` of the run's own data that were asked for.

    Other data, or other options of how it is read, have another name.
    """
    from pathlib import Path

    root = conf.value_of(overrides, "data.root")
    own = "-".join(sets) if sets and not root else "own"
    chosen = (conf.value_of(overrides, "data") or own).replace("/", "-")
    where = {**data, "root": str(Path(data["root"]).expanduser().resolve()) if data.get("root") else None}
    digest = hashlib.blake2b(json.dumps(where, sort_keys=True).encode(), digest_size=3).hexdigest()
    return "-".join([chosen, *([Path(root).name] if root else []), digest])


def test_config(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a run's config with another data section, or other options of its own one, and other trainer options."""
    from omegaconf import OmegaConf

    from audiolab import build

    config = copy.deepcopy(config)
    parsed = conf.parse(overrides)
    for override in parsed:
        if override.key_or_group.split(".")[0] not in ("data", "trainer"):
            raise InputError(f"{override.input_line}: a test takes data=, data.<option>= and trainer.<option>= only")
    if any(override.key_or_group == "data" for override in parsed):
        own, config["data"] = config["data"], conf.compose([f"task={config['task']}", *overrides])["data"]
        given = {override.key_or_group for override in parsed}
        for option in build.locate(config["data"]["_target_"]).options_of_the_run:
            if option in own and f"data.{option}" not in given:
                config["data"][option] = own[option]
        overrides = [text for text in overrides if text.startswith("trainer")]
        parsed = conf.parse(overrides)
    plain = OmegaConf.create(config)
    known = conf.option_names(config)
    for override in parsed:
        key = override.key_or_group
        if key == "trainer":
            plain["trainer"] = conf.compose([f"task={config['task']}", override.input_line or ""])["trainer"]
            continue
        if key not in known:
            close = conf.nearest(key, known)
            raise InputError(
                f"{key} is not an option of this run; "
                + (f"did you mean {close[0]}?" if close else f"see {key.split('.')[0]}: in its config.yaml")
            )
        OmegaConf.update(plain, key, override.value())
    config = OmegaConf.to_container(plain)  # type: ignore[assignment]
    build.check(config["data"], "data", given=("seed", "augment"))
    return config


if __name__ == "__main__":
    run_command(main)
