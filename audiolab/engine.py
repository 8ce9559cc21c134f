"""A run from a plain dict to its metrics: the only place that builds a Trainer."""

from __future__ import annotations

import inspect
import logging
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from audiolab import build as builder
from audiolab import out_of_memory
from audiolab.cluster import cluster_environment, num_processes, started_by_launcher
from audiolab.errors import InputError
from audiolab.fine_tuning import check_init, start, starting_model
from audiolab.folder import RunFolder
from audiolab.results import write_bad_audio, write_results
from audiolab.run_log import log_to
from audiolab.tracking import close_loggers
from audiolab.training import sharding
from audiolab.training.calibration import fit_on_dev
from audiolab.training.checkpoint_io import WholeFiles
from audiolab.training.data import SpeechData
from audiolab.training.evaluation import Evaluation
from audiolab.training.faults import explained
from audiolab.training.feature_cache import FeatureCache, refuse_cache
from audiolab.training.optim import Optimization
from audiolab.training.plan import TIMED_STEPS, StepClock, print_plan
from audiolab.training.position import Position
from audiolab.training.preemption import Preemption
from audiolab.training.processes import InStep
from audiolab.training.progress import EpochLine, progress_bar
from audiolab.training.task import Task
from audiolab.training.weights import load_weights, read_weights, write_weights

log = logging.getLogger(__name__)

_OWN_TRAINER_ARGUMENTS = (
    "callbacks",
    "logger",
    "default_root_dir",
    "use_distributed_sampler",
    "num_sanity_val_steps",
    "enable_model_summary",
    "enable_progress_bar",
    "plugins",
)


def check(config: dict[str, Any]) -> None:
    """Check every section of a config against the class or function it is for, before anything is built."""
    out_of_memory.check_choice(config)
    builder.check(config["model"], "model")
    builder.check(config["loss"], "loss")
    builder.check(config["optimizer"], "optimizer")
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
    if data.feature_cache:
        refuse_cache(data, task)
    measured = [metric for metric in task.headline if not metric.endswith("_calibrated")]  # known after training only
    known = [f"{set_name}/{metric}" for set_name in data.val_sets for metric in measured]
    if config["monitor"]["metric"] not in known:
        raise InputError(
            f"monitor.metric={config['monitor']['metric']} is never measured: there are {', '.join(known)}"
        )


def build_data(config: dict[str, Any]) -> SpeechData:
    """Build the DataModule of a config, with its augmentation."""
    builder.require(config["data"], SpeechData, "data")
    return builder.build(config["data"], seed=config["seed"], augment=builder.build(config["augment"]) or None)


def build_task(config: dict[str, Any]) -> Task:
    """Build the LightningModule of a config; weights are drawn from the run's seed."""
    kinds = {"module": Task, "model": torch.nn.Module, "loss": torch.nn.Module, "optimizer": Optimization}
    for name, kind in kinds.items():
        builder.require(config[name], kind, name)
    L.seed_everything(config["seed"], verbose=False)
    return builder.build(
        config["module"],
        model=builder.build(config["model"]),
        criterion=builder.build(config["loss"]),
        optimization=builder.build(config["optimizer"]),
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
        callbacks += [Position(config["seed"]), *_callbacks(config, run.path / "checkpoints")]
        callbacks += [EpochLine()]  # after the callback that knows the rates it shows
        loggers = [builder.build(section, run=run) for section in (config["logger"] or {}).values()]
    callbacks.append(InStep())  # after those that put other weights in place
    return make_trainer(config, callbacks=callbacks, logger=loggers, default_root_dir=folder)


def make_trainer(config: dict[str, Any], callbacks: Sequence[L.Callback] = (), **more: Any) -> L.Trainer:
    """Build a Trainer from the trainer section and our own arguments.

    Raises InputError for options that do not fit this machine or one another.
    """
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
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
            "(trainer=auto takes what the machine has)"
        ) from error
    out_of_memory.check_trainer(config, trainer)
    return trainer


def _without_lonely_group(options: dict[str, Any]) -> dict[str, Any]:
    """Let one process by itself be no group of processes: it would need a port for nothing, perhaps a taken one."""
    alone = not started_by_launcher() and options.get("num_nodes", 1) == 1 and num_processes(options) == 1
    grouped = str(options.get("strategy")).startswith(("ddp", sharding.NAME))
    return {**options, "strategy": "auto"} if alone and grouped else options


def train(folder: str) -> dict[str, dict[str, float]]:
    """Train a run from where it stands, then evaluate its best checkpoint on development and test sets."""
    run = RunFolder.open(folder)
    go_on = f"To go on: python -m audiolab.resume {shlex.quote(str(run.path))}"
    with explained(run.path, go_on), log_to(run.path / "run.log"), Preemption(run.path) as preemption:
        if run.is_handed_over:
            raise InputError(
                f"{run.path} holds weights without the state of their training, which cannot go on: start a new run "
                f"from them with init.weights={run.path}"
            )
        trainer = build_trainer(run.config, run.path, run, preemption, training=True)
        checkpoint = _latest_checkpoint(trainer, run)
        fresh = checkpoint is None
        data = build_data(run.config)
        task, origin = begin_task(run.config) if fresh else (build_task(run.standalone_config), None)
        data.record_folder = run.path
        if fresh and trainer.is_global_zero:
            run.keep_model(_standalone(run.config["model"], task.model))
            if origin:
                print(origin)
                log.info(origin)
        finished = False
        try:
            with out_of_memory.told(out_of_memory.in_run(run, trainer, task)):
                _fit(trainer, task, data, run, checkpoint)
                _keep_best_weights(trainer, task, run)
                results = evaluate(trainer, task, data, run)
            finished = True
        finally:
            close_loggers(trainer.loggers, finished=finished)
        if trainer.is_global_zero:
            write_bad_audio(data, run.path)
            run.finish(results)
    return results


