"""A callback for tests of what happens around a run; a module of its own, so that a config can name it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L


class Meanwhile(L.Callback):
    """Does once what a test wants to happen in the middle of the second epoch."""

    happens: ClassVar[list[Callable[[], Any]]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let it happen."""
        if trainer.current_epoch == 1 and batch_idx == 2:
            while self.happens:
                self.happens.pop()()
