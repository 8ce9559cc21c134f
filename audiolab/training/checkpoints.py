"""Checkpoints: written at moments that resume exactly, read safely, refused in a sentence."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from audiolab.errors import InputError


class RecentCheckpoints(ModelCheckpoint):
    """`last.ckpt` and the last `keep` checkpoints: after every epoch and, if asked, every so many optimiser steps.

    Two moments are avoided at which Lightning 2.6 writes checkpoints that do not resume exactly: between two batches of
    one accumulated step, where the gradients gathered so far are lost, and after an epoch's last batch but before its
    validation, where the epoch counters of a resumed run end up one behind.
    """

    def __init__(self, dirpath: Path, keep: int, every_n_steps: int | None) -> None:
        super().__init__(
            dirpath,
            filename="step{step:07d}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write within an epoch when it is due."""
        done = batch_idx + 1
        at_step = done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches
        if self.every_n_steps and at_step and trainer.global_step % self.every_n_steps == 0:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values; anything that would run code is refused.

    Raises InputError for a file that is damaged, unsafe or no checkpoint of a run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a run folder that has trained for at least one epoch") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason[:150]}): "
            "it is damaged or holds code; copy it again from its source"
        ) from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise InputError(f"{path} is not a checkpoint of a run: it has no state_dict; give one that audiolab wrote")
    return state
