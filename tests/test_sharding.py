"""A model split over two processes: the numbers of a whole one, its files, and what does not go with it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_workers as workers
import numpy as np
import pytest
import torch
from test_distributed import SMOOTH, TWO, children_of, keep_trials
from test_run import ROOT, options, weights
from torch import nn

from audiolab import config, resume, run, test
from audiolab.assemble import check, make_trainer
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.processes import on_processes
from audiolab.training.items import BadItem, NeverEmpty, Utterances
from audiolab.training.sampling import FILLER, EvalBatches
from audiolab.training.sharding import blocks

SPLIT = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
ORDINARY = [  # some of the encoder frozen, groups of their own rates, accumulation, clipping
    *SMOOTH,
    "model.front_end.freeze_layers=1",
    "+optimizer.groups={encoder: {prefix: model.front_end, lr: 0.0005}}",
    "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=0.1",
    "data.batch_size=2",
    "data.eval_batch_size=1",
    "data.asv_scores=none",
    "data.on_bad_audio=skip",
    "data.max_bad_audio=2",
    "callbacks=topk_average",
]


def losses(folder: Path) -> dict[int, float]:
    """The loss of the first process after each optimiser step; of a repeated step the last."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    return {int(row["step"]): float(row["train/loss_step"]) for row in rows if row["train/loss_step"]}


def of_training(argv: list[str], *more: str) -> list[str]:
    return [*(word for word in argv if not word.startswith("trainer=")), *more]


def test_a_split_model_learns_and_is_judged_as_a_whole_one_also_after_a_kill(tiny_la: Path, tmp_path: Path):
    """Five and three trials for two processes, and a batch of nothing but a file that cannot be read."""
    keep_trials(tiny_la, "dev", 5)
    keep_trials(tiny_la, "eval", 3)
    protocol = tiny_la / "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.dev.trl.txt"
    victim = tiny_la / f"LA/ASVspoof2019_LA_dev/flac/{sorted(protocol.read_text().split()[1::5])[2]}.flac"
    victim.write_bytes(victim.read_bytes()[:2000])
    argv = options(tiny_la, tmp_path, *ORDINARY)
    out = tmp_path / "out/asvspoof"
    assert run.main(of_training(argv, *TWO, "name=whole")) == 0

    words = [sys.executable, "-m", "audiolab.run", *of_training(argv, *SPLIT, "name=split")]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + 300
    while not (out / "split/checkpoints/step0000003.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    assert b"process 1 of 2 (counted from 0) was killed by SIGKILL" in process.communicate(timeout=120)[1]
    assert process.returncode == 1
    resume.main([str(out / "split")])

    expected, found = losses(out / "whole"), losses(out / "split")
    assert list(expected) == list(found) == list(range(6))
    assert found == pytest.approx(expected, rel=1e-5)
    reference, results = (RunFolder.open(out / name).results for name in ("whole", "split"))
    assert results["dev"]["num_skipped"] == 1 and results["eval"]["num_bonafide"] == 2
    for set_name, metrics in reference.items():
        assert results[set_name] == pytest.approx(metrics, rel=1e-4, nan_ok=True)

    whole, split = (weights(out / name) for name in ("whole", "split"))
    assert {name: value.shape for name, value in whole.items()} == {name: v.shape for name, v in split.items()}
    assert all(type(value) is torch.Tensor for value in split.values())
    alone = test.test(str(out / "split"), ["trainer=cpu"], sets=["eval"], out=str(tmp_path / "one"))
    again = test.test(str(out / "split"), SPLIT, sets=["eval"], out=str(tmp_path / "two"))
    known = {name: value for name, value in results["eval"].items() if name in alone["eval"]}
    assert alone["eval"] == pytest.approx(known, rel=1e-6) and again["eval"] == pytest.approx(known, rel=1e-6)


def test_each_process_has_half_of_the_weights_and_of_their_gradients():
    assert on_processes(workers.split_weights, 2) == [(0.5, 0.5, True), (0.5, 0.5, True)]


def test_blocks_are_members_of_lists_that_hold_modules_of_their_own():
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])) for _ in "ab"
    )
    heads = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.ReLU())])  # used by their weights, perhaps; without any
    module = nn.ModuleDict({"encoder": nn.Sequential(layers), "heads": heads})
    assert blocks(module) == list(layers)


@pytest.mark.parametrize(("num_items", "world_size"), [(5, 2), (1, 3), (8, 4), (9, 4)])
def test_every_process_has_as_many_batches_and_every_item_comes_once(num_items: int, world_size: int):
    dealt = [list(EvalBatches(num_items, 2, rank, world_size, equal=True)) for rank in range(world_size)]
    assert len({len(batches) for batches in dealt}) == 1
    assert sorted(item for batches in dealt for batch in batches for _, item in batch) == list(range(num_items))


class Numbers(Utterances):
    """Five items, of which some cannot be read."""

    def __init__(self, bad: set[int]) -> None:
        self.ids, self.bad = [f"u{index}" for index in range(5)], bad

    def read(self, index: int, generator: np.random.Generator) -> dict:
        return {}

    def item(self, draw: tuple[int, int], index: int) -> dict | BadItem:
        return BadItem(f"u{index}", OSError()) if index in self.bad else {"id": f"u{index}", "draw": draw}


def test_a_batch_without_anything_readable_gets_what_counts_for_nothing():
    def ids(bad: set[int], draws: list[tuple[int, int]], allowed: int = 4) -> list[tuple[str, bool]]:
        items = NeverEmpty(Numbers(bad), allowed).__getitems__(draws)
        return [(i.id, True) if isinstance(i, BadItem) else (i["id"], i["draw"][0] == FILLER) for i in items]

    assert ids(set(), [(0, 1), (0, 3)]) == [("u1", False), ("u3", False)]
    assert ids({1}, [(0, 1), (0, 3)]) == [("u1", True), ("u3", False)]
    assert ids(set(), []) == [("u0", True)]
    assert ids({3, 4}, [(0, 3)])[-1] == ("u0", True)
    assert ids({0}, [], allowed=0) == [("u0", True)]  # told, and then the run stops


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["callbacks=ema"], "does not go with callbacks.ema, which keeps whole weights: use callbacks=default"),
        (["data.feature_cache=/tmp/none"], "does not go with data.feature_cache"),
        (["+trainer.sync_batchnorm=true"], "does not go with trainer.sync_batchnorm=true"),
        (["trainer.precision=16-mixed"], "precision='16-mixed'"),
        (["on_out_of_memory=halve_batch"], "halve_batch does not go with trainer.strategy=fsdp"),
        (["trainer.strategy=deepspeed_stage_2"], "trainer.strategy=deepspeed_stage_2 is not there"),
    ],
)
def test_what_does_not_go_with_a_split_model_is_refused_before_anything_is_written(
    overrides: list[str], expected: str, tiny_la: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=expected):
        run.main(of_training(options(tiny_la, tmp_path), *SPLIT, *overrides))
    assert not (tmp_path / "out").exists()


def test_one_device_alone_has_nothing_to_split():
    composed = config.compose(["task=asvspoof", "data=asvspoof/la_mini", "trainer=fsdp", "trainer.devices=1"])
    check(composed)
    assert type(make_trainer(composed, logger=False).strategy).__name__ == "SingleDeviceStrategy"
