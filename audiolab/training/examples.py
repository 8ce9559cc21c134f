"""Utterances to see and hear: which a task chooses, and where their sounds and pictures go."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pandas as pd
import torch

from audiolab.audio.io import write_audio
from audiolab.reporting.example import Example
from audiolab.reporting.plots import save_figure
from audiolab.tracking import log_examples
from audiolab.training.data import SpeechData
from audiolab.training.items import BadItem, collate
from audiolab.training.task import Task


def show_examples(trainer: L.Trainer, task: Task, set_name: str, table: pd.DataFrame, folder: Path) -> None:
    """Write what a task shows of the utterances it chose from a set, and send it to the loggers.

    Sounds go to `audio/<set>/<role>_<id>_<sound>.wav`, pictures to `plots/<set>_<role>.png`; in training with the epoch
    in the name. Every process runs the model, as a split one (FSDP) takes all of them; the first one writes.
    """
    chosen = task.examples(table)
    if not chosen:
        return
    examples = {role: _of(trainer, task, set_name, name) for role, name in chosen.items()}
    if not trainer.is_global_zero:
        return
    epoch = f"epoch_{trainer.current_epoch + 1:04d}" if table.attrs.get("headline_only") else ""
    for role, example in examples.items():
        name = re.sub(r"[^\w.+-]", "_", example.id)[:120]  # ids of own lists may be paths
        for sound, wave in example.sounds.items():
            path = folder / "audio" / set_name / epoch / f"{role}_{name}_{sound}.wav"
            write_audio(path, wave, example.sample_rate, subtype="PCM_16")
        if example.figure is not None:
            save_figure(example.figure, folder / "plots" / f"{'_'.join(filter(None, (set_name, epoch, role)))}.png")
    log_examples(trainer.loggers, set_name, examples, trainer.global_step)


@torch.no_grad()
def _of(trainer: L.Trainer, task: Task, set_name: str, name: str) -> Example:
    """Read an utterance of an evaluation set again, and let the task show it as it was judged."""
    data: SpeechData = trainer.datamodule
    utterances = data.utterances(set_name)
    utterances.seed = data.seed
    index = utterances.ids.index(name)
    item = utterances.item((0, index), index)
    if isinstance(item, BadItem):  # it could be read a moment ago
        raise item.error
    batch = trainer.strategy.batch_to_device(collate([item]))
    with trainer.precision_plugin.val_step_context():
        return task.example(batch)
