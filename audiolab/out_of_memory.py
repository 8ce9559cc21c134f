"""What a user is told when memory ran out, and what the options allow to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from audiolab import config as conf
from audiolab.errors import InputError, OutOfMemory, RunError
from audiolab.training.memory import MemoryGuard, is_out_of_memory, memory_facts
from audiolab.training.sharding import is_sharded

if TYPE_CHECKING:
    import lightning as L
    import torch

    from audiolab.folder import RunFolder
    from audiolab.training.task import Task

OPTION = "on_out_of_memory"


def check_trainer(config: dict[str, Any], trainer: L.Trainer) -> None:
    """Raise InputError where halving cannot work with the trainer's strategy."""
    if config.get(OPTION) == "halve_batch" and is_sharded(trainer):
        raise InputError(
            f"{OPTION}=halve_batch does not go with trainer.strategy={config['trainer']['strategy']}, which exchanges "
            "weights in every pass: lower data.batch_size and raise trainer.accumulate_grad_batches instead"
        )


def guard(config: dict[str, Any]) -> MemoryGuard:
    """Return the callback that does what the option says."""
    return MemoryGuard(halve=config.get(OPTION) == "halve_batch")


@contextmanager
def told(sentence: Callable[[BaseException], str]) -> Iterator[None]:
    """Context: raise OutOfMemory with a sentence where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RunError) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(sentence(error)) from error


def in_run(run: RunFolder, trainer: L.Trainer, task: Task) -> Callable[[BaseException], str]:
    """Return what says where memory ran out in a run, and how to go on with it."""

    def sentence(_: BaseException) -> str:
        remedies = _smaller(run.config) if task.training else ["a model that needs less"]
        if guard_of(trainer).halve:
            return (
                f"{guard_of(trainer).facts}, where smaller parts of the batch do not help; on a device with more "
                f"memory python -m audiolab.resume {run.path} goes on, else start another run with {_any_of(remedies)}"
            )
        where = f"goes on from {run.latest_checkpoint.name}" if run.latest_checkpoint else "starts the training again"
        own = _smaller_batch(run.config) if task.training else "a smaller data.eval_batch_size"
        return (
            f"{guard_of(trainer).facts}: python -m audiolab.resume {run.path} {OPTION}=halve_batch {where} and puts "
            f"batches through the model in parts; or start another run with {_any_of([own, *remedies])}"
        )

    return sentence


def in_test(config: dict[str, Any], trainer: L.Trainer) -> Callable[[BaseException], str]:
    """Return what says where memory ran out in a test of a finished run."""

    def sentence(_: BaseException) -> str:
        size = config["data"]["eval_batch_size"]
        remedy = "take a device with more memory, as data.eval_batch_size is 1 already"
        if size > 1 and not guard_of(trainer).halve:
            remedy = f"test with data.eval_batch_size={size // 2}, which leaves the results as they are"
        return f"{guard_of(trainer).facts}: {remedy}"

    return sentence


def in_prediction(path: object, batch_size: int, device: torch.device) -> Callable[[BaseException], str]:
    """Return what says at which recording memory ran out."""
    remedy = f"the same command with --batch-size {batch_size // 2} goes on with this file"
    if batch_size == 1:
        remedy = "cut it into shorter files or take a device with more memory, as --batch-size is 1 already"
    return lambda _: (
        f"{path}: out of memory on {memory_facts(device)} with {batch_size} windows or blocks at once: {remedy}"
    )


def in_plan(config: dict[str, Any], trainer: L.Trainer) -> Callable[[BaseException], str]:
    """Return what says that a batch of this size does not fit."""
    remedies = [_smaller_batch(config), *_smaller(config)]
    return lambda _: f"{guard_of(trainer).facts}: plan the run with {_any_of(remedies)}"


def guard_of(trainer: L.Trainer) -> MemoryGuard:
    """Return the memory guard of a trainer."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, MemoryGuard))


def _smaller_batch(config: dict[str, Any]) -> str:
    """Say the options of the same optimiser steps from half the batch."""
    size, accumulation = config["data"]["batch_size"], config["trainer"].get("accumulate_grad_batches", 1)
    if size == 1:
        return "shorter training items"
    return f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * accumulation}"


def _smaller(config: dict[str, Any]) -> list[str]:
    """Say what else makes a training step smaller, as far as this config leaves it open."""
    remedies = []
    for name in conf.option_names({"model": config["model"]}):
        value: Any = config
        for key in name.split("."):
            value = value[key]
        if name.endswith(".gradient_checkpointing") and value is False:
            remedies.append(f"{name}=true")
    if "16" not in str(config["trainer"].get("precision")):
        remedies.append("trainer.precision=bf16-mixed")
    return [*remedies, "a model or training items that need less"]


def _any_of(choices: list[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
