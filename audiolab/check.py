"""Check everything before a run: python -m audiolab.check task=asvspoof data=asvspoof/la2019 data.root=/corpora/LA"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolab import config as conf
from audiolab.command import run_command
from audiolab.errors import EXIT_FAILED, InputError
from audiolab.run_log import KeptWarnings

if TYPE_CHECKING:
    import pandas as pd

    from audiolab.preflight.faults import Faults
    from audiolab.preflight.files import FileFacts
    from audiolab.preflight.findings import Finding, Report
    from audiolab.training.data import SpeechData
    from audiolab.training.task import Task

_TRIED_ITEMS = 20  # for two that can be read
DESCRIPTION = """\
Packages, machine, memory, disk, pretrained weights, the configuration, the lists, and every audio file: a tick, a
warning or a cross each, and what to do. Files are decoded once; the next check reads only what has changed.
"""


def main(argv: Sequence[str]) -> int:
    """Print the table, or JSON; returns 0 where a run may start and 1 where it may not."""
    parser = argparse.ArgumentParser(
        prog="python -m audiolab.check",
        usage="%(prog)s task=<task> [option=value ...] [--quick] [--json] [--plots FOLDER] [--config-dir DIR]",
        description=DESCRIPTION,
    )
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="as for audiolab.run")
    parser.add_argument("--quick", action="store_true", help="decode no audio and run no step of the model")
    parser.add_argument("--json", action="store_true", help="print nothing but JSON on standard output")
    parser.add_argument("--plots", metavar="FOLDER", help="write corpus.png there: durations and classes of each set")
    parser.add_argument("--config-dir", metavar="DIR", help="your own config files")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.overrides:
        parser.print_help()
        return 0
    if arguments.quick and arguments.plots:
        raise InputError("--plots draws what decoding finds: leave out --quick")
    name = conf.value_of(arguments.overrides, "name") or conf.default_recipe(arguments.overrides)
    config = conf.compose_run(arguments.overrides, conf.check_name(name), arguments.config_dir)
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        report = check(config, quick=arguments.quick, plots=arguments.plots)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        from audiolab.preflight.findings import print_report
        from audiolab.reporting.tables import console

        print_report(report, f"check of {config['task']} / {config['recipe']}", console())
    return 0 if report.ready else EXIT_FAILED


def check(config: dict[str, Any], *, quick: bool = False, plots: str | Path | None = None) -> Report:
    """Check a composed config on this machine; `quick` leaves out decoding, a step of the model, and the hub.

    What one check finds wrong does not keep the others from being made. `plots` is a folder for `corpus.png`. Raises
    InputError only for options that no class has.
    """
    from audiolab import assemble
    from audiolab.cluster import num_processes
    from audiolab.preflight import quick as shared
    from audiolab.preflight.faults import Faults, no_warnings_of
    from audiolab.preflight.findings import Finding, Report
    from audiolab.preflight.lists import class_counts
    from audiolab.preflight.machine import examine_machine, this_machine
    from audiolab.preflight.packages import examine_packages
    from audiolab.preflight.pretrained import check_pretrained, pretrained_options
    from audiolab.training.footprint import footprint, num_averages

    assemble.check(config)
    num, machine = num_processes(config["trainer"]), this_machine()
    faults = Faults()
    with faults:
        assemble.make_trainer(config, logger=False, enable_checkpointing=False)
    task, data = _built(config, faults)
    sets: dict[str, pd.DataFrame] = {}
    lists: list[Finding] = []
    if data is not None:
        with _told_of(lists), no_warnings_of("audiolab.audio.io"):  # which would name each missing file
            with faults:
                lists += _prepare(data, config)
            lists += _read_lists(data, sets, faults)
            if task is not None:
                with faults:
                    assemble.check_together(config, task, data)

    needs = None if task is None else footprint(task, num_averages(config["callbacks"] or {}))
    item_mb, steps = (None, []) if quick or task is None or "train" not in sets else _step(task, data, faults)
    measured = {name: {"rows": len(listing), "labels": class_counts(listing)} for name, listing in sets.items()}
    if quick:
        contents = [
            Finding("audio", "files", "untried", "no audio was decoded, and no step of the model tried (--quick)")
        ]
    elif any("file" in listing for listing in sets.values()):
        contents = _contents(config, sets, measured, num, machine.available_mb, plots)
        if data is not None:
            with faults:
                contents += data.check_contents()
    else:
        contents = []
    findings = [
        *examine_packages(shared.wanted_extras(config)),
        *([] if task is None else shared.kernel_findings(config, task, machine)),
        *examine_machine(machine, config, num),
        *([] if needs is None else [shared.memory_finding(config, needs, item_mb, machine, num)]),
        shared.disk_finding(config, needs),
        *(check_pretrained(*option, ask_hub=not quick) for option in pretrained_options(config["model"])),
        *(faults.findings or [_fits(lists)]),
        *steps,
        *lists,
        *contents,
    ]
    return Report(findings, measured)


def _fits(lists: list[Finding]) -> Finding:
    from audiolab.preflight.findings import Finding

    if any(finding.state == "problem" for finding in lists):
        return Finding("configuration", "options", "untried", "nothing wrong as far as was tried without whole lists")
    return Finding("configuration", "options", "ok", "options, model, data and monitor fit together")


def _read_lists(data: SpeechData, sets: dict[str, pd.DataFrame], faults: Faults) -> list[Finding]:
    """Read the list of each set into `sets`, and judge them; what is told of a list is no fault of the options too."""
    from audiolab.preflight.findings import Finding
    from audiolab.preflight.lists import examine_lists

    unread = []
    with faults:
        for name in data.listed_sets:
            try:
                sets[name] = data.listing(name)
            except InputError as error:
                faults.known.add(str(error))
                unread.append(Finding("lists", name, "problem", f"the list cannot be used: {error}"))
    findings = [*unread, *examine_lists(sets, data.sets_of_unseen_speakers)]
    if any(finding.check in ("classes", "sizes") and finding.state == "problem" for finding in findings):
        for name in sets:
            try:
                data.utterances(name)
            except InputError as error:  # the same cause in other words
                faults.known.add(str(error))
    return findings


@contextlib.contextmanager
def _told_of(findings: list[Finding]) -> Iterator[None]:
    """Make findings of what the data of a task warns of, instead of lines above the table."""
    from audiolab.preflight.findings import Finding

    logger, kept = logging.getLogger("audiolab.tasks"), KeptWarnings()
    propagates = logger.propagate
    logger.propagate = False
    logger.addHandler(kept)
    try:
        yield
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagates
        findings += [Finding("lists", "data", "warning", sentence) for sentence in kept.sentences]


def _built(config: dict[str, Any], faults: Faults) -> tuple[Task | None, SpeechData | None]:
    """The task without pretrained weights, and the data as if every file may be missing: they are counted later."""
    from audiolab import assemble
    from audiolab.fine_tuning import start
    from audiolab.preflight.pretrained import pretrained_options

    task = data = None
    with faults:
        bare = assemble.without_pretrained(config["model"])
        if not list(pretrained_options(bare)):  # else its size is known only from the weights, which stay unread
            task = assemble.build_task({**config, "model": bare})
            start(task, config)
    with faults:
        lenient = {**config["data"], "on_bad_audio": "skip", "max_bad_audio": 10**9}
        data = assemble.build_data({**config, "data": lenient})
    return task, data


def _prepare(data: SpeechData, config: dict[str, Any]) -> list[Finding]:
    """Let the data make what it makes itself, and say so."""
    from audiolab.preflight.findings import Finding

    root = Path(config["data"].get("root") or ".").expanduser()
    before = root.exists()
    data.prepare_data()
    return (
        [] if before or not root.exists() else [Finding("lists", "built-in data", "ok", f"were made just now: {root}")]
    )


def _step(task: Task, data: SpeechData | None, faults: Faults) -> tuple[float | None, list[Finding]]:
    """One forward and backward pass of two real items on the CPU: MiB an item, and whether it works at all."""
    from audiolab.preflight.findings import Finding, size
    from audiolab.training.footprint import step_memory
    from audiolab.training.items import BadItem, collate

    try:
        utterances = data.utterances("train")
        tried = dict.fromkeys([0, len(utterances) - 1, *range(min(_TRIED_ITEMS, len(utterances)))])  # of both ends
        read = (utterances[(0, index)] for index in tried)
        items = list(itertools.islice((item for item in read if not isinstance(item, BadItem)), 2))
        if not items:
            return None, [
                Finding("configuration", "a step", "warning", f"not tried: {len(tried)} files are unreadable")
            ]
        batch = collate(items)
        batch.pop("bad")
        loss, kept_mb = step_memory(task, batch)
    except InputError as error:
        told = str(error) in faults.known
        return None, [] if told else [Finding("configuration", "a step", "problem", str(error))]
    except Exception as error:  # whatever it is, the run would end with it
        remedy = "start the run to see its trace, or choose another model"
        found = f"forward and backward fail with {type(error).__name__}: {str(error)[:200]}"
        return None, [Finding("configuration", "a step", "problem", found, remedy)]
    if loss != loss or abs(loss) == float("inf"):
        found = f"the loss of two items is {loss}"
        return None, [Finding("configuration", "a step", "problem", found, "look at loss, model and these files")]
    an_item = size(kept_mb / len(items))
    words = f"forward and backward of {len(items)} items work, {an_item} an item; loss {loss:.3f}"
    return kept_mb / len(items), [Finding("configuration", "a step", "ok", words)]


def _contents(
    config: dict[str, Any],
    sets: dict[str, pd.DataFrame],
    measured: dict[str, dict[str, Any]],
    num_processes: int,
    free_mb: float | None,
    plots: str | Path | None,
) -> list[Finding]:
    """Decode every file and judge what is found; adds to `measured`."""
    from audiolab.audio.io import BadAudioPolicy
    from audiolab.preflight.contents import examine_contents, set_facts
    from audiolab.preflight.findings import Finding
    from audiolab.preflight.memory import check_kept_audio
    from audiolab.preflight.picture import corpus_picture
    from audiolab.reporting.plots import save_figure

    sets = {name: listing for name, listing in sets.items() if "file" in listing}
    paths = list(dict.fromkeys(path for listing in sets.values() for path in listing["file"]))
    facts, reasons = _read(paths)
    for name, listing in sets.items():
        measured[name] |= set_facts(listing, facts)
    section = config["data"]
    policy = BadAudioPolicy(section["on_bad_audio"], section["max_bad_audio"], num_files=len(paths))
    findings = examine_contents(sets, facts, reasons, policy.cap if policy.mode == "skip" else None)
    if section.get("in_memory"):
        total_s = sum(fact.duration_s for fact in facts.values())
        findings.append(check_kept_audio(total_s, num_processes, free_mb))
    if plots is not None and facts:
        picture = Path(plots) / "corpus.png"
        try:
            save_figure(corpus_picture(sets, facts, f"{config['task']}: {section.get('root') or 'corpus'}"), picture)
        except OSError as error:
            raise InputError(f"{picture} cannot be written ({error.strerror}): give another folder") from error
        findings.append(Finding("audio", "picture", "ok", str(picture)))
    return findings


def _read(paths: list[str]) -> tuple[dict[str, FileFacts], dict[str, str]]:
    """Read files with a progress bar, through the cache; an interrupt says how to go on."""
    from audiolab.preflight.files import FactsCache, read_files
    from audiolab.preflight.machine import num_cores

    folder = Path(os.environ.get("AUDIOLAB_CACHE", "~/.cache/audiolab")).expanduser()
    try:
        with FactsCache(folder / "preflight" / "files-1.sqlite") as cache, _progress(len(paths)) as on_read:
            return read_files(paths, cache, min(32, 2 * num_cores()), on_read)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on: what was read so far is kept", file=sys.stderr)
        raise


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal while files are read."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with shown:
        bar = shown.add_task("reading audio", total=total)
        yield lambda number: shown.advance(bar, number)


if __name__ == "__main__":
    run_command(main)
