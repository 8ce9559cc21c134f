"""A callback of a test, in a module of its own so that a run in another process can import it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class Ballast(L.Callback):
    """State of some megabytes, so that a checkpoint takes a while to write."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def state_dict(self) -> dict[str, Any]:
        """Return zeros."""
        return {"ballast": torch.zeros(self.megabytes * 2**18)}
