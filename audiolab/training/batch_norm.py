"""Running statistics of batch norm, measured anew for weights that no training step has seen."""

from __future__ import annotations

from itertools import islice

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from audiolab.training.parts import cut
from audiolab.training.randomness import seed_step


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has batch norms that are in training; frozen ones are in eval mode and keep their statistics.

    >>> has_batch_norm(nn.BatchNorm1d(2)), has_batch_norm(nn.BatchNorm1d(2).eval())
    (True, False)
    """
    return bool(_in_training(model))


@torch.no_grad()
def reestimate_batch_norm(trainer: L.Trainer, task: L.LightningModule) -> None:
    """Set the running statistics to their mean over one epoch of training batches, forward only, as a step sees them.

    It is the epoch after the last one, with the draws that it would have had, so the result is the same after a resume;
    each process takes its part of every batch, then the processes average.
    """
    data = trainer.datamodule
    norms = _in_training(task)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    epoch, guard = trainer.current_epoch + 1, getattr(task, "guard", None)
    data.position = (epoch, 0)
    for number, batch in enumerate(islice(data.train_dataloader(), int(trainer.num_training_batches))):
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.on_after_batch_transfer(move_data_to_device(batch, task.device), 0)
        if batch is not None:
            seed_step(data.seed, epoch, number, trainer.global_rank)
            with trainer.strategy.precision_plugin.train_step_context():
                for part in cut(batch, guard.train_parts) if guard else [batch]:
                    task.loss(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for buffer in (norm.running_mean, norm.running_var):
            buffer.copy_(trainer.strategy.reduce(buffer, reduce_op="mean"))


def _in_training(model: nn.Module) -> list[_BatchNorm]:
    modules = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in modules if norm.training and norm.track_running_stats]
