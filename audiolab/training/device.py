"""What the machine does while it trains: the counters of the GPU and of this process."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

THERMAL = 0x20 | 0x40  # software and hardware slowdown: nvmlClocksEventReason{Sw,Hw}ThermalSlowdown
COUNTERS = (
    "gpu_utilisation_percent",
    "gpu_temperature_c",
    "gpu_power_w",
    "gpu_slowed_by_heat",
    "gpu_memory_allocated_mb",
    "gpu_memory_peak_mb",
    "gpu_memory_total_mb",
    "cpu_percent",
    "memory_mb",
)


class ProcessClock:
    """CPU time of this process between two readings, in percent of one processor; data workers have their own."""

    def __init__(self) -> None:
        self._last = (time.perf_counter(), time.process_time())

    def percent(self) -> float:
        """Return the use since the last call."""
        now = time.perf_counter(), time.process_time()
        wall_s, cpu_s = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return 100 * cpu_s / wall_s if wall_s > 0 else 0.0


def resident_mb() -> float:
    """Return the memory of this process in MiB: now on Linux, the most so far elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def read_gpu(device: torch.device) -> dict[str, float]:
    """Return the counters of a CUDA device that can be read, by their names in `COUNTERS`; memory in MiB.

    Utilisation, temperature and power need `nvidia-ml-py`; without it that is said once. What a device does not tell
    (a MIG slice its utilisation, say) is left out.
    """
    counters = {
        "gpu_memory_allocated_mb": torch.cuda.memory_allocated(device) / 2**20,
        "gpu_memory_peak_mb": torch.cuda.max_memory_allocated(device) / 2**20,
        "gpu_memory_total_mb": torch.cuda.get_device_properties(device).total_memory / 2**20,
    }
    nvml = _nvml()
    if nvml is None:
        return counters
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except nvml.NVMLError:
        return counters
    for name, read in (
        ("gpu_utilisation_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        ("gpu_temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        ("gpu_power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        ("gpu_slowed_by_heat", lambda: bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & THERMAL)),
    ):
        try:
            counters[name] = float(read())
        except nvml.NVMLError:
            continue
    return counters


@cache
def _nvml() -> Any:
    """Return NVIDIA's library of counters, ready to be asked, or None; why is said once."""
    try:
        import pynvml
    except ModuleNotFoundError:
        log.warning("the GPU's utilisation, temperature and power are not shown: install audiolab[gpu] to see them")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.warning("the GPU's utilisation, temperature and power are not shown: NVML says %s", error)
        return None
    return pynvml


def of_all_ranks(readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the counters of several processes as one: the least utilised device, the hottest, the fullest.

    >>> of_all_ranks([{"gpu_utilisation_percent": 90.0, "memory_mb": 900.0},
    ...               {"gpu_utilisation_percent": 20.0, "memory_mb": 700.0}])
    {'gpu_utilisation_percent': 20.0, 'memory_mb': 900.0}
    """
    names = [name for name in COUNTERS if any(name in reading for reading in readings)]
    least = ("gpu_utilisation_percent", "gpu_memory_total_mb")
    return {
        name: (min if name in least else max)(reading[name] for reading in readings if name in reading)
        for name in names
    }


def device_warnings(
    counters: Mapping[str, float], mean_utilisation_percent: float | None, idle_percent: float, memory_percent: float
) -> dict[str, str]:
    """Say in a sentence each what is wrong with a GPU, by what it is about.

    `mean_utilisation_percent` is that of the last minutes, None where it is not known for long enough.

    >>> list(device_warnings({"gpu_slowed_by_heat": 1.0, "gpu_temperature_c": 91.0}, 12.0, 30.0, 95.0))
    ['heat', 'idle']
    """
    found = {}
    if counters.get("gpu_slowed_by_heat"):
        found["heat"] = (
            f"the GPU is at {counters.get('gpu_temperature_c', float('nan')):.0f} °C and slows itself down: look after "
            "its cooling, or give it less to do at once"
        )
    if mean_utilisation_percent is not None and mean_utilisation_percent < idle_percent:
        found["idle"] = (
            f"the GPU was busy {mean_utilisation_percent:.0f} % of the last minutes: a larger data.batch_size, or "
            "faster loading (throughput/data_wait_percent in metrics.csv), would use more of it"
        )
    total_mb = counters.get("gpu_memory_total_mb", 0.0)
    if total_mb and counters["gpu_memory_peak_mb"] > memory_percent / 100 * total_mb:
        found["memory"] = (
            f"up to {counters['gpu_memory_peak_mb']:,.0f} of the GPU's {total_mb:,.0f} MiB were taken: a longer batch "
            "may not fit; halve data.batch_size and double trainer.accumulate_grad_batches to be safe"
        )
    return found
