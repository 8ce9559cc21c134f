"""What watching a training costs: python benchmarks/health.py [steps]

Trains two models on la_mini-sized batches of noise in memory, on the CPU or the GPU there is, and takes the time spent
inside the hooks of `audiolab.training.health.Health` (with the device waited for before and after each) as a share of
the time of all steps, logging every 10 steps as runs do: the texture model of experiment=asvspoof/la_mini, and a
10 M-parameter Mamba model. On a CPU that model's scan is slow, so its share flatters: there the milliseconds count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from audiolab import assemble
from audiolab.config import compose_run
from audiolab.training.health import Health
from audiolab.training.position import Position

HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
WARM_UP = 3
MODELS = {
    "texture (la_mini)": ["experiment=asvspoof/la_mini"],
    "Mamba, 10 M": [
        "task=asvspoof",
        "model=asvspoof/sinc_mamba",
        "model.back_end.dim=288",
        "model.back_end.num_blocks=8",
        "data.batch_size=8",
        "data.crop_samples=27200",
    ],
}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Timed(Health):
    """Health with a clock about its hooks; the wait for the device before one is the step's own."""

    spent_s = 0.0


def timed(name: str) -> Any:
    def hook(self: Timed, *arguments: Any) -> None:
        wait()
        start_s = time.perf_counter()
        getattr(Health, name)(self, *arguments)
        wait()
        self.spent_s += time.perf_counter() - start_s

    return hook


for name in HOOKS:
    setattr(Timed, name, timed(name))


class Clock(L.Callback):
    """Starts both clocks anew after the first steps."""

    def __init__(self, health: Timed) -> None:
        self.health, self.start_s, self.took_s = health, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        wait()
        if trainer.global_step == WARM_UP:
            self.start_s, self.health.spent_s = time.perf_counter(), 0.0
        self.took_s = time.perf_counter() - self.start_s


class Batches(L.LightningDataModule):
    """The same batch of noise again and again: neither reading nor augmentation counts."""

    seed = 0

    def __init__(self, batch_size: int, num_samples: int, num_batches: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        wave = 0.1 * torch.randn(batch_size, num_samples, generator=g)
        ids = [str(number) for number in range(batch_size)]
        self.batch = {"wave": wave, "label": torch.arange(batch_size) % 2, "id": ids, "draw": [(0, 0)] * batch_size}
        self.num_batches = num_batches

    def set_epoch(self, epoch: int) -> None: ...

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.num_batches, batch_size=None)


def main(steps: int) -> None:
    print(f"{steps} steps, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    for label, options in MODELS.items():
        config = compose_run([*options, "trainer=auto", "trainer.max_epochs=1"], "bench")
        task = assemble.build_task(config)
        section = {key: value for key, value in config["callbacks"]["health"].items() if key != "_target_"}
        health = Timed(**section)
        clock = Clock(health)
        data = Batches(config["data"]["batch_size"], config["data"]["crop_samples"], steps + WARM_UP)
        with tempfile.TemporaryDirectory() as folder:
            trainer = assemble.make_trainer(
                config,
                [Position(0), health, clock],
                logger=False,
                enable_checkpointing=False,
                default_root_dir=Path(folder),
            )
            trainer.fit(task, data)
        number = sum(p.numel() for p in task.parameters())
        each_ms, own_ms = (1000 * total / steps for total in (clock.took_s, health.spent_s))
        print(
            f"{label}, {number:,} parameters: {each_ms:.1f} ms a step, {own_ms:.2f} ms of it health, "
            f"{100 * own_ms / each_ms:.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