def _keep_best_weights(trainer: L.Trainer, task: Task, run: RunFolder) -> None:
    """Load the best checkpoint's weights, and write them alone beside it."""
    checkpoint = run.best_checkpoint
    weights = read_weights(checkpoint)
    load_weights(task, checkpoint, weights)
    if trainer.is_global_zero and checkpoint != run.weights_path:
        write_weights(run.weights_path, weights, run.facts_of(checkpoint))


def _standalone(section: dict[str, Any], module: Any) -> dict[str, Any]:
    """Return a model section that builds the same modules without pretrained weights.

    A section inside it has the name of the attribute that holds its module; one with the option `pretrained` says
    itself what stands in its place.
    """
    inner = {key: _standalone(value, getattr(module, key, None)) for key, value in section.items() if _is_class(value)}
    return {**section, **inner, **(module.without_pretrained() if "pretrained" in section else {})}


def _is_class(section: Any) -> bool:
    return isinstance(section, dict) and "_target_" in section


def _latest_checkpoint(trainer: L.Trainer, run: RunFolder) -> Path | None:
    """Return the checkpoint to go on from: rank 0 checks and chooses, the others follow."""
    if trainer.world_size == 1:
        return run.latest_checkpoint
    trainer.strategy.setup_environment()  # joins the processes, which fit would do only after the model is built
    return trainer.strategy.broadcast(run.latest_checkpoint if trainer.is_global_zero else None)


def _fit(trainer: L.Trainer, task: Task, data: SpeechData, run: RunFolder, checkpoint: Path | None) -> None:
    """Train from a checkpoint, if any; an interrupt says how to go on."""
    if checkpoint is not None and trainer.is_global_zero:
        print(f"going on from {checkpoint}")
    try:
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.is_global_zero:
            print(f"\nstopped; to go on: python -m audiolab.resume {shlex.quote(str(run.path))}")
        raise KeyboardInterrupt from None


def evaluate(trainer: L.Trainer, task: Task, data: SpeechData, run: RunFolder) -> dict[str, dict[str, float]]:
    """Evaluate a task on the development sets, calibrate it there, then evaluate it on the test sets."""
    evaluation = evaluation_of(trainer)
    if data.val_sets:
        trainer.validate(task, data, verbose=False)
        evaluation.calibration = fit_on_dev(task, {name: evaluation.tables[name] for name in data.val_sets})
        if evaluation.calibration is not None and trainer.is_global_zero:
            run.calibrate(evaluation.calibration)
    if data.test_sets:
        trainer.test(task, data, verbose=False)
    return evaluation.results


def evaluate_run(
    folder: str, config: dict[str, Any], sets: Sequence[str] | None, out: str, *, add: bool
) -> dict[str, dict[str, float]]:
    """Evaluate the best checkpoint of a run on the test sets of a config, or on `sets`; returns the metrics by set.

    Scores, plots and `metrics.json` are written to `out`; with `add` the sets that it holds already stay.
    """
    run = RunFolder.open(folder)
    task, data = load_task(run), build_data({**config, "augment": None})  # of training only
    data.prepare_data()
    if sets:
        data.choose_test_sets(list(sets))
    data.setup("test")
    trainer = build_trainer(config, Path(out), run, training=False)
    evaluation = evaluation_of(trainer)
    evaluation.calibration = run.calibration
    with (
        explained(Path(out), "Then give the same command again."),
        out_of_memory.told(out_of_memory.in_test(config, trainer)),
    ):
        trainer.test(task, data, verbose=False)
        if trainer.is_global_zero:
            write_results(Path(out), evaluation.results, add=add)
            write_bad_audio(data, Path(out))
    return evaluation.results


def evaluation_of(trainer: L.Trainer) -> Evaluation:
    """Return the evaluation callback of a trainer."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Evaluation))


def load_task(run: RunFolder) -> Task:
    """Return the task of a run with its best weights, in eval mode."""
    run.require_whole_config()
    checkpoint = run.best_checkpoint
    weights = read_weights(checkpoint)
    task = build_task(run.standalone_config)
    load_weights(task, checkpoint, weights)
    return task.eval()


def plan(config: dict[str, Any]) -> None:
    """Print what a run would cost, with a few timed steps on one device; nothing is kept or written.

    Pretrained weights are not read where the config says what the model is: neither size nor time depends on them.
    """
    config = {**config, "model": without_pretrained(config["model"])}
    (data, task), clock = prepare(config), StepClock()
    few = {"max_epochs": -1, "max_steps": TIMED_STEPS + 2, "limit_val_batches": 0, "accumulate_grad_batches": 1}
    one = {"devices": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False}
    trainer = make_trainer(config, callbacks=[out_of_memory.guard(config), clock], **few, **one)
    with out_of_memory.told(out_of_memory.in_plan(config, trainer)):
        print_plan(config, task, data, trainer, clock)


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
