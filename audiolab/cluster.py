"""Who started this process: a person, or torchrun or srun as one of several processes of one run.

Only the standard library is imported here. Under SLURM the number of tasks decides, not the presence of its variables:
in a job of one task (submitit, a batch script, an interactive shell) we start the processes of a run ourselves.
"""

from __future__ import annotations

import os


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
