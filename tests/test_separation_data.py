"""Mixtures from every layout: exact, reproducible, and a sentence for what does not fit."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from separation_corpora import noise_sources, open_data, section_of, write_folders, write_wave

from audiolab import build
from audiolab.audio import mixing
from audiolab.audio.files import AudioFiles
from audiolab.audio.io import AudioError
from audiolab.config import compose_run
from audiolab.errors import InputError
from audiolab.preflight.contents import examine_contents
from audiolab.preflight.files import read_facts
from audiolab.preflight.lists import examine_lists
from audiolab.tasks.separation.corpora.base import MixtureSet, warn_once
from audiolab.tasks.separation.corpora.librimix import LibriMix
from audiolab.tasks.separation.mixtures import Mixtures
from audiolab.training.items import BadItem

TINY = ("sample_rate_hz=8000", "crop_samples=2000", "num_workers=0")


@pytest.fixture(scope="module")
def mix_mini(shared: Path) -> Path:
    return shared / "data" / "mix_mini"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders"), ("train", "dev", "test"))


def whole(listed: MixtureSet, rate_hz: int = 16000) -> Mixtures:
    files = AudioFiles(rate_hz, in_memory=False)
    return Mixtures(listed, files, None, crop_samples=None, short="pad", most_samples=None)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return set(a) == set(b) and all(
        torch.equal(a[k], b[k]) or (a[k].isnan() & b[k].isnan()).all()
        if isinstance(a[k], torch.Tensor)
        else a[k] == b[k]
        for k in a
    )


@pytest.mark.parametrize(("num_speakers", "part"), [(2, "dev"), (2, "test"), (3, "dev"), (3, "test")])
def test_mixing_by_the_metadata_gives_the_stored_mixtures_to_the_bit(mix_mini: Path, num_speakers: int, part: str):
    corpus = LibriMix(mix_mini, num_speakers, 16000, "mix_clean", "min", "auto", None, None, None, steps=8)
    stored = whole(corpus.read(part))
    defined = whole(MixtureSet(corpus.defined(part), mix_mini, "min", steps=8))
    folder = mix_mini / f"Libri{num_speakers}Mix/wav16k/min/metadata"
    published = pd.read_csv(folder / f"metrics_{part}_mix_clean.csv").set_index("mixture_ID")["source_1_SNR"]
    assert len(stored) == len(published) and sorted(stored.ids) == sorted(defined.ids)
    for index, id_ in enumerate(stored.ids):
        of_file, of_row = stored[(0, index)], defined[(0, defined.ids.index(id_))]
        assert np.array_equal(of_file["wave"], of_row["wave"])
        assert np.array_equal(of_file["sources"], of_row["sources"])
        assert np.array_equal(of_file["wave"], of_file["sources"].sum(axis=0))
        assert of_file["snr_db"] == pytest.approx(published[id_], abs=1e-4)
        assert (of_file["genders"], of_file["speakers"]) == (of_row["genders"], of_row["speakers"])
        assert of_file["speakers"].split("/") == [part.split("-")[0] for part in id_.split("_")]


def test_items_of_dev_are_whole_the_same_each_time_and_at_one_level(mix_mini: Path):
    data = open_data("mix_mini", f"root={mix_mini}")
    data.setup("fit")
    assert (len(data.utterances("train")), len(data.utterances("dev")), len(data.utterances("test"))) == (600, 50, 100)
    dev = data.utterances("dev")
    item = dev[(0, 3)]
    assert set(item) == {"wave", "sources", "num_speakers", "snr_db", "genders", "overlap", "speakers", "id", "draw"}
    stored = whole(data.listed("dev"))[(0, 3)]
    assert item["wave"].dtype == item["sources"].dtype == np.float32
    assert item["sources"].shape == (2, len(item["wave"])) == stored["sources"].shape
    assert 10 * np.log10(mixing.mean_power(item["wave"])) == pytest.approx(-25.0, abs=1e-4)
    gain = np.linalg.norm(item["wave"]) / np.linalg.norm(stored["wave"])
    assert np.allclose(item["sources"], gain * stored["sources"], atol=1e-7)  # one gain for all
    assert np.allclose(item["wave"], item["sources"].sum(axis=0), atol=1e-7)
    assert item["genders"] in ("FF", "MF", "MM") and 0.3 < item["overlap"] <= 1.0
    assert item["speakers"].count("/") == 1
    for epoch in (1, 7):  # nothing is drawn
        assert np.array_equal(dev[(epoch, 3)]["wave"], item["wave"])
    assert np.array_equal(
        open_data("mix_mini", f"root={mix_mini}", seed=5).utterances("dev")[(0, 3)]["wave"], item["wave"]
    )
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["sources"].shape == (1, 2, batch["wave"].shape[-1])
    cut = open_data("mix_mini", f"root={mix_mini}", "max_length_s=0.5").utterances("dev")[(0, 3)]
    assert np.allclose(cut["sources"] / np.abs(cut["sources"]).max(), _peak_1(item["sources"][:, :8000]), atol=1e-5)


def _peak_1(wave: np.ndarray) -> np.ndarray:
    return wave / np.abs(wave).max()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_batches_do_not_depend_on_workers_or_restarts(mix_mini: Path, share: float):
    options = (f"root={mix_mini}", f"dynamic.p={share}", "overfit=null", "dynamic.num_items=12", "crop_samples=4000")
    options += ("dynamic.overlap=[0.5,1.0]", "dynamic.reverb_p=0.5", "batch_size=3")
    if not share:
        options += ("sets.train=[dev]", "sets.dev=[test]")

    def batches(num_workers: int, position: tuple[int, int], epoch: int = 1) -> list[dict[str, Any]]:
        data = open_data("mix_mini", *options, f"num_workers={num_workers}", seed=3)
        data.position = position
        loader = data.train_dataloader()
        data.set_epoch(epoch)
        return list(itertools.islice(loader, 4))

    first = batches(0, (1, 0))
    assert len(first) == 4 and first[0]["wave"].shape == (3, 4000) and first[0]["sources"].shape == (3, 2, 4000)
    assert all(same(a, b) for a, b in zip(first, batches(2, (1, 0)), strict=True))
    assert all(same(a, b) for a, b in zip(first[2:], batches(1, (1, 2))[:2], strict=True))
    other = batches(0, (2, 0), epoch=2)
    assert not torch.equal(first[0]["wave"], other[0]["wave"])


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_dynamic_mixtures_have_different_talkers_new_pairs_and_the_levels_asked_for(mix_mini: Path, num_speakers: int):
    data = open_data(
        "mix_mini",
        f"root={mix_mini}",
        f"num_speakers={num_speakers}",
        "dynamic.snr_db=[-3.0,3.0]",
        "dynamic.num_items=40",
    )
    train = data.utterances("train")
    pairs: list[set[str]] = []
    snrs_db: list[float] = []
    for epoch in (0, 1):
        items = [train[(epoch, index)] for index in range(len(train))]
        pairs.append({item["speakers"] for item in items})
        for item in items:
            assert len(set(item["speakers"].split("/"))) == num_speakers
            assert "?" not in item["genders"] and len(item["genders"]) == num_speakers
            assert np.abs(item["wave"] - item["sources"].sum(axis=0)).max() < 1e-6
            assert max(np.abs(item["wave"]).max(), np.abs(item["sources"]).max()) <= 1.0
            powers = mixing.active_power(item["sources"], 16000)
            snrs_db += [10 * float(np.log10(powers[0] / power)) for power in powers[1:]]
    assert -3.001 <= min(snrs_db) < -2 and 2 < max(snrs_db) <= 3.001
    assert len(pairs[0]) > 35 and len(pairs[0] & pairs[1]) < 10
    listed = {source.speaker for mixture in data.listed("train").mixtures for source in mixture.sources}
    assert {name for pair in pairs[0] | pairs[1] for name in pair.split("/")} <= listed


def test_speed_changes_pitch_and_length_together(tmp_path: Path):
    time = np.arange(24000) / 8000
    rows = []
    for number, frequency_hz in enumerate((500.0, 900.0)):
        write_wave(tmp_path / f"{number}.wav", 0.1 * np.sin(2 * np.pi * frequency_hz * time))
        rows.append({"set": "train", "source_1": "0.wav", "source_2": "1.wav", "speaker_1": "a", "speaker_2": "b"})
    rows[1] |= {"set": "dev", "id": "other"}
    path = write_csv(tmp_path / "list.csv", [{"id": "one", **row} for row in rows])
    data = open_data("csv", f"root={path}", *TINY, "dynamic.p=1", "dynamic.speed=[1.25,1.25]", "crop_samples=8000")
    item = data.utterances("train")[(0, 0)]
    peaks_hz = np.sort(np.abs(np.fft.rfft(item["sources"])).argmax(axis=-1))
    assert peaks_hz.tolist() == [625, 1125]


def test_equalized_sources_are_smoothly_filtered_and_add_up_to_the_mixture(folders: Path):
    base = ("folders", f"root={folders}", *TINY, "dynamic.p=1", "dynamic.snr_db=[0,0]", "level_dbfs=null")
    plain = open_data(*base).utterances("train")[(0, 3)]
    item = open_data(*base, "dynamic.equalizer_db=6").utterances("train")[(0, 3)]
    assert np.abs(item["sources"].sum(0) - item["wave"]).max() < 1e-6
    responses_db = []
    for filtered, source in zip(item["sources"], plain["sources"], strict=True):
        spectra = np.abs(np.fft.rfft(np.stack([filtered, source])))
        responses_db.append(20 * np.log10(spectra[0] / spectra[1])[np.argsort(-spectra[1])[:300]])
        order = np.argsort(np.argsort(-spectra[1])[:300])
        assert np.abs(np.diff(responses_db[-1][order])).max() < 3  # no jumps between neighbouring frequencies
    assert all(4 < np.ptp(response) < 40 for response in responses_db)
    assert np.abs(responses_db[0][:50] - responses_db[1][:50]).mean() > 0.5  # each source has its own


def test_short_sources_go_on_with_others_of_their_talker_or_as_asked(tmp_path: Path):
    for number in range(4):
        write_wave(tmp_path / f"{number}.wav", np.full(1200, 0.1 + 0.1 * number, np.float32))
    recordings = write_csv(
        tmp_path / "own.csv", [{"file": f"{n}.wav", "speaker": s, "sex": "f"} for n, s in enumerate("aabb")]
    )
    rows = [{"source_1": "0.wav", "source_2": "2.wav", "set": "train"}]
    path = write_csv(tmp_path / "list.csv", rows)
    base = ("csv", f"root={path}", *TINY, "dynamic.p=1", f"dynamic.sources={recordings}", "level_dbfs=null")

    def values(*more: str) -> set[float]:
        train = open_data(*base, "dynamic.snr_db=[0,0]", "dynamic.num_items=20", *more).utterances("train")
        items = [train[(0, index)] for index in range(20)]
        assert all(item["genders"] == "FF" and set(item["speakers"].split("/")) == {"a", "b"} for item in items)
        return {
            round(float(v), 3) for item in items if item["speakers"] == "a/b" for v in np.unique(item["sources"][0])
        }

    assert values() == {0.1, 0.2}
    assert values("dynamic.join=false", "short=repeat") == {0.1, 0.2}
    assert values("dynamic.join=false", "short=pad") == {0.0, 0.1, 0.2}
    listing = open_data(*base).listing("train")
    assert set(listing["file"]) == {str(tmp_path / f"{number}.wav") for number in range(4)}


def test_no_recording_follows_itself_where_its_talker_has_others(tmp_path: Path):
    for number in range(4):
        write_wave(tmp_path / f"{number}.wav", np.full(400, 0.1 * 2**number, np.float32))
    rows = [{"file": f"{number}.wav", "speaker": name} for number, name in enumerate("aaab")]
    recordings = write_csv(tmp_path / "own.csv", rows)
    path = write_csv(tmp_path / "list.csv", [{"source_1": "0.wav", "source_2": "3.wav", "set": "train"}])
    options = (f"dynamic.sources={recordings}", "dynamic.p=1", "dynamic.num_items=20", "level_dbfs=null")
    train = open_data("csv", f"root={path}", *TINY, *options).utterances("train")
    for item in (train[(0, index)] for index in range(20)):
        of_a, of_b = item["sources"] if item["speakers"] == "a/b" else item["sources"][::-1]
        run_lengths = np.diff(np.flatnonzero(np.diff(of_a)))
        assert len(run_lengths) >= 3 and (run_lengths == 400).all()
        assert np.ptp(of_b) == 0  # who has no other goes on with himself


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_pauses_are_told_by_the_recordings_own_level(tmp_path: Path, in_memory: str):
    """Mixtures of recordings 80 dB softer are the same mixtures."""
    items = []
    for gain in (1.0, 1e-4):
        folder = tmp_path / f"{gain:g}"
        rows = []
        for number in range(4):
            wave = 20 * noise_sources(1, 16000, number)[0]
            wave[:12000] *= 1e-3  # a pause, as are most windows
            write_wave(folder / f"{number}.wav", gain * wave)
        rows = [{"set": "train", "source_1": "0.wav", "source_2": "1.wav", "speaker_1": "a", "speaker_2": "b"}]
        rows += [{"set": "train", "source_1": "2.wav", "source_2": "3.wav", "speaker_1": "a", "speaker_2": "b"}]
        path = write_csv(folder / "list.csv", rows)
        options = ("dynamic.p=1", "dynamic.num_items=20", f"in_memory={in_memory}")
        train = open_data("csv", f"root={path}", *TINY, *options).utterances("train")
        items.append([train[(0, index)] for index in range(20)])
    for loud, soft in zip(*items, strict=True):
        assert np.allclose(loud["sources"], soft["sources"], atol=1e-5)
        heard = (np.abs(loud["sources"]) > 0.01).mean(axis=1)
        assert (heard > 0).all()  # no window is a pause throughout


def test_overlap_is_the_share_asked_for(folders: Path):
    data = open_data("folders", f"root={folders}", *TINY, "dynamic.p=1", "dynamic.overlap=[0.4,0.4]")
    for index in range(4):
        item = data.utterances("train")[(0, index)]
        together = (item["sources"] != 0).all(axis=0).mean()
        assert together == pytest.approx(0.4, abs=0.05)
        assert (item["sources"] != 0).any(axis=0).mean() > 0.9
        assert item["overlap"] == pytest.approx(0.4, abs=0.1)


def test_a_training_window_is_the_same_of_mixture_and_sources_and_not_a_pause(tmp_path: Path):
    sources = noise_sources(2, 20000, 0)
    sources[1, :16000] = 0.0  # talker 2 begins late
    write_wave(tmp_path / "train/mix/a.wav", sources.sum(axis=0))
    for number in (0, 1):
        write_wave(tmp_path / f"train/s{number + 1}/a.wav", sources[number])
    data = open_data("folders", f"root={tmp_path}", *TINY, "level_dbfs=null")
    items = [data.utterances("train")[(epoch, 0)] for epoch in range(12)]
    assert len({item["wave"].tobytes() for item in items}) == 12
    for item in items:
        assert np.array_equal(item["wave"], item["sources"].sum(axis=0))
    heard = [bool(item["sources"][1].any()) for item in items]
    assert sum(heard) >= 10  # 29 % of the windows would do; ten are tried


def test_noise_is_added_to_the_mixture_alone(mix_mini: Path):
    data = open_data("mix_mini", f"root={mix_mini}", "crop_samples=4000", "batch_size=8")
    section = section_of("augment", "noise")
    build.check(section, "augment")
    data.augment = build.build(section)
    data.trainer = SimpleNamespace(training=True, testing=False, global_rank=0, world_size=1)
    batch = next(iter(data.train_dataloader()))
    clean, sources = batch["wave"].clone(), batch["sources"].clone()
    data.on_after_batch_transfer(batch, 0)
    noise_power, power = ((x**2).mean(dim=-1) for x in (batch["wave"] - clean, clean))
    changed = noise_power > 0
    assert 1 <= changed.sum() <= 7 and torch.equal(batch["sources"], sources)
    snr_db = 10 * torch.log10(power / noise_power)[changed]
    assert snr_db.min() > 4.9 and snr_db.max() < 30.1


def test_only_augmentations_that_add_to_the_mixture_are_taken(mix_mini: Path):
    section = section_of("data", "mix_mini", f"root={mix_mini}")
    for task, name in (("separation", "noise"), ("asvspoof", "noise")):
        build.build(section, augment=build.build(section_of("augment", name, task=task)))
    for name, step in (("light_noise_codec", "codec"), ("rawboost5", "rawboost"), ("codec", "codec")):
        augment = build.build(section_of("augment", name, task="asvspoof"))
        with pytest.raises(InputError, match=f"augment= has .*{step}.*in its sources: give augment=separation/noise"):
            build.build(section, augment=augment)


def test_unknown_talkers_and_silent_sources_are_no_accident(folders: Path, tmp_path: Path, caplog):
    warn_once.cache_clear()
    data = open_data("folders", f"root={folders}", *TINY, "dynamic.p=1")
    data.utterances("train")
    assert "the talkers of 8 of 8 sources are not known" in caplog.text
    silent = noise_sources(2, 4000, 0)
    silent[1] = 0
    for kind, wave in (("mix", silent[0]), ("s1", silent[0]), ("s2", silent[1])):
        write_wave(tmp_path / "train" / kind / "a.wav", wave)
    for share in (0, 1):
        item = open_data("folders", f"root={tmp_path}", *TINY, f"dynamic.p={share}").utterances("train")[(0, 0)]
        assert np.isfinite(item["sources"]).all() and np.isnan(item["snr_db"]) and item["overlap"] == 0.0


def test_librimix_as_published_with_the_paths_of_another_machine(tmp_path: Path):
    generator = np.random.default_rng(0)
    root, rows = tmp_path / "moved", {"mix_clean": [], "mix_both": []}
    base = root / "Libri2Mix/wav8k/min"
    for number in range(3):
        sources = noise_sources(2, 3000 + number, number)
        noise = 0.01 * generator.standard_normal(3000 + number).astype(np.float32)
        id_ = f"{10 + number}-1-{number:04d}_{20 + number}-1-{number:04d}"
        kinds = {"s1": sources[0], "s2": sources[1], "noise": noise, "mix_clean": sources.sum(0)}
        for kind, wave in (kinds | {"mix_both": sources.sum(0) + noise}).items():
            write_wave(base / "dev" / kind / f"{id_}.wav", wave)
        for kind, listed in rows.items():
            there = f"/home/someone/data/Libri2Mix/wav8k/min/dev/{{}}/{id_}.wav"
            own = {"mixture_ID": id_, "mixture_path": there.format(kind)}
            own |= {f"source_{n}_path": there.format(f"s{n}") for n in (1, 2)}
            listed.append(own | {"noise_path": there.format("noise"), "length": 3000 + number})
    for kind, listed in rows.items():
        write_csv(base / "metadata" / f"mixture_dev_{kind}.csv", listed)
    for given in (root, root / "Libri2Mix"):
        for kind in rows:
            data = open_data("libri2mix", f"root={given}", f"variant.kind={kind}", "level_dbfs=null")
            item = data.utterances("dev")[(0, 2)]
            rest = item["wave"] - item["sources"].sum(axis=0)
            assert item["wave"].shape == (3002,) and item["speakers"] == "12/22" and item["genders"] == "?"
            assert (np.abs(rest).max() > 1e-3) == (kind == "mix_both")
            found = {finding.check: finding for finding in data.check_contents()}
            assert found["dev sums"].state == "ok"
            assert ("noise is 1" in found["dev sums"].found) == (kind == "mix_both")
    for path in (base / "metadata").iterdir():  # as some copies have it: folders alone
        path.unlink()
    assert open_data("libri2mix", f"root={root}", "level_dbfs=null").utterances("dev").ids == [
        row["mixture_ID"] for row in rows["mix_clean"]
    ]
    resampled = open_data("libri2mix", f"root={root}", "sample_rate_hz=16000").utterances("dev")[(0, 0)]
    assert resampled["wave"].shape == (6000,)
    assert np.abs(resampled["wave"] - resampled["sources"].sum(axis=0)).max() < 1e-4


def test_librimix_with_noise_is_mixed_by_its_metadata(tmp_path: Path):
    speech, noise = noise_sources(2, 2400, 0), noise_sources(1, 1000, 1)[0]
    write_wave(tmp_path / "speech/a.wav", speech[0])
    write_wave(tmp_path / "speech/b.wav", speech[1, :2000])
    write_wave(tmp_path / "wham_noise/tr/n.wav", noise)
    row = {"mixture_ID": "1-0_2-0", "source_1_path": "a.wav", "source_1_gain": 0.5, "source_2_path": "b.wav"}
    row |= {"source_2_gain": 1.5, "noise_path": "tr/n.wav", "noise_gain": 2.0}
    write_csv(tmp_path / "metadata/Libri2Mix/libri2mix_train-clean-100.csv", [row])
    info = {"mixture_ID": "1-0_2-0", "speaker_1_ID": "1", "speaker_1_sex": "F"}
    write_csv(
        tmp_path / "metadata/Libri2Mix/libri2mix_train-clean-100_info.csv",
        [info | {"speaker_2_ID": "2", "speaker_2_sex": "M"}],
    )
    options = ("libri2mix", f"root={tmp_path}", f"variant.speech={tmp_path / 'speech'}", "sets.dev=[train-100]")
    options += ("level_dbfs=null", "variant.kind=mix_both")
    item = open_data(*options, "variant.length=max").utterances("dev")[(0, 0)]
    sources = np.stack([0.5 * speech[0], np.pad(1.5 * speech[1, :2000], (0, 400))])
    assert np.allclose(item["sources"], sources, atol=1e-7) and item["genders"] == "MF"
    assert np.allclose(item["wave"] - sources.sum(axis=0), 2 * np.resize(noise, 2400), atol=1e-6)
    assert open_data(*options).utterances("dev")[(0, 0)]["wave"].shape == (1000,)


def test_wsj0_mix_and_folders_and_lists_of_ones_own(tmp_path: Path, folders: Path):
    write_folders(tmp_path / "3speakers/wav8k/max", ("tr", "cv", "tt"), num_sources=3)
    for kind in ("mix", "s1", "s2", "s3"):
        folder = tmp_path / "3speakers/wav8k/max/tr" / kind
        (folder / "m0.wav").rename(folder / "01aa010k_1.3053_01po0310_-1.3053_40na010x_0.wav")
    for root in (tmp_path, tmp_path / "3speakers", tmp_path / "3speakers/wav8k/max"):
        data = open_data("wsj0_2mix", f"root={root}", "num_speakers=3", "variant.length=max", "sets.dev=[tr]")
        assert data.utterances("dev")[(0, 0)]["speakers"] == "01a/01p/40n"
        assert data.utterances("dev")[(0, 1)]["sources"].shape == (3, 4000)
    data = open_data("folders", f"root={folders}", *TINY, "level_dbfs=null")
    data.setup("fit")
    assert data.num_files == 36 and data.utterances("test").ids == ["m0", "m1", "m2", "m3"]
    rows = [
        {"mixture": f"test/mix/m{n}.wav", "source_1": f"test/s1/m{n}.wav", "source_2": f"test/s2/m{n}.wav"}
        for n in range(4)
    ]
    listed = open_data("csv", f"root={write_csv(folders / 'list.csv', rows)}", *TINY, "level_dbfs=null")
    for row in rows:
        del row["mixture"]
    mixed = open_data("csv", f"root={write_csv(folders / 'sources.csv', rows)}", *TINY, "level_dbfs=null")
    mixed.setup("test")
    for index in range(3):
        wave = data.utterances("test")[(0, index)]["wave"]
        assert np.array_equal(listed.utterances("test")[(0, index)]["wave"], wave)
        assert np.array_equal(mixed.utterances("test")[(0, index)]["wave"], wave)


def test_stereo_is_averaged_and_other_rates_are_resampled(tmp_path: Path):
    time = np.arange(8000) / 16000
    tone = 0.1 * np.sin(2 * np.pi * 300 * time)
    write_wave(tmp_path / "a.wav", np.stack([tone * 2, tone * 0]), rate_hz=16000)
    write_wave(tmp_path / "b.wav", 0.1 * np.sin(2 * np.pi * 500 * time[::2]), rate_hz=8000)
    path = write_csv(tmp_path / "list.csv", [{"source_1": "a.wav", "source_2": "b.wav"}])
    item = open_data("csv", f"root={path}", *TINY, "level_dbfs=null").utterances("test")[(0, 0)]
    expected = 0.1 * np.sin(2 * np.pi * 300 * np.arange(4000) / 8000)
    assert np.abs(item["sources"][0] - expected)[100:-100].max() < 1e-4


def test_sets_that_share_talkers_or_files_are_told_of(mix_mini: Path, folders: Path):
    data = open_data("mix_mini", f"root={mix_mini}", "sets.test=[train-100]", "sets.dev=[dev]")
    data.setup("fit")
    listings = {name: data.listing(name) for name in data.listed_sets}
    found = {(f.check, f.state): f for f in examine_lists(listings, data.sets_of_unseen_speakers)}
    assert "33 shared by train and test" in found["speakers", "problem"].found
    assert ("files", "problem") in found
    data = open_data("mix_mini", f"root={mix_mini}", "unseen_speakers=false", "sets.test=[train-100]")
    found = {(f.check, f.state): f for f in examine_lists(listings, data.sets_of_unseen_speakers)}
    assert "33 shared by train and test" in found["speakers", "warning"].found
    own = open_data("mix_mini", f"root={mix_mini}")
    own.setup("fit")
    findings = examine_lists({name: own.listing(name) for name in own.listed_sets}, own.sets_of_unseen_speakers)
    assert {finding.state for finding in findings} == {"ok"}
    contents = {finding.check: finding for finding in own.check_contents()}
    assert {finding.state for finding in contents.values()} == {"ok"}
    assert contents["test sums"].found.startswith("mixture = sum of sources in all 100")
    assert "source 1 against the rest -5.4 to 6.2 dB" in contents["test SNR"].found
    assert "MF" in contents["train SNR"].found


def test_mixtures_that_are_not_the_sum_of_their_sources_are_told_of(tmp_path: Path):
    write_folders(tmp_path, ("train", "dev", "test"))
    sources = noise_sources(2, 4000, 0)  # those of train m0
    for number, name in enumerate(("m0", "m1")):
        write_wave(tmp_path / f"train/s{number + 1}/{name}.wav", 0.5 * noise_sources(2, 4000, number)[number])
    write_wave(tmp_path / "dev/s1/m0.wav", sources[0])  # of another mixture
    write_wave(tmp_path / "dev/s2/m0.wav", sources[1])
    write_wave(tmp_path / "dev/s2/m1.wav", noise_sources(2, 3999, 101)[1])
    noisy = noise_sources(2, 4000, 203).sum(axis=0) + 0.1 * noise_sources(1, 4000, 9)[0]
    write_wave(tmp_path / "test/mix/m3.wav", noisy)
    write_wave(tmp_path / "test/s1/m2.wav", np.zeros(4000))
    for stage in ("fit", "validate"):
        with pytest.raises(
            InputError, match=r"1 of 4 mixtures of dev .*s2/m1.wav has 3999 .* must be as long as their"
        ):
            open_data("folders", f"root={tmp_path}", *TINY).setup(stage)
    data = open_data("folders", f"root={tmp_path}", *TINY, "on_bad_audio=skip", "max_bad_audio=1", "crop_samples=4001")
    data.setup("fit")
    found = {(finding.check, finding.state): finding for finding in data.check_contents()}
    assert found["train sums", "problem"].items == ("m0", "m1")
    assert "other levels" in found["train sums", "problem"].found
    assert found["dev sums", "problem"].items[0].startswith("m0: ")
    assert "s2/m1.wav has 3999 samples and its mixture" in found["dev lengths", "problem"].items[0]
    assert any(item.startswith("m3: -2") for item in found["test sums", "warning"].items)
    assert found["test levels", "warning"].items == ("m2",)
    short = found["train crops", "warning"]
    assert short.found == "4 of 4 are shorter than data.crop_samples=4001 and repeated (data.short=repeat)"
    assert "half of them have 4000 samples or less" in short.remedy
    assert ("dev crops", "warning") not in found
    with pytest.raises(AudioError, match=r"s2/m1.wav has 3999 samples and its mixture .*dev/mix/m1.wav has 4000"):
        raise _error(data.utterances("dev")[(0, 1)])


def _error(item: object) -> Exception:
    assert isinstance(item, BadItem)
    return item.error


def test_unreadable_sources_are_replaced_with_skip_and_named_without(tmp_path: Path):
    write_folders(tmp_path, ("train", "dev", "test"))
    (tmp_path / "train/s1/m2.wav").write_bytes(b"RIFF")
    bad_path = str(tmp_path / "train/s1/m2.wav")
    for share in (0, 0.5, 1):
        options = ("folders", f"root={tmp_path}", *TINY, f"dynamic.p={share}", "dynamic.num_items=30")
        batches = list(open_data(*options, "on_bad_audio=skip", "max_bad_audio=1").train_dataloader())
        assert len(batches) == (15 if share else 2)
        assert all(len(batch["id"]) == 2 == len(batch["wave"]) for batch in batches)
        assert {bad.error.path for batch in batches for bad in batch["bad"]} == {bad_path}
        data = open_data(*options)
        with pytest.raises(AudioError, match="s1/m2.wav is not audio"):
            for batch in data.train_dataloader():
                data.on_before_batch_transfer(batch, 0)
    (tmp_path / "test/s2/m0.wav").unlink()
    rows = [{"source_1": "test/s1/m0.wav", "source_2": "test/s2/m0.wav"}]
    path = write_csv(tmp_path / "list.csv", rows)
    with pytest.raises(InputError, match=r"1 of 2 audio files are not there \(1 of test\), the first is .*test/s2/m0"):
        open_data("csv", f"root={path}", *TINY).setup("test")
    data = open_data("csv", f"root={path}", *TINY, "on_bad_audio=skip", "max_bad_audio=1")
    data.setup("test")
    assert data.skipped_ids == {"m0_m0"}


def test_overfitting_trains_and_judges_on_the_same_few(mix_mini: Path):
    data = open_data("mix_mini", f"root={mix_mini}", "overfit=10")
    data.setup("fit")
    assert data.utterances("train").ids == data.utterances("dev").ids and len(data.utterances("dev")) == 10
    assert data.listed_sets == ["train", "test"]
    assert len(list(data.train_dataloader())) == 5


def test_loading_is_counted_in_seconds_of_its_own_rate(folders: Path):
    data = open_data("folders", f"root={folders}", *TINY)
    batch = next(iter(data.train_dataloader()))
    assert data.audio_s(batch) == 2 * 2000 / 8000
    assert data.context("test") == {"num_speakers": 2, "sample_rate_hz": 8000}
    assert data.faster_loading()[0] == "data.in_memory=true"
    data.choose_test_sets(["dev"])
    assert data.test_sets == ["dev"]


def test_the_training_set_is_judged_whole(folders: Path):
    data = open_data("folders", f"root={folders}", *TINY, "dynamic.p=1")
    data.choose_test_sets(["train"])
    data.setup("test")
    batches = list(data.test_dataloader()[0])
    assert [batch["id"] for batch in batches] == [["m0"], ["m1"], ["m2"], ["m3"]]
    assert {batch["wave"].shape for batch in batches} == {(1, 4000)}


@pytest.mark.parametrize("rate_hz", [8000, 16000])
@pytest.mark.parametrize("share", [0, 1])
def test_memory_changes_no_sample(folders: Path, rate_hz: int, share: int):
    options = ("folders", f"root={folders}", f"sample_rate_hz={rate_hz}", "crop_samples=2000", f"dynamic.p={share}")
    kept, read = (open_data(*options, f"in_memory={m}").utterances("train") for m in ("true", "false"))
    for epoch in (0, 1):
        assert np.array_equal(kept[(epoch, 2)]["sources"], read[(epoch, 2)]["sources"])
        assert np.array_equal(kept[(epoch, 2)]["wave"], read[(epoch, 2)]["wave"])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("folders", ["root=/nowhere"], "data.root=/nowhere does not exist: give the folder that holds"),
        ("libri2mix", ["root={own}"], "no Libri2Mix/; give .*it looks like folders: choose the data= of that"),
        ("libri2mix", ["root={mini}/LibriSpeech"], "is not in the LibriMix layout: it has no Libri2Mix/"),
        (
            "libri2mix",
            ["root={mini}", "num_speakers=4"],
            "has no Libri4Mix/ .it has Libri2Mix/: set data.num_speakers=2",
        ),
        (
            "libri2mix",
            ["root={mini}", "sets.dev=[dev-2]"],
            "no part dev-2 of Libri2Mix .mix_clean.: there are dev, test, train",
        ),
        ("libri2mix", ["root={mini}", "variant.stored=stored", "variant.length=max"], "wav16k has no max/, it has min"),
        ("libri2mix", ["root={mini}", "variant.kind=mix_both"], "there is no column 'noise_path'.*and is mixture_ID,"),
        ("libri2mix", ["root={mini}", "variant.steps=0"], "data.variant.steps=0 does not fit"),
        (
            "libri2mix",
            ["root={mini}", "variant.kind=mix"],
            "data.variant.kind='mix' does not fit LibriMix: expected mix_clean",
        ),
        (
            "folders",
            ["root={own}", "+data.variant.length=min"],
            "data.variant.length does not fit: data.layout=folders has no such",
        ),
        ("folders", ["root={own}", "num_speakers=3"], "has no folder s3/: put the sources of its mixtures there"),
        ("folders", ["root={three}"], "train has 3 sources a mixture .s1, s2, s3. and data.num_speakers=2"),
        ("folders", ["root={own}", "sets.dev=[valid]"], "it has no valid/mix/; give"),
        ("folders", ["root={own}", "sets.dev=[]"], "data.sets has no dev set, on which the best epoch"),
        (
            "folders",
            ["root={own}", "+data.sets.eval=[test]"],
            "data.sets.eval=.* does not fit: the sets are train, dev, test",
        ),
        ("wsj0_2mix", ["root={own}"], "has no 2speakers/wav16k/min/tr/mix; give"),
        ("folders", ["root={own}", "layout=folder"], "data.layout=folder is unknown: did you mean folders"),
        ("folders", ["root={own}", "eval_batch_size=4"], "data.eval_batch_size=4 does not fit: dev and test mixtures"),
        ("folders", ["root={own}", "crop_samples=0"], "data.crop_samples=0"),
        ("folders", ["root={own}", "num_speakers=1"], "data.num_speakers=1 does not fit"),
        ("folders", ["root={own}", "sample_rate_hz=44100"], "data.sample_rate_hz=44100 does not fit"),
        ("folders", ["root={own}", "dynamic.p=2"], "data.dynamic.p=2 does not fit: give a share from 0 to 1"),
        (
            "folders",
            ["root={own}", "dynamic.speed=[1.1,0.9]"],
            "data.dynamic.speed=.1.1, 0.9. does not fit: give .lowest",
        ),
        (
            "folders",
            ["root={own}", "dynamic.snr_db=3"],
            r"data.dynamic.snr_db=3 does not fit .*: expected a list \[...\], each a number",
        ),
        ("folders", ["root={own}", "dynamic.speed=[a,b]"], "data.dynamic.speed=.* does not fit .*each a number"),
        ("folders", ["root={own}", "dynamic.overlap=[0.5]"], "data.dynamic.overlap=.0.5. does not fit: give .lowest"),
        (
            "folders",
            ["root={own}", "dynamic.p=1", "dynamic.sources=/none.csv"],
            "data.dynamic.sources=/none.csv is not there",
        ),
        ("folders", ["root={own}", "sets.dev=dev"], r"data.sets.dev='dev' does not fit .*list \[...\], each a text"),
        (
            "folders",
            ["root={own}", "dynamic.equalizer_db=-1"],
            "data.dynamic.equalizer_db=-1 does not fit: give a number",
        ),
        ("folders", ["root={own}", "+data.dynamic.sped=1"], "did you mean data.dynamic.speed"),
        (
            "mix_mini",
            ["root={mini}", "num_speakers=3", "dynamic.sources={own}/two.csv"],
            "mixing of 3 talkers .* have 2",
        ),
        ("csv", ["root={own}"], "is not in the CSV layout: it has no list, it is a folder"),
        ("csv", ["root={own}/two_rows.csv"], "has no rows with the set train, it has test: mark some in a column set"),
        ("csv", ["root={own}/wrong.csv"], "should be mixture,source_1,source_2 .* and is file,source_1,label"),
        (
            "csv",
            ["root={own}/three.csv"],
            "has 3 sources a mixture .source_1, source_2, source_3. and data.num_speakers=2",
        ),
        ("csv", ["root={own}/twice.csv"], "line 3, column 1: a_b names line 2 too: give a column id"),
        ("csv", ["root={own}/gains.csv"], "line 2, column 1: a mixture that is stored takes no gains"),
        ("csv", ["root={own}/loud.csv"], "line 2, column 3: gain_1=.loud. is not a finite number"),
        ("csv", ["root={own}/loud.csv", "sets.train=[other]"], "line 2, column 3"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(
    name: str, options: list[str], expected: str, folders: Path, mix_mini: Path, tmp_path: Path
):
    lists = {
        "wrong": [{"file": "a.wav", "source_1": "a.wav", "label": 1}],
        "two_rows": [{"source_1": "train/s1/m0.wav", "source_2": "train/s2/m0.wav"}],
        "three": [{f"source_{number}": "a.wav" for number in (1, 2, 3)}],
        "twice": [{"source_1": "a.wav", "source_2": "b.wav"}] * 2,
        "gains": [{"mixture": "m.wav", "source_1": "a.wav", "source_2": "b.wav", "gain_1": 2}],
        "loud": [{"source_1": "a.wav", "source_2": "b.wav", "gain_1": "loud"}],
        "two": [{"file": f"train/s{n}/m0.wav", "speaker": n} for n in (1, 2)],
    }
    own = write_folders(tmp_path / "own", ("train", "dev", "test"), num=1, length=10)
    for file, rows in lists.items():
        write_csv(own / f"{file}.csv", rows)
    three = tmp_path / "three"
    if "{three}" in options[0]:
        write_folders(three, ("train", "dev"), num_sources=3, num=1)
    filled = [
        o.replace("{own}", str(own)).replace("{mini}", str(mix_mini)).replace("{three}", str(three)) for o in options
    ]
    with pytest.raises(InputError, match=expected) as error:
        data = open_data(name, "sample_rate_hz=16000", *filled)
        data.setup("fit")
        data.setup("test")
    assert "\n" not in str(error.value)


def test_rows_that_are_in_no_set_are_told_of(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [
        {"set": name, "source_1": f"{folders}/{part}/s1/m{n}.wav", "source_2": f"{folders}/{part}/s2/m{n}.wav"}
        for part, names in {"train": ("train", "trian"), "dev": ("dev", "test"), "test": ("test", "spare")}.items()
        for n, name in enumerate(names)
    ]
    path = write_csv(tmp_path / "list.csv", [{"id": f"x{n}", **row} for n, row in enumerate(rows)])
    open_data("csv", f"root={path}", *TINY, "sets.test=[]").setup("fit")
    assert [record.message for record in caplog.records] == [
        f"1 rows of {path} have the set trian, which is not in data.sets: did you mean train?",
        f"1 rows of {path} have the set spare, which is not in data.sets: name it in data.sets to use them",
    ]


def test_findings_name_the_file_of_a_mixture(tmp_path: Path):
    write_folders(tmp_path, ("train", "dev"), num=2)
    source = tmp_path / "train/s1/m0.wav"
    (tmp_path / "train/s2/m1.wav").write_bytes(source.read_bytes())
    write_wave(tmp_path / "dev/s2/m1.wav", np.zeros((2, 4000)))
    data = open_data("folders", f"root={tmp_path}", *TINY, "sets.test=[]")
    sets = {name: data.listing(name) for name in ("train", "dev")}
    facts = {file: read_facts(file) for listing in sets.values() for file in listing["file"]}
    found = {finding.check: finding for finding in examine_contents(sets, facts, {}, None)}
    assert found["duplicates"].items == ("train s1/m0.wav = train s2/m1.wav",)
    assert [item.split(":")[0] for item in found["silence"].items] == ["s2/m1.wav"]
    assert found["format"].items == ("s2/m1.wav: 8 kHz stereo",) and "classes" not in found["format"].remedy


def test_an_option_that_a_layout_lacks_is_what_is_named():
    with pytest.raises(InputError, match=r"^data.variant.length is not an option .*; data.variant has no options with"):
        compose_run(["task=separation", "data=separation/folders", "data.root=/x", "data.variant.length=mid"], "x")


def test_names_that_differ_between_folders_are_said(tmp_path: Path):
    write_folders(tmp_path, ("train",), num=3, length=10)
    (tmp_path / "train/s2/m1.wav").unlink()
    with pytest.raises(InputError, match=r"train/mix/m1.wav has no counterpart in s2/ \(1 such files\)"):
        open_data("folders", f"root={tmp_path}", *TINY).utterances("train")
    (tmp_path / "train/mix/m1.wav").unlink()
    with pytest.raises(InputError, match=r"train/s1/m1.wav has no counterpart in mix/"):
        open_data("folders", f"root={tmp_path}", *TINY).utterances("train")
