"""The section `init`: a fresh run that starts from the weights of another run or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiolab.build import check_signature
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.training.task import Task
from audiolab.training.weights import start_from


def check_init(config: dict[str, Any]) -> None:
    """Raise InputError for a section `init` that cannot be meant."""
    init = config["init"]
    check_signature(_options, init, "init")
    for option in ("allow_missing", "allow_unexpected"):
        patterns = init[option]
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise InputError(
                f"init.{option}={patterns!r} does not fit: give a list of beginnings of names, as [model.classifier.]"
            )
        if patterns and init["weights"] is None:
            raise InputError(f"init.{option} has no effect without init.weights: give both, or neither")


def starting_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the model section that a fresh run is built from.

    Where all weights come from a run of the same model, pretrained ones would be read only to be overwritten: then it
    is that run's own section without them.
    """
    init = config.get("init") or {}
    if init.get("weights") and Path(init["weights"]).is_dir() and not init["allow_missing"]:
        source = RunFolder.open(init["weights"])
        if source.config["model"] == config["model"]:
            return source.standalone_config["model"]
    return config["model"]


def start(task: Task, config: dict[str, Any]) -> str | None:
    """Give a fresh task the weights that `init` names, if any; returns a sentence on what came from where.

    Raises InputError for weights that cannot be read or differ from the model in more than `init` allows.
    """
    init = config.get("init") or {}  # runs from before there was this section have none
    if not init.get("weights"):
        return None
    path = Path(init["weights"]).expanduser()
    if path.is_dir() or not path.suffix:
        path = RunFolder.open(path).best_checkpoint
    weights = task.foreign_weights(path) if path.is_file() else None
    return start_from(task, path, init["allow_missing"], init["allow_unexpected"], weights)


def _options(weights: str | None, allow_missing: Any, allow_unexpected: Any) -> None:
    """Stand for the section in `check_signature`; what the lists hold `check_init` says itself."""
