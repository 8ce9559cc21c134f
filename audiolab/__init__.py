"""audiolab: a PyTorch Lightning + Hydra suite for speech experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolab.training.task import Task

__version__ = "0.1.0"


def load(run_folder: str) -> Task:
    """Return the model of a run with its best weights, in eval mode, from the run folder alone.

    The result has `infer(waveform, sample_rate)`. Raises `audiolab.errors.InputError` for anything but a trained run.
    """
    from audiolab import engine
    from audiolab.folder import RunFolder

    return engine.load_task(RunFolder.open(run_folder))
