"""A chain gives every step draws of its own, can be recorded and replayed, and never touches dev or eval."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_corpus import corpus
from conftest_speech import la_mini_speech

from audiolab import assemble, build, config, run
from audiolab.augment.chain import Chain
from audiolab.augment.codec_augment import CodecAugment
from audiolab.augment.noise import NoiseAugment
from audiolab.augment.rawboost import RawBoost
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.training.augmentation_log import read_augmentations

AUGMENTATIONS = [name for name in config.choices("augment", [config.config_folder()]) if not name.endswith("/none")]


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def steps() -> dict:
    return {
        "rawboost": RawBoost(4, p=0.8),
        "codec": CodecAugment(["g711", "mp3", "resample"], p=0.7, sample_rate=16000, num_threads=2),
        "noise": NoiseAugment(["white", "pink"], 10, 30, p=0.5),
    }


@pytest.fixture(scope="module")
def waves(la_mini: Path) -> torch.Tensor:
    return torch.from_numpy(la_mini_speech(la_mini, 6 * 8000)).reshape(6, 8000)


def described(order: list[str], seeds: range) -> list[dict[str, dict]]:
    available = steps()
    chain = Chain({name: available[name] for name in order}, order, record=False)
    records = [chain.describe(chain.draw(8000, generator)) for generator in generators(*seeds)]
    return [{entry.pop("step"): entry for entry in record["steps"]} for record in records]


def test_a_step_draws_the_same_whatever_stands_beside_it():
    alone = [described([name], range(60)) for name in steps()]
    for order in (["rawboost", "codec", "noise"], ["noise", "codec", "rawboost"]):
        together = described(order, range(60))
        assert [list(record) for record in together] == [order] * 60
        for name, records in zip(steps(), alone, strict=True):
            assert [record[name] for record in together] == [record[name] for record in records]
    assert len({json.dumps(record) for record in together}) > 50  # some rows are left alone by every step


def test_steps_are_applied_in_their_order(waves: torch.Tensor):
    available = steps()
    for order in (["rawboost", "codec"], ["codec", "rawboost"]):
        chain = Chain({name: available[name] for name in ("rawboost", "codec")}, order, record=False)
        draws = [chain.draw(8000, generator) for generator in generators(*range(6))]
        expected = waves
        for number, name in enumerate(order):
            expected = available[name].apply(expected, [draw.steps[number] for draw in draws])
        assert torch.equal(chain(waves, generators(*range(6))), expected)
        assert not torch.equal(expected, waves)


def test_a_row_is_the_same_alone_and_in_any_batch(waves: torch.Tensor):
    chain, before = Chain(steps(), ["rawboost", "codec", "noise"], record=False), waves.clone()
    together = chain(waves, generators(*range(6)))
    assert torch.equal(waves, before)
    for row in range(6):
        assert torch.equal(chain(waves[row : row + 1], generators(row))[0], together[row])
    order = [4, 0, 5, 2]
    assert torch.equal(chain(waves[order], generators(*order)), together[order])


def test_records_make_the_same_waveforms_again(waves: torch.Tensor):
    chain = Chain(steps(), ["rawboost", "codec", "noise"], record=True)
    draws = [chain.draw(8000, generator) for generator in generators(*range(6))]
    lines = [json.dumps(chain.describe(draw)) for draw in draws]
    assert max(map(len, lines)) < 1500
    again = Chain(steps(), ["rawboost", "codec", "noise"], record=False)
    assert torch.equal(again.replay(waves, [json.loads(line) for line in lines]), chain.apply(waves, draws))
    other = Chain(steps() | {"rawboost": RawBoost(2, p=0.8)}, ["rawboost", "codec", "noise"], record=False)
    with pytest.raises(InputError, match="replay it with the options of its run and 8000 samples"):
        other.replay(waves, [json.loads(line) for line in lines])
    with pytest.raises(InputError, match="8000 samples"):
        again.replay(waves[:, :100], [json.loads(line) for line in lines])


def test_unusable_chains():
    for order in (["rawboost"], ["rawboost", "codec", "noise", "noise"], ["rawboost", "codec", "nois"]):
        with pytest.raises(InputError, match=r"steps are rawboost, codec, noise: name every step once"):
            Chain(steps(), order, record=False)
    with pytest.raises(InputError, match="step codec of the augmentation is a str"):
        Chain({"codec": "mp3"}, ["codec"], record=False)


# Training data


class Training:
    strategy = None
    training, testing, sanity_checking, global_rank, world_size = True, False, False, 0, 1


def test_dev_and_eval_never_pass_through_a_chain(tiny_la: Path, tmp_path: Path):
    data = corpus(tiny_la, eval_samples=16000, eval_batch_size=4)
    data.augment, data.record_folder = Chain({"rawboost": RawBoost(4)}, ["rawboost"], record=True), tmp_path
    data.trainer = Training()
    data.trainer.training = False
    for loader in (*data.val_dataloader(), *data.test_dataloader()):
        for batch in loader:
            clean = batch["wave"].clone()
            moved = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
            assert torch.equal(moved["wave"], clean)
    assert not list(tmp_path.glob("augmentations*"))
    data.trainer.training = True
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    clean = batch["wave"].clone()
    assert not torch.isclose(data.on_after_batch_transfer(batch, 0)["wave"], clean).all(dim=1).any()
    assert len(list(read_augmentations(tmp_path))) == len(clean)


def test_a_run_records_every_item_and_each_can_be_made_again(tiny_la: Path, tmp_path: Path, monkeypatch):
    seen = {}
    from audiolab.training.data import SpeechData

    augmented = SpeechData.on_after_batch_transfer

    def watched(self, batch, dataloader_idx):
        batch = augmented(self, batch, dataloader_idx)
        if self.trainer.training:
            seen.update({tuple(draw): wave.clone() for draw, wave in zip(batch["draw"], batch["wave"], strict=True)})
        return batch

    monkeypatch.setattr(SpeechData, "on_after_batch_transfer", watched)
    options = ["model=asvspoof/sinc_small", "data=asvspoof/la_mini", f"data.root={tiny_la}", "trainer=cpu"]
    options += ["data.batch_size=4", "data.crop_samples=8000", "data.eval_samples=8000", "data.eval_batch_size=8"]
    options += ["augment=asvspoof/phase6", "augment.record=true", "augment.steps.codec.p=0.6", "trainer.max_epochs=2"]
    assert run.main(["task=asvspoof", f"outputs={tmp_path / 'out'}", "name=recorded", *options]) == 0
    folder = RunFolder.open(tmp_path / "out/asvspoof/recorded")
    records = list(read_augmentations(folder.path))
    assert {(record["epoch"], record["item"]) for record in records} == set(seen)
    assert len(records) == 2 * 24
    assert {record["epoch"] for record in records} == {0, 1}
    codecs = {step["codec"] for record in records for step in record["steps"] if step["step"] == "codec"}
    assert "none" in codecs and len(codecs) > 4
    data = assemble.build_data(folder.config)
    data.setup("fit")
    train = data.utterances("train")
    train.seed = data.seed
    for record in records:
        item = train[(record["epoch"], record["item"])]
        assert item["id"] == record["id"]
        wave = torch.as_tensor(item["wave"])[None]
        assert torch.equal(data.augment.replay(wave, [record])[0], seen[record["epoch"], record["item"]])


def test_a_run_without_records_says_how_to_get_them(tmp_path: Path):
    with pytest.raises(InputError, match="train with augment.record=true"):
        list(read_augmentations(tmp_path))


# Configs


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_keyword_of_an_augmentation_appears_in_its_yaml(name: str):
    section = config.compose_run([f"task={name.split('/')[0]}", f"augment={name}"], "x")["augment"]
    build.check(section, "augment")
    for part in (section, *section["steps"].values()):
        parameters = inspect.signature(build.locate(part["_target_"])).parameters
        named = {p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD}
        if part["_target_"].endswith("RawBoost"):
            from audiolab.augment.rawboost import DEFAULT_RANGES

            named |= set(DEFAULT_RANGES)
            assert {key: part[key] for key in DEFAULT_RANGES} == DEFAULT_RANGES
        assert set(part) - {"_target_"} == named
    assert isinstance(build.build(section), Chain)


def test_the_recipes_have_the_published_probabilities():
    def composed(*options: str) -> dict:
        return config.compose_run(["task=asvspoof", *options], "x")["augment"]

    phase4, phase6 = composed("augment=asvspoof/rawboost5_codec"), composed("augment=asvspoof/phase6")
    for section, rawboost_p, codec_p in ((phase4, 1.0, 0.5), (phase6, 0.8, 0.3)):
        assert section["order"] == ["rawboost", "codec"]
        assert section["steps"]["rawboost"]["algo"] == 5
        assert (section["steps"]["rawboost"]["p"], section["steps"]["codec"]["p"]) == (rawboost_p, codec_p)
    reordered = composed("augment=asvspoof/phase6", "augment.order=[codec,rawboost]")
    assert list(build.build(reordered).steps) == ["codec", "rawboost"]
