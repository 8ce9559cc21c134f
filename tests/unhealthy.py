"""Parts that go wrong on purpose, for tests of health: a front end, a small task, data with a bad item."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from audiolab.tasks.asvspoof.model import FrontEnd
from audiolab.training.data import SpeechData
from audiolab.training.health import Health
from audiolab.training.items import Item, Utterances
from audiolab.training.position import Position

OPTIONS = {"monitor": "dev/eer", "mode": "min", "patience": 5, "first_steps": 20, "window_steps": 200}
OPTIONS |= {"explosion_factor": 10.0, "least_update_ratio": 1e-7}


class Standardise(nn.Module):
    """Zero mean and unit variance of each row; digital silence is 0 / 0."""

    def forward(self, x_bt: Tensor) -> Tensor:
        return (x_bt - x_bt.mean(1, keepdim=True)) / x_bt.std(1, keepdim=True)


class Frames(FrontEnd):
    """Frames of 400 standardised samples through a linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.min_samples = dim, 400
        self.standardise, self.linear = Standardise(), nn.Linear(400, dim)

    def forward(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        return self.linear(self.standardise(wave_bt).unfold(1, 400, 400))


class ReplacesFile(L.Callback):
    """Puts `source`, while it is there, in the place of `victim` after the first epoch, as a failing disk may."""

    def __init__(self, source: str, victim: str) -> None:
        self.source, self.victim = Path(source), Path(victim)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1 and self.source.is_file():
            shutil.copyfile(self.source, self.victim)


class Noise(Utterances):
    def __init__(self, bad: dict[int, float], number: int) -> None:
        self.ids, self.bad = [f"u{number:02d}" for number in range(number)], bad

    def read(self, index: int, generator: np.random.Generator) -> Item:
        wave = generator.normal(0, 0.1, 8).astype(np.float32)
        return {"wave": torch.from_numpy(wave if index not in self.bad else np.full_like(wave, self.bad[index]))}


class NoiseData(SpeechData):
    """24 items of noise; `bad` items are constants."""

    val_sets, test_sets, num_files = ["dev"], [], 24

    def __init__(self, bad: dict[int, float] | None = None, augment: Any = None, batch_size: int = 4) -> None:
        super().__init__(batch_size, 4, 0, "raise", 0, augment=augment)
        self.bad = bad or {}

    def utterances(self, set_name: str) -> Noise:
        return Noise(self.bad if set_name == "train" else {}, 24)

    def context(self, set_name: str) -> dict:
        return {}

    def choose_test_sets(self, names: list[str]) -> None:
        raise AssertionError


class Root(nn.Module):
    """The length of each row: finite at 0, where its gradient is not."""

    def forward(self, x_bd: Tensor) -> Tensor:
        return x_bd.square().sum(1, keepdim=True).sqrt()


class Toy(L.LightningModule):
    """Learns the mean of its input; `fault` chooses what is wrong with it."""

    def __init__(self, fault: str = "", rate: float = 0.01, metrics: tuple[float, ...] = (5.0, 4.0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.rate, self.metrics = fault, rate, metrics
        self.standardise = Standardise() if fault == "standardise" else nn.Identity()
        self.first, self.last = nn.Linear(8, 4, bias=fault != "root"), nn.Linear(1 if fault == "root" else 4, 1)
        self.root = Root() if fault == "root" else nn.Identity()
        self.sometimes, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        if fault != "unused":
            self.unused.requires_grad_(False)

    def forward(self, wave_bt: Tensor) -> Tensor:
        hidden_bd = self.root(self.first(self.standardise(wave_bt)))
        if self.fault != "root" and torch.rand(1).item() < 0.5:  # LayerDrop
            hidden_bd = hidden_bd + self.sometimes(hidden_bd)
        return self.last(hidden_bd * 0 if self.fault == "dead" else hidden_bd)[:, 0]

    def loss(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self(batch["wave"]) - batch["wave"].mean(1) - 1).square().mean()
        if self.fault == "constant" and batch["wave"].abs().max() > 5:  # not finite, but every gradient is
            loss = loss + torch.tensor(torch.nan)
        return loss, {}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        return self.loss(batch)[0]

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("dev/eer", self.metrics[min(self.current_epoch, len(self.metrics) - 1)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.fault == "forgotten":
            return torch.optim.SGD([{"params": self.first.parameters(), "name": "rest"}], lr=self.rate)
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.fault != "root":
            return torch.optim.SGD([{"params": parameters, "name": "rest"}], lr=self.rate)
        return torch.optim.AdamW([{"params": parameters, "name": "rest"}], lr=self.rate)


def fit(
    folder: Path, task: Toy, data: NoiseData, *callbacks: L.Callback, ckpt: Path | None = None, **options
) -> Health:
    """Train the toy with health on a CPU."""
    health = next((one for one in callbacks if isinstance(one, Health)), None) or Health(**OPTIONS)
    rest = [one for one in callbacks if one is not health]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "logger": False} | quiet
    trainer = L.Trainer(
        callbacks=[Position(0), health, *rest],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **(defaults | options),
    )
    trainer.fit(task, data, ckpt_path=ckpt, weights_only=True)
    return health


def fit_two(folder: str) -> None:
    """One of two processes: the item that makes the loss NaN, and no gradient, is with one of them."""
    fit(
        Path(folder),
        Toy("constant"),
        NoiseData({5: 9.0}, batch_size=2),
        devices=2,
        strategy="ddp_find_unused_parameters_true",
    )
