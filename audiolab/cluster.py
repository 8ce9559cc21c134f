"""Who started this process: a person, or torchrun or srun as one of several processes of one run.

Importing this needs the standard library only. Under SLURM the number of tasks decides, not the presence of its
variables: in a job of one task (submitit, a batch script, an interactive shell) we start the processes ourselves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from audiolab.errors import InputError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment


def world_size() -> int:
    """Return how many processes torchrun or srun started for this run; 1 when we were started by hand.

    >>> world_size()
    1
    """
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    if "SLURM_PROCID" in os.environ:  # a batch script has that too, but the number of a step's tasks srun only
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return 1


def rank() -> int:
    """Return our number among the processes that torchrun or srun started; 0 when we were started by hand.

    >>> rank()
    0
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if world_size() > 1 else 0


def started_by_launcher() -> bool:
    """Whether torchrun, srun or our own launcher started this process as one of a run's, so it starts none itself.

    >>> started_by_launcher()
    False
    """
    return "RANK" in os.environ or world_size() > 1


def num_processes(trainer: dict[str, Any]) -> int:
    """Return how many processes to start here: one if a launcher (torchrun, srun) has started us already."""
    if started_by_launcher():
        return 1
    import torch

    devices, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, list):
        return len(devices)
    try:
        if (num := int(devices)) < 1:
            raise ValueError
        return num
    except (TypeError, ValueError):
        raise InputError(f"trainer.devices={devices!r} is unknown: give a number, a list like [0,1], or auto") from None


def cluster_environment() -> ClusterEnvironment:
    """Return Lightning's view of who started us; its own guess takes every SLURM job for one that srun manages.

    >>> type(cluster_environment()).__name__
    'LightningEnvironment'
    """
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if not started_by_launcher():
        return LightningEnvironment()
    return TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment()
