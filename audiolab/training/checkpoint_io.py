"""How Lightning writes and reads checkpoints here: whole or not at all, and never with code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from audiolab.training.checkpoint_files import written_whole
from audiolab.training.checkpoints import read_checkpoint


class WholeFiles(CheckpointIO):
    """Writes to a temporary file beside the checkpoint, makes sure that it is on the disk, then renames it.

    Lightning's own gathers the file in memory first and lets the disk decide when to write. Raises RunError where
    the file cannot be written, InputError where it cannot be read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint; `storage_options` are for other kinds of storage and must be None."""
        if storage_options is not None:
            raise TypeError("checkpoints are files of this machine: there are no storage options")
        with written_whole(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values into the main memory, always with `weights_only`.

        The file's checksums were compared when it was chosen, once for all processes.
        """
        return read_checkpoint(Path(path), verify=False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
