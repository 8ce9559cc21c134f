"""A sweep: one run a combination, each in its own folder, and a table over all of them at the end."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, MissingConfigException, SearchPathException

from audiolab import config as conf
from audiolab.build import locate
from audiolab.errors import InputError, Preempted, RunError
from audiolab.folder import RunFolder
from audiolab.launch import launch
from audiolab.reporting.scores import write_text
from audiolab.reporting.tables import console, sweep_breakdowns, sweep_rows, sweep_table


def run_sweep(overrides: Sequence[str], swept: Sequence[str], name: str, config_dir: str | None) -> int:
    """Run every combination through Hydra's launcher; finished jobs are skipped, a failed one does not stop the rest.

    Returns the exit code: 1 when a job failed.
    """
    jobs, _ = conf.expand(overrides)
    configs = [
        conf.compose_run(job, f"{name}/{conf.job_name(job, swept)}", config_dir) for job in jobs
    ]  # all are checked before the first starts
    folders = [RunFolder.path_of(config) for config in configs]
    if len(set(folders)) < len(folders):
        raise InputError("two jobs of this sweep would share a folder: their swept values differ only in punctuation")

    stopped: list[Preempted] = []

    def job(_: Any) -> str | None:
        config = configs[HydraConfig.get().job.num]
        if stopped:
            return "not started"
        print(f"\n== {config['name']}", flush=True)
        try:
            launch(config)
        except Preempted as error:
            stopped.append(error)
            return str(error)
        except (InputError, RunError) as error:
            print(f"audiolab: {config['name']} failed: {error}", file=sys.stderr)
            return str(error)
        except Exception as error:
            traceback.print_exc()
            print(f"audiolab: {config['name']} failed; the other jobs go on", file=sys.stderr)
            return str(error)
        return None

    sweep_folder = folders[0].parent
    own = [
        f"hydra.sweep.dir={conf.quote(str(sweep_folder))}",
        f"hydra.searchpath=[{conf.quote(f'file://{Path(config_dir).resolve()}')}]" if config_dir else "",
    ]
    sys.argv = [sys.argv[0], "-m", *(text for text in overrides if not text.startswith("name=")), *filter(None, own)]
    try:
        hydra.main(version_base="1.3", config_path=str(conf.config_folder()), config_name="run")(job)()
    except (MissingConfigException, ConfigCompositionException, SearchPathException) as error:
        raise InputError(
            f"this sweep cannot be launched ({str(error).strip().splitlines()[0]}): hydra/launcher=slurm and "
            "submitit_local need audiolab[slurm]"
        ) from error
    except KeyboardInterrupt:
        print(f"the sweep is stopped; the same command with name={name} goes on with all of its jobs")
        raise
    if stopped:
        raise Preempted(f"{stopped[0]}; the same command with name={name} goes on with all jobs of the sweep")
    if configs[0]["plan"]:
        return 0
    return _summary(jobs, swept, configs, folders, name)


def _summary(
    jobs: Sequence[Sequence[str]],
    swept: Sequence[str],
    configs: Sequence[dict[str, Any]],
    folders: Sequence[Path],
    name: str,
) -> int:
    states = []
    for job, folder in zip(jobs, folders, strict=True):
        results = RunFolder.open(folder).results if (folder / "config.yaml").is_file() else None
        options = conf.job_options(job, swept)
        states.append({"options": options, "state": "finished" if results else "failed", "metrics": results or {}})
    headline = locate(configs[0]["module"]["_target_"]).headline
    quoted = dict(list(headline.items())[:2])  # all of them are in each job's metrics.json
    title = f"sweep {configs[0]['task']}/{name}"
    for table in [*sweep_breakdowns(states, swept, quoted, title), sweep_table(states, swept, quoted, title)]:
        console().print(table)
    table_file = folders[0].parent / "sweep.csv"
    write_text(table_file, sweep_rows(states).to_csv(index=False))
    print(f"every metric of every job: {table_file}")
    failed = [str(folder) for folder, state in zip(folders, states, strict=True) if state["state"] == "failed"]
    if "wandb" in (configs[0]["logger"] or {}):
        from audiolab.tracking import log_sweep, waits_for_wandb

        log_sweep(folders[0].parent, configs[0], states, headline)
        if waits_for_wandb(folders[0].parent):
            sweep = shlex.quote(str(folders[0].parent))
            print(f"to upload the sweep: wandb sync {sweep}/wandb/offline-run-* {sweep}/*/wandb/offline-run-*")
    if failed:
        print(f"audiolab: {len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
