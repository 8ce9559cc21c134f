"""Models that do not fit on one device: weights, gradients and optimiser state are split over the processes (FSDP2).

Every process runs the whole model on its own utterances, and has the whole weights of one block at a time, while that
block is computed. A pass through the model is therefore something that all processes do together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from audiolab.errors import InputError

log = logging.getLogger(__name__)

NAME = "fsdp"
"""The value of trainer.strategy."""
_MESH = "data_parallel"
_MOVING = "MovingAverage"


class Sharded(ModelParallelStrategy):
    """Splits a task over all processes of a run, on GPUs or the CPU; checkpoints are those of one process."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Join the processes, and tell the task, once there is one, over which of them it is split."""
        self._setup_distributed()
        if self.lightning_module is None:
            return
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=(_MESH,))
        self.lightning_module._device_mesh = self._device_mesh


def refuse(config: Mapping[str, Any]) -> None:
    """Raise InputError for a strategy that we do not have, and for options that do not go with a split model."""
    strategy = str(config["trainer"].get("strategy", "auto"))
    if strategy.startswith((NAME, "deepspeed", "model_parallel")) and strategy != NAME:
        raise InputError(f"trainer.strategy={strategy} is not there: a model is split over devices by trainer=fsdp")
    if strategy != NAME:
        return
    for name, section in (config["callbacks"] or {}).items():
        if section["_target_"].rpartition(".")[2] == _MOVING:
            what = f"callbacks.{name}, which keeps whole weights"
            other = "callbacks=default or callbacks=topk_average"
            raise InputError(f"trainer.strategy={NAME} does not go with {what}: use {other}, or trainer=ddp")
    if config["data"].get("feature_cache"):
        raise InputError(f"trainer.strategy={NAME} does not go with data.feature_cache: set it to null, or trainer=ddp")
    if config["trainer"].get("sync_batchnorm"):
        raise InputError(f"trainer.strategy={NAME} does not go with trainer.sync_batchnorm=true: leave it out")


def trainer_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's arguments with the strategy itself in place of its name."""
    if options.get("strategy") != NAME:
        return dict(options)
    # weights that were gathered in inference mode could not be trained afterwards
    return {**options, "strategy": Sharded(), "inference_mode": False}


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether each process has a part of the weights only."""
    return isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy)


def shard(task: L.LightningModule, mesh: DeviceMesh) -> None:
    """Split each repeated block of a task, then what is left of it; once is enough."""
    if isinstance(task, FSDPModule):
        return
    for block in blocks(task):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    for method in ("loss", "rows"):
        register_fsdp_forward_method(task, method)
    _keep_all_layers(task)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a module that are split one by one: what is in no block counts as one more.

    A block is a member of a ModuleList, not within another block, that has modules of its own and weights. Of a single
    layer others may use the weights directly, outside its `forward`, where they are not put together.

    >>> blocks(nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)])))
    [Sequential(
      (0): Linear(in_features=1, out_features=1, bias=True)
    )]
    """
    found = []
    for child in module.children():
        is_block = isinstance(module, nn.ModuleList) and any(child.children()) and any(True for _ in child.parameters())
        found += [child] if is_block else blocks(child)
    return found


def _keep_all_layers(task: nn.Module) -> None:
    """Let transformers' encoders leave out no layer at random: each process would wait in another one."""
    for name, module in task.named_modules():
        rate = getattr(getattr(module, "config", None), "layerdrop", 0.0)
        if rate and isinstance(getattr(module, "layers", None), nn.ModuleList):
            module._is_fsdp_managed_module = True  # what transformers asks
            log.warning("%s has layerdrop=%g, but with trainer=fsdp all processes go through all layers", name, rate)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: all of it where it is not split, perhaps nothing where it is.

    >>> import torch
    >>> local(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load_state(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights, every name alike, into a module that is split or not; on all processes at the same time.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> load_state(layer, {"weight": layer.weight.detach() * 0 + 2})
    >>> layer.weight.tolist()
    [[2.0]]
    """
    if isinstance(module, FSDPModule):
        set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))
    else:
        module.load_state_dict(weights)
