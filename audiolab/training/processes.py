"""Several processes of one training: what they tell one another, and what keeps them alike and in step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from audiolab.training.sharding import is_sharded


def gather(values: list[Any]) -> list[Any]:
    """Concatenate the lists of all processes, in rank order; every process gets the whole.

    >>> gather([1, 2])
    [1, 2]
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    everyone: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, values)
    return [value for part in everyone for value in part]


class InStep(L.Callback):
    """Keeps the processes of a training alike where DDP does not, and counts unreadable files over all of them.

    DDP hands out rank 0's buffers (running statistics of batch norm) with the first batch of a validation, which a
    process without utterances never sees: the others would wait for it. Here they are handed out before, once the
    weights to judge, a moving average perhaps, are in place. FSDP leaves each process its own, of which rank 0's count,
    as in DDP.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give every process the buffers of rank 0."""
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel) or is_sharded(trainer):
            for buffer in pl_module.buffers():
                dist.broadcast(shared := buffer.contiguous(), 0)
                buffer.copy_(shared)
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = False

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let DDP hand out buffers again."""
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell one another the files that could not be read."""
        trainer.datamodule.share_bad_audio()
