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
_AVERAGES = ("MovingAverage", "TopKAverage")


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
    averages = [
        f"callbacks.{name}"
        for name, section in (config["callbacks"] or {}).items()
        if section["_target_"].rpartition(".")[2] in _AVERAGES
    ]
    wrong = [f"{name}, which averages whole weights" for name in averages]
    if config["data"].get("feature_cache"):
        wrong.append("data.feature_cache, which each process fills by itself")
    if config["trainer"].get("sync_batchnorm"):
        wrong.append("trainer.sync_batchnorm=true")
    if wrong:
        raise InputError(f"trainer.strategy={NAME} does not go with {wrong[0]}: leave it out, or use trainer=ddp")


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
    """Split each repeated block of a task, then what is left of it; once is enough.

    A block is a member of a ModuleList, not in another block, that has parameters in modules of its own: of those that
    are a single layer others may use the weights directly, outside its `forward`.
    """
    if isinstance(task, FSDPModule):
        return
    for block in _blocks(task):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    for method in ("loss", "rows"):
        register_fsdp_forward_method(task, method)
    _keep_all_layers(task)


def _blocks(module: nn.Module) -> list[nn.Module]:
    blocks = []
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList) else []
        own = [block for block in members if list(block.children()) and any(True for _ in block.parameters())]
        blocks += own
        rest = [member for member in members if member not in own] if members else [child]
        blocks += [block for other in rest for block in _blocks(other)]
    return blocks


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
    >>> load_state(layer, {"weight": layer.weight.detach() * 0})
    >>> layer.weight.tolist()
    [[0.0]]
    """
    if isinstance(module, FSDPModule):
        set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))
    else:
        module.load_state_dict(weights)
