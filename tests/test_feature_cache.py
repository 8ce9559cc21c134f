"""A frozen encoder's features on disk: the same numbers as without, and refused where they would be others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab import assemble, config, engine, run
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.tasks.asvspoof.ssl import SSLStream
from audiolab.training.feature_cache import FeatureStore

FROZEN = [
    "task=asvspoof",
    "model=asvspoof/dual_stream_tiny",
    "model.front_end.ssl.freeze_layers=all",
    "model.front_end.ssl.mask_time_prob=0.0",
    "data=asvspoof/la2019",
    "data.published_size=false",
    "data.random_crop=false",
    "data.crop_samples=16000",
    "data.eval_samples=16000",
    "data.batch_size=4",
    "data.num_workers=0",
    "logger=[]",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def test_a_run_with_the_cache_is_the_run_without_and_the_next_one_computes_nothing(tiny_la: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    shared = [*FROZEN, f"data.root={tiny_la}", f"outputs={tmp_path / 'out'}"]
    assert run.main([*shared, "name=plain"]) == 0
    assert run.main([*shared, "name=cached", f"data.feature_cache={cache}"]) == 0
    plain, cached = (RunFolder.open(tmp_path / "out/asvspoof" / name) for name in ("plain", "cached"))
    states = [torch.load(r.latest_checkpoint, weights_only=True)["state_dict"] for r in (plain, cached)]
    for name, weight in states[0].items():
        assert torch.allclose(weight, states[1][name], atol=1e-5), name
    assert cached.results["eval"]["eer"] == plain.results["eval"]["eer"]
    before = files(cache)
    assert len(before) == 24 + 16 + 16
    assert run.main([*shared, "name=again", "seed=0", f"data.feature_cache={cache}", "optimizer.lr=1e-4"]) == 0
    assert files(cache) == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["augment=asvspoof/rawboost5"], "an augmentation changes the waveform"),
        (["data.random_crop=true"], "windows are drawn anew"),
        (["module.mixup=1.0"], "mixup trains on sums"),
        (["model.front_end.ssl.freeze_layers=1"], "no encoder that stays as it is"),
        (["model.front_end.ssl.mask_time_prob=0.1"], "no encoder that stays as it is"),
        (
            ["model.front_end.ssl.lora={r: 2, alpha: 4, dropout: 0.1, targets: [q_proj]}"],
            "no encoder that stays as it is",
        ),
        (["model=asvspoof/sinc_small", "~model.front_end.ssl"], "no encoder that stays as it is"),
    ],
)
def test_what_would_make_the_cache_wrong_is_refused(overrides: list[str], expected: str, tiny_la: Path, tmp_path: Path):
    options = [*FROZEN, f"data.root={tiny_la}", f"outputs={tmp_path / 'out'}", f"data.feature_cache={tmp_path / 'c'}"]
    if "model=asvspoof/sinc_small" in overrides:
        options, overrides = [o for o in options if "front_end" not in o and "model=" not in o], overrides[:1]
    with pytest.raises(InputError, match=expected):
        run.main([*options, *overrides])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "c").exists()


def test_another_encoder_or_level_has_other_entries(tiny_la: Path):
    def task(*overrides: str):
        composed = config.compose_run([*FROZEN, f"data.root={tiny_la}", *overrides], "x")
        return assemble.build_task(composed)

    assert task().encoder_name() == task().encoder_name()
    names = [task(*o).encoder_name() for o in ([], ["seed=1"], ["module.level_dbfs=-20"])]
    names.append(task("model.front_end.ssl.layers=[1]").encoder_name())
    assert len(set(names)) == 4


def test_half_precision_takes_half_the_disk_and_a_lost_entry_is_named(tmp_path: Path):
    wave, features = np.zeros(100, np.float32), np.random.default_rng(0).normal(size=(3, 64, 32)).astype(np.float32)
    sizes = {}
    for dtype in ("float32", "float16"):
        store = FeatureStore(tmp_path, "encoder", dtype)
        store.save(wave, features)
        sizes[dtype] = next(store.folder.rglob("*.npy")).stat().st_size
        assert store.load(wave).dtype == np.float32
        np.testing.assert_allclose(store.load(wave), features, atol=0 if dtype == "float32" else 2e-3)
    assert sizes["float16"] < 0.52 * sizes["float32"]
    with pytest.raises(InputError, match="lost an entry"):
        store.load(np.ones(100, np.float32))


def test_too_small_a_disk_is_said_before_it_is_full(tiny_la: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, full = shutil.disk_usage, shutil._ntuple_diskusage(1000, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full if "c" in Path(folder).parts else real(folder))
    options = [*FROZEN, f"data.root={tiny_la}", f"outputs={tmp_path / 'out'}", f"data.feature_cache={tmp_path / 'c'}"]
    with pytest.raises(InputError, match="0.0 GB are free: choose another disk"):
        run.main(options)


def test_a_run_from_pretrained_weights_stands_alone(tiny_la: Path, tmp_path: Path):
    """A moved run folder, without the pretrained weights it began with, still loads and goes on."""
    tiny = config.compose_run(["task=asvspoof", "model=asvspoof/dual_stream_tiny"], "x")["model"]["front_end"]["ssl"]
    encoder = SSLStream(None, {**tiny["config"], "layer_norm_eps": 1e-3}).encoder
    encoder.save_pretrained(tmp_path / "weights")
    ssl = "model.front_end.ssl"
    options = [*FROZEN, f"data.root={tiny_la}", f"outputs={tmp_path / 'out'}", "name=r", "trainer.max_epochs=1"]
    assert run.main([*options, f"{ssl}.pretrained={tmp_path / 'weights'}"]) == 0
    found = RunFolder.open(tmp_path / "out/asvspoof/r")
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    score = engine.load_task(found)(wave)
    shutil.rmtree(tmp_path / "weights")
    loaded = engine.load_task(found)
    assert torch.equal(loaded(wave), score)
    assert loaded.model.front_end.ssl.encoder.config.layer_norm_eps == 1e-3
    before = found.results
    (found.path / "metrics.json").unlink()
    engine.train(str(found.path))
    assert found.results == before
