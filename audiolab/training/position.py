"""Where training is, so that a killed run goes on at the next batch with the same random draws."""

from __future__ import annotations

from typing import Any

import lightning as L

from audiolab.training.randomness import seed_step


class Position(L.Callback):
    """Seeds every training step by (seed, epoch, batch, rank) and tells the DataModule which batch comes next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the loader, which is iterated after this, deal out the batches of this epoch."""
        trainer.datamodule.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step."""
        seed_step(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the next batch; checkpoints are written after this, the DataModule's state among them."""
        last = batch_idx + 1 >= trainer.num_training_batches
        trainer.datamodule.position = (trainer.current_epoch + 1, 0) if last else (trainer.current_epoch, batch_idx + 1)
