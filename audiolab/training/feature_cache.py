"""Features of a frozen encoder on disk: computed once, read in every later epoch and by every later run.

An entry is found by what it was made of: the encoder (weights and options) and the samples of the waveform. A changed
file, crop or encoder is another entry, so the cache is never stale; it is right only while the waveform of an item is
the same in every epoch, which `refuse_cache` checks.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from torch import nn

from audiolab.errors import InputError
from audiolab.reporting.scores import check_writable
from audiolab.training.processes import gather

if TYPE_CHECKING:
    from audiolab.training.data import SpeechData
    from audiolab.training.task import Task


class FeatureStore:
    """One .npy file a waveform under `folder`/<encoder>, in `dtype` (float32, or float16 for half the disk).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore(Path(folder), encoder="a1b2", dtype="float32")
    ...     store.save(np.zeros(8, np.float32), np.ones((2, 3), np.float32))
    ...     store.has(np.zeros(8, np.float32)), store.has(np.ones(8, np.float32))
    (True, False)
    """

    def __init__(self, folder: Path, encoder: str, dtype: str) -> None:
        self.folder, self.dtype = folder / f"{encoder}-{dtype}", np.dtype(dtype)
        self.item_bytes = self.dtype.itemsize

    def has(self, wave: np.ndarray) -> bool:
        """Whether the features of a waveform (time,) are there."""
        return self._path(wave).is_file()

    def load(self, wave: np.ndarray) -> np.ndarray:
        """Return the features of a waveform in float32. Raises InputError when they are not there."""
        path = self._path(wave)
        try:
            return np.load(path, allow_pickle=False).astype(np.float32, copy=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"the feature cache {self.folder} lost an entry ({path.name}: {type(error).__name__}): "
                "delete that file or the folder, and start the same command again"
            ) from error

    def save(self, wave: np.ndarray, features: np.ndarray) -> None:
        """Write the features of a waveform, completely or not at all."""
        path = self._path(wave)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                np.save(file, features.astype(self.dtype))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, wave: np.ndarray) -> Path:
        samples = np.ascontiguousarray(wave, dtype=np.float32)
        name = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def fingerprint(module: nn.Module, *options: object) -> str:
    """Return a name for a module's weights and the options it is used with.

    >>> fingerprint(nn.Linear(2, 2), 1) == fingerprint(nn.Linear(2, 2), 1)  # other random weights
    False
    """
    digest = hashlib.blake2b(repr(options).encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_cache(data: SpeechData, task: Task) -> None:
    """Raise InputError where cached features would be wrong, as what the encoder hears or does changes with the epoch,
    or cannot be written."""
    if data.augment is not None:
        reason = "an augmentation changes the waveform in every epoch: choose augment=<task>/none"
    elif data.draws_windows:
        reason = "training windows are drawn anew in every epoch: set data.random_crop=false"
    else:
        reason = task.why_features_change()
    if reason:
        raise InputError(f"data.feature_cache cannot be used, {reason}, or set data.feature_cache=null")
    check_writable(Path(data.feature_cache).expanduser(), "data.feature_cache=")


class FeatureCache(L.Callback):
    """Computes what the cache lacks before a set is first used, each process its share, then lets the set read it."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the training and development sets."""
        self._fill(trainer, pl_module, ["train", *trainer.datamodule.val_sets])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the development sets, where `fit` has not."""
        self._fill(trainer, pl_module, trainer.datamodule.val_sets)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the test sets."""
        self._fill(trainer, pl_module, trainer.datamodule.test_sets)

    def _fill(self, trainer: L.Trainer, task: Task, set_names: list[str]) -> None:
        data: SpeechData = trainer.datamodule
        todo = [name for name in set_names if data.feature_cache and data.utterances(name).features is None]
        if not todo:
            return
        store = FeatureStore(Path(data.feature_cache).expanduser(), task.encoder_name(), data.feature_cache_dtype)
        training = task.training
        task.eval()
        for name in todo:
            self._fill_set(data, task, name, store)
        task.train(training)
        trainer.strategy.barrier()
        for name in todo:
            data.utterances(name).features = store

    def _fill_set(self, data: SpeechData, task: Task, name: str, store: FeatureStore) -> None:
        loader = data.eval_loader(name)
        quiet = rank_zero_only.rank != 0 or not sys.stderr.isatty()
        shown = track(loader, description=f"features of {name}", transient=True, disable=quiet)
        num_written = num_bytes = 0
        for batch in shown:
            wave_bt = batch.get("wave", torch.empty(0, 0))
            rows = [row for row, wave in enumerate(wave_bt.numpy()) if not store.has(wave)]
            if not rows:
                continue
            with torch.inference_mode():
                features = _encode(task, wave_bt[rows])
            if not num_written:
                _require_space(store, features[0].size * len(data.utterances(name)), name)
            for row, of_row in zip(rows, features, strict=True):
                store.save(wave_bt[row].numpy(), of_row)
                num_written, num_bytes = num_written + 1, num_bytes + of_row.size * store.item_bytes
        written = gather([(num_written, num_bytes)])
        num_written, num_bytes = (sum(part) for part in zip(*written, strict=True))
        if num_written and rank_zero_only.rank == 0:
            print(f"feature cache: {num_written} utterances of {name}, {num_bytes / 1e9:.2f} GB, in {store.folder}")


def _encode(task: Task, wave_bt: torch.Tensor) -> list[np.ndarray]:
    def encode(batch: dict[str, Any]) -> list[np.ndarray]:
        return list(task.encode(batch["wave"].to(task.device)).float().cpu().numpy())

    batch = {"id": list(range(len(wave_bt))), "wave": wave_bt}
    return task.guard.each(encode, batch) if task.guard else encode(batch)


def _require_space(store: FeatureStore, num_values: int, name: str) -> None:
    num_bytes = num_values * store.item_bytes
    existing = next(folder for folder in store.folder.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise InputError(
            f"data.feature_cache={store.folder.parent} needs up to {num_bytes / 1e9:.1f} GB for {name} and "
            f"{free / 1e9:.1f} GB are free: choose another disk, fewer layers, or data.feature_cache_dtype=float16"
        )
