"""A run from its folder to its metrics: train, evaluate, test, plan."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from audiolab import out_of_memory
from audiolab.assemble import (
    begin_task,
    build_data,
    build_task,
    build_trainer,
    evaluation_of,
    make_trainer,
    prepare,
    standalone,
    without_pretrained,
)
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.results import write_bad_audio, write_results
from audiolab.run_log import log_to
from audiolab.tracking import close_loggers
from audiolab.training.calibration import fit_on_dev
from audiolab.training.data import SpeechData
from audiolab.training.faults import explained
from audiolab.training.plan import TIMED_STEPS, StepClock, print_plan
from audiolab.training.preemption import Preemption
from audiolab.training.task import Task
from audiolab.training.weights import load_weights, read_weights, write_weights

log = logging.getLogger(__name__)


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
        if not trainer.checkpoint_callbacks and trainer.is_global_zero:
            log.warning(
                "no callback keeps checkpoints: a run that is stopped starts from the beginning, and what is judged "
                "and kept are the weights after the last epoch"
            )
        data = build_data(run.config)
        task, origin = begin_task(run.config) if fresh else (build_task(run.standalone_config), None)
        data.record_folder = run.path
        if fresh and trainer.is_global_zero:
            run.keep_model(standalone(run.config["model"], task.model))
            if origin:
                print(origin)
                log.info(origin)
        finished = False
        try:
            with out_of_memory.told(out_of_memory.in_run(run, trainer, task)):
                _fit(trainer, task, data, run, checkpoint)
                if kept := run.has_weights:
                    _keep_best_weights(trainer, task, run)
                results = evaluate(trainer, task, data, run)
                if not kept:
                    _keep_last_weights(trainer, run)
            finished = True
        finally:
            close_loggers(trainer.loggers, finished=finished)
            if trainer.is_global_zero:
                write_bad_audio(data, run.path)
        if trainer.is_global_zero:
            run.finish(results)
    return results


def _keep_best_weights(trainer: L.Trainer, task: Task, run: RunFolder) -> None:
    """Load the best checkpoint's weights, and write them alone beside it."""
    checkpoint = run.best_checkpoint
    weights = read_weights(checkpoint)
    load_weights(task, checkpoint, weights)
    if trainer.is_global_zero and checkpoint != run.weights_path:
        write_weights(run.weights_path, weights, run.facts_of(checkpoint))


def _keep_last_weights(trainer: L.Trainer, run: RunFolder) -> None:
    """Write the weights as they are after training: last of all, as weights alone would say that training is over."""
    weights = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        write_weights(run.weights_path, weights, run.facts_of(run.weights_path))


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
    task.check_data(data)
    trainer = build_trainer(config, Path(out), run, training=False)
    evaluation = evaluation_of(trainer)
    evaluation.calibration = run.calibration
    with (
        explained(Path(out), "Then give the same command again."),
        out_of_memory.told(out_of_memory.in_test(config, trainer)),
    ):
        try:
            trainer.test(task, data, verbose=False)
        finally:
            if trainer.is_global_zero:
                write_bad_audio(data, Path(out))
        if trainer.is_global_zero:
            write_results(Path(out), evaluation.results, add=add)
    return evaluation.results


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
