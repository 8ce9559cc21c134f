"""From a checked config to the objects of a run: DataModule, task, Trainer, each built in one place."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from audiolab import build as builder
from audiolab import config as conf
from audiolab import out_of_memory
from audiolab.cluster import cluster_environment, num_processes, started_by_launcher
from audiolab.errors import InputError
from audiolab.fine_tuning import check_init, start, starting_model
from audiolab.folder import RunFolder
from audiolab.preflight.pretrained import refuse_missing
from audiolab.training import sharding
from audiolab.training.checkpoint_io import WholeFiles
from audiolab.training.data import SpeechData
from audiolab.training.epoch_means import EpochMeans
from audiolab.training.evaluation import Evaluation
from audiolab.training.feature_cache import FeatureCache, refuse_cache
from audiolab.training.optim import Optimization
from audiolab.training.position import Position
from audiolab.training.processes import InStep
from audiolab.training.progress import EpochLine, progress_bar
from audiolab.training.schedules import Schedule
from audiolab.training.task import Task

_OWN_TRAINER_ARGUMENTS = (
    "callbacks",
    "logger",
    "default_root_dir",
    "use_distributed_sampler",
    "num_sanity_val_steps",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "plugins",
)


def check(config: dict[str, Any]) -> None:
    """Check every section of a config against the class or function it is for, before anything is built."""
    conf.check_words(config)
    builder.check(config["model"], "model")
    builder.check(config["loss"], "loss")
    builder.check(config["optimizer"], "optimizer", given=("schedule",))
    builder.check(config["schedule"], "schedule")
    builder.check(config["augment"], "augment")
    builder.check(config["data"], "data", given=("seed", "augment"))
    builder.check(config["module"], "module", given=("model", "criterion", "optimization"))
    for group, given in (("logger", ("run",)), ("callbacks", ("dirpath",))):
        for name, section in (config[group] or {}).items():
            builder.check(section, f"{group}.{name}", given=given)
    builder.check_signature(L.Trainer, config["trainer"], "trainer", given=_OWN_TRAINER_ARGUMENTS)
    check_init(config)
    _check_processes(config)
    epochs = config["trainer"].get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"trainer.max_epochs={epochs} does not fit: give a whole number from 1 up")
    if not isinstance(config["seed"], int) or config["seed"] < 0:
        raise InputError(f"seed={config['seed']!r} does not fit: give a whole number from 0 up")


def _check_processes(config: dict[str, Any]) -> None:
    trainer = config["trainer"]
    sharding.refuse(config)
    if trainer.get("sync_batchnorm") and trainer.get("accelerator") == "cpu":
        raise InputError("trainer.sync_batchnorm=true needs GPUs: leave it out with trainer.accelerator=cpu")


def prepare(config: dict[str, Any]) -> tuple[SpeechData, Task]:
    """Build trainer, model and data and read the protocols once, so that errors come before anything is written."""
    make_trainer(config, logger=False, enable_checkpointing=False)
    begun = RunFolder(RunFolder.path_of(config), config).has_checkpoint
    task, data = build_task(config) if begun else begin_task(config)[0], build_data(config)
    data.prepare_data()
    check_together(config, task, data)
    return data, task


def check_together(config: dict[str, Any], task: Task, data: SpeechData) -> None:
    """Read the protocols, and raise InputError for options that do not fit the model, the data or one another."""
    task.optimization.parameter_groups(task)
    _callbacks(config, Path())
    data.setup("fit")
    task.check_data(data)
    if data.feature_cache:
        refuse_cache(data, task)
    late = task.only_after_training
    measured = [metric for metric in task.headline if metric not in late and not metric.endswith("_calibrated")]
    known = [f"{set_name}/{metric}" for set_name in data.val_sets for metric in measured]
    if config["monitor"]["metric"] not in known:
        raise InputError(
            f"monitor.metric={config['monitor']['metric']} is never measured: there are {', '.join(known)}"
        )
    _check_monitors(config, known, data.val_sets)


def _check_monitors(config: dict[str, Any], known: Sequence[str], val_sets: Sequence[str]) -> None:
    """Raise InputError for what watches a metric that is never measured, or takes the worst for the best."""
    metric, mode = config["monitor"]["metric"], config["monitor"]["mode"]
    watching = {f"callbacks.{name}": section for name, section in (config["callbacks"] or {}).items()}
    for where, section in {"schedule": config["schedule"], **watching}.items():
        watched = section.get("monitor")
        ours = section["_target_"].startswith("audiolab.")  # others may watch what training logs
        if watched not in known and (ours or str(watched).startswith(tuple(f"{one}/" for one in val_sets))):
            if watched is not None:
                raise InputError(f"{where}.monitor={watched} is never measured: there are {', '.join(known)}")
        elif watched == metric and "mode" in section and section["mode"] != mode:
            raise InputError(
                f"{where}.mode={section['mode']} contradicts monitor.mode={mode} for the same {metric}: leave it out, "
                "or change monitor.mode, which all callbacks follow"
            )


def build_data(config: dict[str, Any]) -> SpeechData:
    """Build the DataModule of a config, with its augmentation."""
    builder.require(config["data"], SpeechData, "data")
    return builder.build(config["data"], seed=config["seed"], augment=builder.build(config["augment"]) or None)


def build_task(config: dict[str, Any]) -> Task:
    """Build the LightningModule of a config; weights are drawn from the run's seed."""
    refuse_missing(config["model"])
    kinds = {"module": Task, "model": torch.nn.Module, "loss": torch.nn.Module}
    kinds |= {"optimizer": Optimization, "schedule": Schedule}
    for name, kind in kinds.items():
        builder.require(config[name], kind, name)
    L.seed_everything(config["seed"], verbose=False)
    return builder.build(
        config["module"],
        model=builder.build(config["model"]),
        criterion=builder.build(config["loss"]),
        optimization=builder.build(config["optimizer"], schedule=builder.build(config["schedule"])),
    )


