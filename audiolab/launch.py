"""One process for one device, else one per device; no worker ever sees Hydra.

Lightning's own launcher starts the command line again, which inside a Hydra sweep runs the whole sweep again. Here the
workers are started by torch's elastic launcher on a plain function, and rank 0's result comes back.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolab.errors import InputError, OutOfMemory, Preempted, RunError

if TYPE_CHECKING:
    from audiolab.folder import RunFolder


def rank() -> int:
    """Return our number among processes that torchrun or srun started; 0 when we were started by hand."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def launch(config: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    """Check a composed config, make its run folder, train and evaluate; returns the metrics by set.

    A run that is finished already is only reported; one that was begun goes on. With `plan` nothing is written.
    """
    from audiolab import engine
    from audiolab.folder import RunFolder
    from audiolab.preflight.quick import before_run
    from audiolab.training.preemption import Preemption

    engine.check(config)
    if config["plan"]:
        engine.plan(config)
        return None
    num = num_processes(config["trainer"])
    with Preemption(Path(config["outputs"]) / config["task"] / config["name"]):
        data, task = engine.prepare(config)
        if rank() == 0:
            before_run(config, data, task, num)
    return resume(RunFolder.create(config) if rank() == 0 else RunFolder.join(config))


def resume(run: RunFolder) -> dict[str, dict[str, float]]:
    """Train and evaluate what is left of a run."""
    from audiolab import engine
    from audiolab.lock import locked

    run.require_whole_config()
    engine.check(run.config)  # it may have been edited by hand
    results = run.results
    if results is not None:
        print(f"{run.path} is finished already: its results follow; choose another name= to run again")
    else:
        with locked(run.path) if rank() == 0 else nullcontext():
            results = in_processes(engine.train, num_processes(run.config["trainer"]), str(run.path))
    if rank() == 0:
        engine.report(run)
    return results


def num_processes(trainer: dict[str, Any]) -> int:
    """Return how many processes to start here: one if a launcher (torchrun, srun) has started us already."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
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


def in_processes(function: Callable[..., Any], num: int, *arguments: Any) -> Any:
    """Call `function` here, or on `num` processes of this machine; rank 0's result comes back."""
    if num == 1:
        return function(*arguments)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from audiolab.training.preemption import Forwarding

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or num) // num)))
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port: jobs of a sweep never clash
        max_restarts=0,
        monitor_interval=0.5,
        start_method="spawn",
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # SIGTERM is forwarded: see Forwarding
    )
    forwarding = Forwarding()
    try:
        with forwarding:
            return elastic_launch(launch_config, function)(*arguments)[0]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        message = failure.message if isinstance(failure.message, str) else failure.message.get("message", "")
        for kind in (InputError, RunError, OutOfMemory, Preempted):
            if message.startswith(f"{kind.__name__}: "):
                raise kind(message.removeprefix(f"{kind.__name__}: ")) from error
        if forwarding.forwarded:  # a process that had not yet begun, or was told twice, has no words of its own
            raise Preempted("stopped by a signal; to go on: the same command again") from error
        raise
