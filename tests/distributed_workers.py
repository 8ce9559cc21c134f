"""Functions that the tests run on several processes; spawned processes import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from audiolab.errors import InputError, OutOfMemory


def answer(folder: str) -> tuple[int, int]:
    """Write what this process is; return (rank, world size)."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (Path(folder) / f"{rank}.txt").write_text(f"{os.getpid()} {os.environ['LOCAL_RANK']} {world}")
    return rank, world


def fail(how: str) -> None:
    """End process 1 in a way; process 0 waits for it, as a collective would."""
    if os.environ["RANK"] == "0":
        time.sleep(60)
    if how == "input":
        raise InputError("train.txt, line 3: no label")
    if how == "memory":
        raise OutOfMemory("the device has no memory left")
    if how == "bug":
        raise KeyError("fold")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])


def late_and_early() -> int:
    """Finish process 1 long before process 0, after both have used the group."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if os.environ["RANK"] == "0":
        time.sleep(1)
    return int(total)


def wait(folder: str) -> None:
    """Say that this process is there, then do nothing for a minute."""
    answer(folder)
    time.sleep(60)


def split_weights() -> list[tuple[float, float, bool]]:
    """Split a network; return which share of weights and gradients each process has, and whether whole ones load."""
    import torch
    from torch import distributed, nn
    from torch.distributed.device_mesh import init_device_mesh

    from audiolab.training.gradients import gradients_of
    from audiolab.training.processes import gather
    from audiolab.training.sharding import load_state, local, shard

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
            self.head = nn.Linear(4, 2)

        def loss(self, x_bd: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x_bd = layer(x_bd)
            return self.head(x_bd).square().mean()

        rows = loss

    distributed.init_process_group("gloo")
    network = Network()
    total = sum(parameter.numel() for parameter in network.parameters())
    shard(network, init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",)))
    shard(network, init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",)))  # as for a second evaluation
    network.loss(torch.ones(2, 4)).backward()
    load_state(network, {name: torch.full(value.shape, 3.0) for name, value in network.state_dict().items()})
    shares = [local(parameter) for parameter in network.parameters()], gradients_of(network.parameters())
    weights, gradients = (sum(part.numel() for part in parts) / total for parts in shares)
    return gather([(weights, gradients, all(bool((local(p) == 3).all()) for p in network.parameters()))])