def begin_task(config: dict[str, Any]) -> tuple[Task, str | None]:
    """Build the LightningModule of a fresh run as `init` says, with a sentence on where its weights come from."""
    task = build_task({**config, "model": starting_model(config)})
    return task, start(task, config)


def build_trainer(
    config: dict[str, Any], folder: Path, run: RunFolder | None, *more: L.Callback, training: bool
) -> L.Trainer:
    """Build the Trainer: with loggers and checkpoints for training, bare for a test of a finished run."""
    evaluation = Evaluation(folder)
    callbacks: list[L.Callback] = [*more, out_of_memory.guard(config), FeatureCache(), evaluation]
    loggers: list[Any] = []
    if training and run is not None:
        callbacks += [Position(config["seed"]), EpochMeans(), *_callbacks(config, run.path / "checkpoints")]
        callbacks += [EpochLine()]  # after the callback that knows the rates it shows
        loggers = [builder.build(section, run=run) for section in (config["logger"] or {}).values()]
    callbacks.append(InStep())  # after those that put other weights in place
    return make_trainer(
        config,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # else one of Lightning's
    )


def make_trainer(config: dict[str, Any], callbacks: Sequence[L.Callback] = (), **more: Any) -> L.Trainer:
    """Build a Trainer from the trainer section and our own arguments.

    Raises InputError for options that do not fit this machine or one another.
    """
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message="The number of training batches .* smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # inexact; our numbers are those of all processes
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # frozen parts are so on purpose
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in list(logging.getLogger(name).handlers):
            if not isinstance(handler, logging.FileHandler):  # repeats lines under Hydra and buries ours
                logging.getLogger(name).removeHandler(handler)
    try:
        trainer = L.Trainer(
            **sharding.trainer_arguments(_without_lonely_group({**config["trainer"], **more})),
            callbacks=[*callbacks, *progress_bar()],
            use_distributed_sampler=False,  # it pads, and a padded set has another EER
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bool(progress_bar()),
            plugins=[WholeFiles(), cluster_environment()],
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(
            f"the trainer options cannot be used here: {str(error).strip().splitlines()[0]} "
            "(trainer=auto takes what the machine has; to look at the run on this one, add trainer=cpu plan=true)"
        ) from error
    out_of_memory.check_trainer(config, trainer)
    return trainer


def _without_lonely_group(options: dict[str, Any]) -> dict[str, Any]:
    """Let one process by itself be no group of processes: it would need a port for nothing, perhaps a taken one."""
    alone = not started_by_launcher() and options.get("num_nodes", 1) == 1 and num_processes(options) == 1
    grouped = str(options.get("strategy")).startswith(("ddp", sharding.NAME))
    return {**options, "strategy": "auto"} if alone and grouped else options


def standalone(section: dict[str, Any], module: Any) -> dict[str, Any]:
    """Return a model section that builds the same modules without pretrained weights.

    A section inside it has the name of the attribute that holds its module; one with the option `pretrained` says
    itself what stands in its place.
    """
    inner = {key: standalone(value, getattr(module, key, None)) for key, value in section.items() if _is_class(value)}
    return {**section, **inner, **(module.without_pretrained() if "pretrained" in section else {})}


def _is_class(section: Any) -> bool:
    return isinstance(section, dict) and "_target_" in section


def evaluation_of(trainer: L.Trainer) -> Evaluation:
    """Return the evaluation callback of a trainer."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Evaluation))


def without_pretrained(section: dict[str, Any]) -> dict[str, Any]:
    """Return a model section without pretrained weights, as far as it can be built without."""
    bare = {key: without_pretrained(value) if _is_class(value) else value for key, value in section.items()}
    if "pretrained" in bare and bare.get("config", {}) is not None:
        bare["pretrained"] = None
    return bare


def _callbacks(config: dict[str, Any], folder: Path) -> list[L.Callback]:
    callbacks = []
    for section in (config["callbacks"] or {}).values():
        writes = "dirpath" in inspect.signature(builder.locate(section["_target_"])).parameters
        callbacks.append(builder.build(section, **({"dirpath": folder} if writes else {})))
    return callbacks
