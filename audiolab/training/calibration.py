"""Calibration of a run: fitted once on its development rows, applied to every other set, never to its own rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from audiolab.training.task import Task


def fit_on_dev(task: type[Task] | Task, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Return the task's calibration on the pooled rows of the development sets, with the sets it was fitted on."""
    if not tables:
        return None
    fitted = task.calibration(pd.concat(list(tables.values()), ignore_index=True))
    if fitted is None:
        return None
    sets = {name: {"num_rows": len(table), "ids_sha256": _digest(table)} for name, table in tables.items()}
    return {**fitted, "sets": sets}


def fitted_on(calibration: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Whether a calibration was fitted on the rows of this table: its numbers there would flatter the system."""
    return _digest(table) in [facts["ids_sha256"] for facts in calibration["sets"].values()]


def _digest(table: pd.DataFrame) -> str:
    return hashlib.sha256("\n".join(sorted(table["id"])).encode()).hexdigest()
