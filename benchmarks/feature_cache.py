"""An epoch with a frozen encoder's features cached against the same epoch without, in one run.

    python benchmarks/feature_cache.py [--root ../shared/data/la_mini] [--items 48] [--encoder base|large] [--threads 1]

The model is `model=asvspoof/wavlm_pooling` (random weights: time does not depend on them) on real recordings of 2.7 s.
Timed are whole training epochs of the Trainer: reading audio, forward, backward, optimiser; the epoch that fills the
cache is stated apart. The losses of both are compared: the cache changes no number.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import lightning as L
import torch

from audiolab import assemble, config
from audiolab.training.feature_cache import FeatureCache, refuse_cache
from audiolab.training.position import Position

SIZES = {
    "base": ["hidden_size=768", "num_hidden_layers=12", "num_attention_heads=12", "intermediate_size=3072"],
    "large": [],
}
PROTOCOLS = {"train": "train.trn", "dev": "dev.trl"}


class EpochClock(L.Callback):
    """Seconds and mean loss of every training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started_s = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.started_s)
        self.losses.append(float(trainer.callback_metrics["train/loss_epoch"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/la_mini"))
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--encoder", choices=SIZES, default="base")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = _first_items(arguments.root.resolve(), Path(folder) / "corpus", arguments.items)
        plain = _epochs(root, None, arguments.encoder, num_epochs=2)
        started_s = time.perf_counter()
        cached = _epochs(root, Path(folder) / "cache", arguments.encoder, num_epochs=4)
        filling_s = time.perf_counter() - started_s - sum(cached.seconds)
        size_mb = sum(path.stat().st_size for path in (Path(folder) / "cache").rglob("*.npy")) / 1e6
    without_s, with_s = min(plain.seconds), sorted(cached.seconds[1:])[1]
    print(f"WavLM {arguments.encoder}, {arguments.items} utterances of 2.7 s, {arguments.threads} thread(s)")
    print(f"  epoch without the cache {without_s:8.2f} s")
    print(f"  filling the cache       {filling_s:8.2f} s, once ({size_mb:,.0f} MB, building the model included)")
    print(f"  epoch with the cache    {with_s:8.2f} s   {without_s / with_s:.1f}x faster")
    difference = max(abs(a - b) for a, b in zip(plain.losses, cached.losses, strict=False))
    print(f"  largest difference of an epoch's loss: {difference:.1e}")


def _epochs(root: Path, cache: Path | None, encoder: str, num_epochs: int) -> EpochClock:
    options = [
        "task=asvspoof",
        "model=asvspoof/wavlm_pooling",
        "model.front_end.pretrained=null",
        *(f"model.front_end.config.{option}" for option in SIZES[encoder]),
        "data=asvspoof/la_mini",
        f"data.root={root}",
        "data.random_crop=false",
        "data.in_memory=false",
        "data.batch_size=8",
        f"data.feature_cache={cache or 'null'}",
        f"trainer.max_epochs={num_epochs}",
        "schedule=constant",
        "schedule.warmup=0.0",  # a constant rate: the numbers of epochs differ
        "trainer.accelerator=cpu",
    ]
    composed = config.compose_run(options, "cache")
    assemble.check(composed)
    data, task = assemble.build_data(composed), assemble.build_task(composed)
    data.setup("fit")
    if data.feature_cache:
        refuse_cache(data, task)
    data.val_sets = []  # training epochs only
    clock = EpochClock()
    bare = {"limit_val_batches": 0, "logger": False, "enable_checkpointing": False}
    trainer = assemble.make_trainer(composed, callbacks=[FeatureCache(), Position(composed["seed"]), clock], **bare)
    trainer.fit(task, data)
    return clock


def _first_items(source: Path, root: Path, num_items: int) -> Path:
    """Make a corpus of the first trials of each class, in the same layout, by links."""
    for name, suffix in PROTOCOLS.items():
        protocol = Path("LA/ASVspoof2019_LA_cm_protocols") / f"ASVspoof2019.LA.cm.{suffix}.txt"
        lines = (source / protocol).read_text(encoding="utf-8").splitlines()
        halves = ([line for line in lines if (line.split()[4] == "bonafide") == genuine] for genuine in (True, False))
        chosen = [line for half in halves for line in half[: num_items // 2]]
        (root / protocol).parent.mkdir(parents=True, exist_ok=True)
        (root / protocol).write_text("\n".join(chosen) + "\n", encoding="utf-8")
        (root / "LA" / f"ASVspoof2019_LA_{name}").symlink_to(source / "LA" / f"ASVspoof2019_LA_{name}")
    return root


if __name__ == "__main__":
    main()
