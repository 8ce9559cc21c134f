"""Where numbers go while a run is under way: a CSV file that survives restarts, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import logging
import os
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from audiolab.cluster import rank
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.reporting.example import Example
from audiolab.reporting.metrics_file import MetricsFile
from audiolab.reporting.tables import breakdowns, sweep_rows

log = logging.getLogger(__name__)


class MetricsCsv(Logger):
    """`metrics.csv` of a run folder: one row a step, appended to by a resumed run.

    Lightning's own CSV logger empties the file when a run is resumed.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.path = run.path / "metrics.csv"

    @cached_property
    def _file(self) -> MetricsFile:
        """Opened by the first thing that is logged, and so by the one process that logs."""
        return MetricsFile(self.path)

    @property
    def name(self) -> str:
        """Lightning asks for one; the run folder is the name."""
        return ""

    @property
    def version(self) -> str:
        """Lightning asks for one; there are no versions of a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values at a step; a later value for the same step and name replaces the earlier one."""
        self._file.add(int(step or 0), metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged; Lightning calls this after everything that it logs."""
        if "_file" in self.__dict__:
            self._file.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def tensorboard(run: RunFolder) -> TensorBoardLogger:
    """Log to `tensorboard/` of the run folder."""
    try:
        return TensorBoardLogger(run.path, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise InputError("logger=tensorboard needs TensorBoard: install audiolab[tensorboard]") from error


def wandb(
    run: RunFolder,
    project: str,
    entity: str | None,
    mode: Literal["offline", "online", "disabled"],
    tags: list[str],
    job_type: str,
    connect_timeout_s: float,
    upload_timeout_s: float,
) -> WandbLogger:
    """Log to Weights & Biases, offline into `wandb/` of the run folder unless mode is `online`.

    The run's id is a hash of the run folder, so a resumed run continues its own; the group is task/recipe/name, where
    the jobs of a sweep share the sweep's name. A server that does not answer within `connect_timeout_s` makes the run
    go on offline; at the end what is not uploaded yet is waited for, `upload_timeout_s` at most.
    """
    config = run.config
    sweep, _, job = config["name"].rpartition("/")
    facts = {
        "project": project,
        "entity": entity,
        "group": "/".join([config["task"], config["recipe"], sweep or job]),
        "name": job,
        "tags": [config["task"], config["recipe"], *tags],
        "job_type": job_type,
        "config": config,
    }
    begun = None
    if rank() == 0:  # other processes log nothing; Lightning knows who is who only once there is a Trainer
        begun = _begin_wandb(run.path, mode, connect_timeout_s, upload_timeout_s, **facts)
        begun.define_metric("trainer/global_step")
        begun.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(save_dir=run.path, id=_wandb_id(run.path), experiment=begun, **facts)


def log_sweep(folder: Path, config: dict[str, Any], jobs: list[dict[str, Any]], headline: Mapping[str, str]) -> None:
    """Write one W&B run that sums up a sweep: a table of its jobs, mean and SD of the headline metrics."""
    options = config["logger"]["wandb"]
    table = sweep_rows(jobs, headline)
    run = _begin_wandb(
        folder,
        options["mode"],
        options["connect_timeout_s"],
        options["upload_timeout_s"],
        project=options["project"],
        entity=options["entity"],
        group="/".join([config["task"], config["recipe"], folder.name]),
        name=f"{folder.name} (sweep)",
        tags=[config["task"], config["recipe"], *options["tags"]],
        job_type="sweep",
    )
    import wandb as client

    _log_media(run, {"jobs": client.Table(dataframe=table)}, "the sweep")
    numbers = table.select_dtypes("number").dropna(axis="columns", how="all")
    run.summary.update({f"{name}/mean": float(numbers[name].mean()) for name in numbers})
    run.summary.update({f"{name}/sd": float(numbers[name].std()) for name in numbers if len(numbers) > 1})
    _finish_wandb(run, exit_code=0)


def _begin_wandb(folder: Path, mode: str, connect_timeout_s: float, upload_timeout_s: float, **facts: Any) -> Any:
    """Begin or continue the W&B run of a folder: offline, with a warning, where the server cannot be used."""
    client = _wandb_client(folder)

    def begin(mode: str) -> Any:
        settings = client.Settings(
            mode=mode,
            silent=True,
            init_timeout=connect_timeout_s,
            finish_timeout=upload_timeout_s,
            finish_timeout_raises=True,
        )
        return client.init(dir=folder, id=_wandb_id(folder), resume="allow", settings=settings, **facts)

    if mode != "online":
        return begin(mode)
    try:
        client.setup(client.Settings(silent=True))
        if not client.login(prompt=False, verify=False):  # else it would ask, and an unattended run would wait
            raise client.errors.UsageError("no API key: set WANDB_API_KEY or run wandb login")
        return begin("online")
    except client.errors.Error as error:
        client.teardown()  # it still holds the id of the run that could not begin
        run = begin("offline")
        log.warning(
            "W&B at %s cannot be used (%s), so this run is logged offline; upload it later with: wandb sync %s",
            run.settings.base_url,
            str(error).strip().splitlines()[0],
            _wandb_folder(run),
        )
        return run


def _log_media(run: Any, content: dict[str, Any], what: str) -> None:
    """Log tables and pictures; the client wants the server for them, and keeps only numbers to be sent later."""
    import wandb as client

    try:
        run.log(content)
    except client.errors.Error as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("W&B did not take the tables and pictures of %s, which are in the run folder (%s)", what, reason)


def _finish_wandb(run: Any, exit_code: int) -> None:
    """End a W&B run; one that cannot be uploaded in time keeps its data on disk."""
    folder = _wandb_folder(run)
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        log.warning("W&B was not reached any more and lacks a part of this run; upload it with: wandb sync %s", folder)


def _wandb_folder(run: Any) -> Path:
    return Path(run.settings.sync_dir)


def waits_for_wandb(folder: Path) -> bool:
    """Whether a folder holds W&B runs that were logged offline and are not uploaded yet.

    >>> waits_for_wandb(Path("nowhere"))
    False
    """
    offline = (folder / "wandb").glob("offline-run-*")
    return any(run.is_dir() and not any(run.glob("*.synced")) for run in offline)  # so `wandb sync` marks it


def _wandb_client(folder: Path) -> Any:
    try:
        import wandb as client
    except ModuleNotFoundError as error:
        raise InputError("logger=wandb needs the W&B client: install audiolab[wandb]") from error
    data = folder / "wandb" / "data"  # else media of tables is staged in the home folder
    data.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(data)
    return client


def _wandb_id(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]


def close_loggers(loggers: list[Logger], *, finished: bool) -> None:
    """Write what the loggers still hold and end their runs, so that the next job of a sweep starts its own."""
    for logger in loggers:
        logger.finalize("success" if finished else "failed")
        if isinstance(logger, WandbLogger) and rank_zero_only.rank == 0:
            _finish_wandb(logger.experiment, exit_code=0 if finished else 1)


def log_evaluation(
    loggers: list[Logger],
    set_name: str,
    table: pd.DataFrame,
    metrics: dict[str, float],
    figures: dict[str, Figure],
) -> None:
    """Send score table, breakdown tables and figures of a set to the loggers that can show them."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(f"{set_name}/{name}", figure, close=False)
        elif isinstance(logger, WandbLogger):
            import wandb as client

            content: dict[str, Any] = {f"{set_name}/scores": client.Table(dataframe=table)}
            for group, breakdown in breakdowns(metrics).items():
                content[f"{set_name}/{group}"] = client.Table(dataframe=breakdown.reset_index(names=group))
            for name, figure in figures.items():
                content[f"{set_name}/{name}"] = client.Image(figure)
            _log_media(logger.experiment, content, set_name)
            logger.experiment.summary.update({f"{set_name}/{k}": v for k, v in metrics.items() if "/" not in k})


def log_examples(loggers: list[Logger], set_name: str, examples: Mapping[str, Example], step: int) -> None:
    """Send sounds and pictures of a set's examples, `role -> example`, to the loggers that can play and show them."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            for role, example in examples.items():
                for sound, wave in example.sounds.items():
                    writer.add_audio(
                        f"{set_name}/{role}/{sound}", torch.as_tensor(wave)[None], step, example.sample_rate
                    )
                if example.figure is not None:
                    writer.add_figure(f"{set_name}/{role}", example.figure, step, close=False)
        elif isinstance(logger, WandbLogger):
            import wandb as client

            content: dict[str, Any] = {}
            for role, example in examples.items():
                for sound, wave in example.sounds.items():
                    clip = client.Audio(wave, sample_rate=example.sample_rate, caption=example.caption)
                    content[f"{set_name}/{role}/{sound}"] = clip
                if example.figure is not None:
                    content[f"{set_name}/{role}"] = client.Image(example.figure, caption=example.caption)
            _log_media(logger.experiment, content, f"the examples of {set_name}")


def log_figure(loggers: list[Logger], name: str, figure: Figure) -> None:
    """Send a figure to the loggers that can show it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, close=False)
        elif isinstance(logger, WandbLogger):
            import wandb as client

            logger.experiment.log({name: client.Image(figure)})
