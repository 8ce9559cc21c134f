"""What happens when memory runs out in a batch: it is told, or the batch goes through the model in smaller parts."""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from audiolab.training.parts import Batch, cut, loss_in_parts

if TYPE_CHECKING:
    from audiolab.training.task import Task

log = logging.getLogger(__name__)

_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",  # of other allocators than torch's, as NCCL's
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",  # how older cuDNN says it (pytorch issue 4107)
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device's or the machine's memory did not suffice.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def memory_facts(device: torch.device) -> str:
    """Return the device with its memory, and how much of it whom has; for a CPU, that of the machine.

    >>> memory_facts(torch.device("cpu"))  # doctest: +ELLIPSIS
    'the CPU (... GiB in the machine)'
    """
    if device.type != "cuda":
        total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return f"the {device.type.upper()} ({total_gib:.1f} GiB in the machine)"
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    others = max(0, total - free - own)
    return (
        f"{device} ({torch.cuda.get_device_name(device)}, {total / 2**30:.1f} GiB: {own / 2**30:.1f} taken by this "
        f"process, {others / 2**30:.1f} by others and the driver)"
    )


class MemoryGuard(L.Callback):
    """Notes what was in work when memory ran out; with `halve`, does it again in twice as many parts and goes on.

    A training step is then done again from its start, in place: the random generators and the buffers (running
    statistics) are put back, nothing has reached the optimiser. `train_parts` and `eval_parts` say in how many parts
    batches go through the model, also those that follow; processes agree on the largest. `train_parts` is in the
    checkpoint, so that a resumed run has the same numbers. Optimiser steps, their utterances and their schedule do not
    depend on it. The gradients are those of the whole batch up to rounding where the loss is a mean over utterances
    and nothing else looks across the batch: batch norm and pairwise losses see a part at a time, and dropout has other
    draws.

    With `halve` the backward pass is over before the processes exchange gradients, so that one no longer hides the
    other, and the buffers are copied once a step.
    """

    def __init__(self, halve: bool) -> None:
        self.halve = halve
        self.train_parts = self.eval_parts = 1
        self.facts = ""
        self._batch: Batch | None = None

    def setup(self, trainer: L.Trainer, pl_module: Task, stage: str) -> None:
        """Stand between the task and its batches."""
        pl_module.guard = self

    def state_dict(self) -> dict[str, Any]:
        """In how many parts a resumed run trains."""
        return {"train_parts": self.train_parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Train in as many parts as before; not more than one where halving was switched off since."""
        self.train_parts = state_dict["train_parts"] if self.halve else 1

    def loss(self, task: Task, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a training batch and its named parts."""
        self._batch = batch
        if not self.halve:
            return task.loss(batch)
        parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        scaler = getattr(task.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=task.device))
        put_back = _remember(task)

        def attempt(num_parts: int) -> tuple[Tensor, dict[str, Tensor]]:
            parts = cut(batch, num_parts)
            return loss_in_parts(task.loss, parts, [task.loss_weight(part) for part in parts], parameters, scale)

        return self._halving("training", attempt, len(batch["id"]), put_back)

    def each(self, of_batch: Callable[[Batch], list[Any]], batch: Batch) -> list[Any]:
        """Return what `of_batch` finds for each utterance of a batch, outside training."""
        self._batch = batch

        def attempt(num_parts: int) -> list[Any]:
            return [found for part in cut(batch, num_parts) for found in of_batch(part)]

        found = self._halving("evaluation", attempt, len(batch["id"]), lambda: None)
        self._batch = None
        return found

    def _halving(
        self, purpose: Literal["training", "evaluation"], attempt: Callable[[int], Any], size: int, undo: Callable
    ) -> Any:
        counter = {"training": "train_parts", "evaluation": "eval_parts"}[purpose]
        while True:
            num_parts = getattr(self, counter)
            try:
                return attempt(num_parts)
            except (RuntimeError, MemoryError) as error:
                if not self.halve or num_parts >= size or not is_out_of_memory(error):
                    raise
            # Only here, after the error, is nothing left that holds the tensors of the attempt.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            undo()
            setattr(self, counter, min(2 * num_parts, size))
            log.warning(
                "out of memory in %s with %d utterances at once: batches now go through the model in %d parts",
                purpose,
                -(-size // num_parts),
                getattr(self, counter),
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Drop the last step's gradients before this one needs the memory; Lightning would do so after it."""
        if self.halve and batch_idx % trainer.accumulate_grad_batches == 0:
            pl_module.zero_grad()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Let the process that needs most parts decide for all; checkpoints are written after this."""
        self._batch = None
        self._agree(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the process that needs most parts decide for all."""
        self._agree(trainer)

    on_test_epoch_end = on_validation_epoch_end

    def _agree(self, trainer: L.Trainer) -> None:
        if not self.halve or trainer.world_size == 1:
            return
        own = torch.tensor([self.train_parts, self.eval_parts], device=trainer.strategy.root_device)
        agreed = trainer.strategy.reduce(own.clone(), reduce_op="max").tolist()
        for purpose, mine, of_all in zip(("training", "evaluation"), own.tolist(), agreed, strict=True):
            if of_all > mine:
                log.warning("out of memory in %s on another process: batches now go in %d parts", purpose, of_all)
        self.train_parts, self.eval_parts = agreed

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note where memory ran out, as long as it is known."""
        if not is_out_of_memory(exception):
            return
        facts = f"out of memory{_request(exception)} on {memory_facts(trainer.strategy.root_device)}"
        if self._batch is None:
            self.facts = f"{facts}, outside of a batch"
            return
        shapes = [f"{name} {tuple(v.shape)}" for name, v in self._batch.items() if _is_wide(v)]
        size, num_parts = len(self._batch["id"]), self.train_parts if pl_module.training else self.eval_parts
        at_once = f"{-(-size // num_parts)} of {size} utterances" if num_parts > 1 else f"{size} utterances"
        where = f"epoch {trainer.current_epoch + 1} of training" if pl_module.training else "evaluation"
        self.facts = f"{facts}, in {where} with {at_once} at once{''.join(f', {shape}' for shape in shapes)}"


def _request(error: BaseException) -> str:
    asked = re.search(r"[Tt]ried to allocate ([\d.]+) ([KMG]i)?[Bb]", str(error))
    if not asked:
        return ""
    gib = float(asked[1]) / 1024 ** {"Gi": 0, "Mi": 1, "Ki": 2, None: 3}[asked[2]]
    return f" (asked for {gib:,.2f} GiB)"


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1


def _remember(module: nn.Module) -> Callable[[], None]:
    """Return what puts the buffers of a module and torch's generators back to where they are now."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def put_back() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)

    return put_back
