"""The processors, memory and GPUs that this process may use, against what the run asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolab.preflight.findings import Finding, size
from audiolab.training.loading import num_cpus

GROUP = "machine"
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process sees; its memory is None where nobody looked."""

    name: str
    total_mb: float | None = None
    free_mb: float | None = None


@dataclass(frozen=True)
class Machine:
    """What is here; memory is None where the system does not tell."""

    num_cores: int
    available_mb: float | None
    gpus: tuple[Gpu, ...]


def this_machine(*, gpu_memory: bool = True) -> Machine:
    """Look at this machine, within the limits of the container.

    Reading a GPU's memory takes some of it (a CUDA context), so a process that starts others leaves it.
    """
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        if not gpu_memory:
            gpus.append(Gpu(f"GPU {number}"))
            continue
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(Gpu(torch.cuda.get_device_name(number), total / 2**20, free / 2**20))
    return Machine(num_cores(), available_mb(), tuple(gpus))


def num_cores(cgroup: Path = _CGROUP) -> int:
    """Return the processors that this process may use: its affinity, and the container's quota where that is less."""
    allowed = num_cpus()
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else allowed


def available_mb(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> float | None:
    """Return the memory that is not in use, or what the container's limit leaves of it, in MiB; None if unknown."""
    lines = dict(line.split(":", 1) for line in _text(meminfo).splitlines() if ":" in line)
    found = [int(lines["MemAvailable"].split()[0]) / 2**10] if "MemAvailable" in lines else []
    limit, used = _text(cgroup / "memory.max"), _text(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        reclaimable = [
            line.split()[1] for line in _text(cgroup / "memory.stat").splitlines() if "inactive_file" in line
        ]
        found.append((int(limit) - int(used) + int(reclaimable[0] if reclaimable else 0)) / 2**20)
    return min(found, default=None)


def examine_machine(machine: Machine, config: dict[str, Any], num_processes: int) -> list[Finding]:
    """Compare a machine with the trainer and data sections of a config.

    >>> config = {"trainer": {"accelerator": "cpu", "devices": 1}, "data": {"num_workers": 0}}
    >>> [finding.found for finding in examine_machine(Machine(2, 8192.0, ()), config, 1)]
    ['2 cores, 8.0 GiB of memory free', 'none', '1 process, on cpu']
    >>> config["trainer"]["precision"] = "bf16-mixed"
    >>> examine_machine(Machine(2, 8192.0, ()), config, 1)[-1].state
    'warning'
    """
    trainer, workers = config["trainer"], config["data"].get("num_workers", 0)
    memory = "" if machine.available_mb is None else f", {size(machine.available_mb)} of memory free"
    here = f"{machine.num_cores} core{'s' * (machine.num_cores != 1)}{memory}"
    findings = [Finding(GROUP, "processors", "ok", here)]
    workers = min(workers, machine.num_cores)  # as many as a loader starts
    if workers * num_processes > machine.num_cores:
        found = f"{here}; {num_processes} processes start {workers} data workers each"
        remedy = f"data.num_workers={machine.num_cores // num_processes} is as quick"
        findings = [Finding(GROUP, "processors", "warning", found, remedy)]
    accelerator = trainer.get("accelerator", "auto")
    listed = "; ".join(_words(gpu) for gpu in machine.gpus) or "none"
    unused = "trainer=gpu would use one" if machine.gpus and accelerator == "cpu" else ""
    findings.append(Finding(GROUP, "GPUs", "ok", listed, unused))
    device = "cpu" if not machine.gpus and accelerator == "auto" else accelerator
    processes = f"{num_processes} process{'es' * (num_processes != 1)}"
    findings.append(Finding(GROUP, "trainer", "ok", f"{processes}, on {'gpu' if device == 'auto' else device}"))
    precision = str(trainer.get("precision", "32-true"))
    if device == "cpu" and "16" in precision:
        found = f"{precision} on a CPU, where half precision is up to 20 times slower than single"
        findings.append(Finding(GROUP, "precision", "warning", found, "give trainer.precision=32-true"))
    return findings


def _words(gpu: Gpu) -> str:
    if gpu.free_mb is None or gpu.total_mb is None:
        return gpu.name
    return f"{gpu.name}, {size(gpu.free_mb)} of {size(gpu.total_mb)} free"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
