"""Make a corpus ready: python -m audiolab.prepare task=separation data=separation/aishell3 data.root=/corpora/AISHELL-3

Reads the corpus at data.root, writes what runs are trained on to another folder, and says how to train.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from audiolab import config as conf
from audiolab.command import run_command
from audiolab.errors import InputError, Preempted, RunError
from audiolab.training.signals import stop_signals

if TYPE_CHECKING:
    from audiolab.training.preparation import Facts, Preparation

DESCRIPTION = """\
Some corpora are made of another one before the first run, such as mixtures of talkers. Stopped at any moment, the same
command goes on; when all is there it says so.
"""


def main(argv: Sequence[str]) -> int:
    """Prepare the data of a composed config; returns 0 when it is ready."""
    parser = argparse.ArgumentParser(
        prog="python -m audiolab.prepare",
        usage="%(prog)s task=<task> data=<task>/<corpus> data.root=<folder> [option=value ...] [--config-dir DIR]",
        description=DESCRIPTION,
    )
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="as for audiolab.run")
    parser.add_argument("--config-dir", metavar="DIR", help="your own config files")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.overrides:
        parser.print_help()
        return 0
    overrides = conf.quoted(arguments.overrides)
    name = conf.value_of(overrides, "name") or conf.default_recipe(overrides)
    config = conf.compose_run(overrides, conf.check_name(name), arguments.config_dir)
    preparation = prepare(config)
    if preparation is not None:
        flag = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
        further = _further_options(preparation, config, overrides)
        print(f"to train on it: python -m audiolab.run {shlex.join([*arguments.overrides, *further, *flag])}")
    return 0


def prepare(config: dict[str, Any]) -> Preparation | None:
    """Make the data of a composed config ready and tell what came of it; None where it is read as it lies.

    Raises InputError for options that do not fit, other options than the folder was begun with, and a disk that is too
    small; RunError for what happens on the way.
    """
    from audiolab import assemble, build
    from audiolab.training.data import SpeechData

    section = config["data"]
    build.check(section, "data", given=("seed", "augment"))
    build.require(section, SpeechData, "data")
    preparation = build.locate(section["_target_"]).preparation(section)
    if preparation is None:
        assemble.build_data(config).prepare_data()  # a built-in corpus is made here
        print(f"nothing to prepare: {section.get('root') or 'this corpus'} is read as it lies")
        return None
    facts = preparation.facts()
    if facts is not None:
        print(f"prepared already, nothing was done: {preparation.folder}")
    else:
        facts = _make(preparation)
    _tell(preparation, facts)
    return preparation


def _further_options(preparation: Preparation, config: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return what a run on the data needs beside the options of the command, whose own choices stay."""
    from omegaconf import OmegaConf

    composed = OmegaConf.create(config)
    return [
        f"{option}={value}"
        for option, value in preparation.options_of_a_run.items()
        if OmegaConf.select(composed, option) != value and conf.value_of(overrides, option) is None
    ]


def _make(preparation: Preparation) -> Facts:
    from audiolab.lock import locked
    from audiolab.preflight.disk import examine_space

    finding = examine_space(preparation.folder, preparation.needed_mb(), preparation.choose_folder)
    if finding.state == "problem":
        raise InputError(finding.sentence)
    if finding.state == "warning":
        print(f"audiolab: {finding.sentence}", file=sys.stderr)
    try:
        preparation.folder.mkdir(parents=True, exist_ok=True)
        elsewhere = f"another one needs another {preparation.choose_folder}="
        with locked(preparation.folder, elsewhere), _stopped_by_signals():
            return preparation.run()
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on: what is finished stays in {preparation.folder}", file=sys.stderr)
        raise
    except OSError as error:
        raise RunError(f"{preparation.folder} cannot be written ({error.strerror})") from error


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM, SIGHUP or SLURM's warning end the work as Ctrl-C does, with exit code 75."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}: what is finished stays, the same command goes on")

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(preparation: Preparation, facts: Facts) -> None:
    from rich import box
    from rich.table import Table

    from audiolab.reporting.tables import console

    table = Table(title=preparation.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = list(dict.fromkeys(column for row in facts.sets.values() for column in row))
    for column in columns:
        table.add_column(column, justify="right")
    for set_name, row in facts.sets.items():
        table.add_row(set_name, *(_cell(row.get(column, "")) for column in columns))
    console().print(table)
    for remark in facts.remarks:
        print(remark)
    print(f"it lies in {preparation.folder}")


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    run_command(main)
