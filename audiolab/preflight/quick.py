"""The checks that take no time, before every run: only what is not fine is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from audiolab.errors import InputError
from audiolab.nn.mamba import Mamba, scan_backend
from audiolab.preflight.disk import examine_disk
from audiolab.preflight.findings import Finding
from audiolab.preflight.lists import examine_lists
from audiolab.preflight.machine import Machine, examine_machine, this_machine
from audiolab.preflight.memory import check_memory
from audiolab.preflight.packages import examine_packages
from audiolab.training.data import SpeechData
from audiolab.training.device import resident_mb
from audiolab.training.footprint import Footprint, checkpoints_mb, footprint, num_averages
from audiolab.training.task import Task

log = logging.getLogger(__name__)


def before_run(config: dict[str, Any], data: SpeechData, task: Task, num_processes: int) -> None:
    """Warn of what is not fine; raise InputError for what would stop the run later."""
    machine = this_machine(gpu_memory=num_processes == 1)
    needs = footprint(task, num_averages(config["callbacks"] or {}))
    findings = [
        *examine_packages(wanted_extras(config)),
        *kernel_findings(config, task, machine),
        *examine_machine(machine, config, num_processes),
        memory_finding(config, needs, None, machine, num_processes),
        disk_finding(config, needs),
        *examine_lists({name: data.listing(name) for name in data.listed_sets}, data.sets_of_unseen_speakers),
    ]
    for finding in findings:
        if finding.state == "warning":
            log.warning("%s", finding.sentence)
    problems = [finding.sentence for finding in findings if finding.state == "problem"]
    if problems:
        raise InputError(f"{'; '.join(problems)} (python -m audiolab.check with the same options shows all checks)")


def run_folder(config: dict[str, Any]) -> Path:
    """Return the folder that a run would have."""
    return Path(config["outputs"]) / config["task"] / config["name"]


def disk_finding(config: dict[str, Any], needs: Footprint | None) -> Finding:
    """Check the outputs' disk against the checkpoints of a config."""
    epochs = config["trainer"]["max_epochs"]
    needed_mb = None if needs is None else checkpoints_mb(needs, config["callbacks"] or {}, epochs)
    return examine_disk(Path(config["outputs"]), run_folder(config), needed_mb)


def memory_finding(
    config: dict[str, Any], needs: Footprint, item_mb: float | None, machine: Machine, num_processes: int
) -> Finding:
    """Check the memory of the GPU, or of the machine, against what training needs; `item_mb` as in `check_memory`."""
    trainer, batch_size = config["trainer"], config["data"]["batch_size"]
    precision, sharded = str(trainer.get("precision", "32-true")), "fsdp" in str(trainer.get("strategy", "auto"))
    if machine.gpus and trainer.get("accelerator", "auto") != "cpu":
        smallest = min(machine.gpus, key=lambda gpu: gpu.free_mb or 0.0)
        shards = num_processes if sharded else 1
        return check_memory(
            needs, item_mb, batch_size, precision, shards, smallest.total_mb, smallest.free_mb, smallest.name
        )
    own_mb = resident_mb()
    here_mb = own_mb if num_processes == 1 else 0.0  # of several, none has started yet
    free_mb = None if machine.available_mb is None else machine.available_mb / num_processes + here_mb
    return check_memory(needs, item_mb, batch_size, precision, 1, free_mb, free_mb, "machine", own_mb)


def wanted_extras(config: dict[str, Any]) -> dict[str, str]:
    """Return which extras of this package the loggers of a configuration need, and what uses each.

    What model, data and augmentation need, they say themselves when they are built.

    >>> wanted_extras({"logger": {"mine": {"_target_": "audiolab.tracking.wandb"}}})
    {'wandb': 'logger=wandb'}
    """
    names = [section["_target_"].rpartition(".")[2] for section in (config["logger"] or {}).values()]
    return {name: f"logger={name}" for name in names if name in ("wandb", "tensorboard")}


def kernel_findings(config: dict[str, Any], task: Task, machine: Machine) -> list[Finding]:
    """Say where a Mamba model on a GPU runs without its CUDA kernel."""
    on_gpu = machine.gpus and config["trainer"].get("accelerator", "auto") != "cpu"
    if not on_gpu or not any(isinstance(module, Mamba) for module in task.modules()):
        return []
    backend = scan_backend("cuda")
    state = "warning" if backend.startswith("pure PyTorch") else "ok"
    remedy = "pip install 'audiolab[mamba]' makes it several times quicker" if state == "warning" else ""
    return [Finding("packages", "mamba", state, f"the scan is {backend}", remedy)]
