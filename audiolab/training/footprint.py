"""How much memory and disk a model takes: exactly for what it stores, measured for what a batch leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from audiolab.training.task import Task


@dataclass(frozen=True)
class Footprint:
    """MiB of all weights, of those that are trained, and of moving averages kept beside them."""

    weights_mb: float
    trainable_mb: float
    averages_mb: float = 0.0

    @property
    def training_mb(self) -> float:
        """Weights, gradients and the two moments of AdamW."""
        return self.weights_mb + 3 * self.trainable_mb + self.averages_mb

    @property
    def checkpoint_mb(self) -> float:
        """One full checkpoint: weights, moments, averages."""
        return self.weights_mb + 2 * self.trainable_mb + self.averages_mb


def footprint(module: nn.Module, averages: int = 0) -> Footprint:
    """Return the footprint of a module with so many moving averages of it.

    >>> footprint(nn.Linear(1024, 1024, bias=False)).training_mb
    16.0
    """
    weights_mb = _mb([*module.parameters(), *module.buffers()])
    trainable_mb = _mb([parameter for parameter in module.parameters() if parameter.requires_grad])
    return Footprint(weights_mb, trainable_mb, averages * weights_mb)


def checkpoint_files(callbacks: Mapping[str, Mapping[str, Any]], max_epochs: int) -> tuple[int, int]:
    """Return how many full checkpoints, and how many of weights only, a run keeps at most; one is being written.

    `last.ckpt` is another name of the newest one.

    >>> best_and_last = {"_target_": "audiolab.training.checkpoints.Checkpoints", "keep": 3, "every_n_steps": None}
    >>> checkpoint_files({"checkpoints": best_and_last}, max_epochs=100)
    (5, 0)
    """
    full = weights = 0
    for section in callbacks.values():
        kind = section["_target_"].rpartition(".")[2]
        if kind == "ModelCheckpoint":
            saved = section.get("save_top_k", 1)
            full += max_epochs if saved == -1 else min(saved, max_epochs)
        elif kind == "Checkpoints":
            within = section.get("every_n_steps") or section.get("every_n_minutes")
            full += 1 + (section["keep"] if within else min(section["keep"], max_epochs))  # the best one too
        elif kind == "TopKAverage":
            weights += min(section["keep"], max_epochs) + 1
    return full + (full > 0), weights


def checkpoints_mb(needs: Footprint, callbacks: Mapping[str, Mapping[str, Any]], max_epochs: int) -> float:
    """Return the disk that the checkpoints of a run take at most, in MiB; one more than it keeps is being written.

    The best weights are written once more by themselves, for other programs.
    """
    full, weights = checkpoint_files(callbacks, max_epochs)
    return full * needs.checkpoint_mb + (weights + 1) * needs.weights_mb


def num_averages(callbacks: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many moving averages of the weights a run keeps in memory and in its checkpoints.

    >>> num_averages({"ema": {"_target_": "audiolab.training.averaging.MovingAverage", "decay": 0.99}})
    1
    """
    return sum(section["_target_"].endswith(".MovingAverage") for section in callbacks.values())


def step_memory(task: Task, batch: dict[str, Any]) -> tuple[float, float]:
    """Run one forward and backward pass; returns the loss, and MiB of the batch and of what forward keeps for backward.

    Every storage counts once, the weights not at all; what a checkpointed layer computes again is not seen. Gradients
    are cleared.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*task.parameters(), *task.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor.detach())  # held, so that no address comes twice
        return tensor

    for value in batch.values():
        if isinstance(value, Tensor):
            note(value)
    task.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = task.loss(batch)
    kept_mb = sum(size for size, _ in kept.values()) / 2**20
    loss.backward()
    task.zero_grad(set_to_none=True)
    return float(loss.detach()), kept_mb


def _mb(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
