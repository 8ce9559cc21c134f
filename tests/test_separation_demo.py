"""The built-in separation corpus: LibriMix' layout, mixtures that are the sums of their sources, disjoint talkers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiolab import config
from audiolab.audio.level import rms_dbfs
from audiolab.audio.mixing import mixing_gains
from audiolab.errors import InputError
from audiolab.tasks.separation import demo
from audiolab.tasks.separation.demo import DemoData, prepare_demo_corpus
from audiolab.tasks.separation.librimix_writer import SETS, Utterance, audible_powers, draw_mixtures

SIZES = {"train": 24, "dev": 6, "test": 8}
AUDIO = "Libri2Mix/wav8k/min"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built-in") / "separation"
    return prepare_demo_corpus(root, **{f"num_{name}": size for name, size in SIZES.items()}, show_progress=False)


def digest(root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def lists(root: Path, name: str, audio: str = AUDIO) -> dict[str, pd.DataFrame]:
    subset, split = SETS[name]
    paths = {
        "utterances": f"metadata/LibriSpeech/{subset}.csv",
        "definition": f"metadata/Libri2Mix/libri2mix_{subset}.csv",
        "info": f"metadata/Libri2Mix/libri2mix_{subset}_info.csv",
        "mixtures": f"{audio}/metadata/mixture_{split}_mix_clean.csv",
        "metrics": f"{audio}/metadata/metrics_{split}_mix_clean.csv",
    }
    return {what: pd.read_csv(root / path, dtype={"speaker_ID": str}) for what, path in paths.items()}


def steps(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0].astype(np.int64)


def test_lists_have_the_columns_and_names_of_the_public_corpus(corpus: Path, shared: Path):
    found, public = lists(corpus, "dev"), shared / "data/mix_mini"
    for what, path in (
        ("utterances", "metadata/LibriSpeech/dev-clean.csv"),
        ("definition", "metadata/Libri2Mix/libri2mix_dev-clean.csv"),
        ("info", "metadata/Libri2Mix/libri2mix_dev-clean_info.csv"),
        ("mixtures", "Libri2Mix/wav16k/min/metadata/mixture_dev_mix_clean.csv"),
        ("metrics", "Libri2Mix/wav16k/min/metadata/metrics_dev_mix_clean.csv"),
    ):
        assert list(found[what]) == list(pd.read_csv(public / path)), what
    assert "SYNTHETIC" in (corpus / "README.txt").read_text().split("\n")[0]


@pytest.mark.parametrize("name", SIZES)
def test_every_mixture_is_the_sum_of_its_sources_as_the_lists_define_it(corpus: Path, name: str):
    found = lists(corpus, name)
    assert len(found["mixtures"]) == len(set(found["mixtures"]["mixture_ID"])) == SIZES[name]
    for row, gains, snrs in zip(
        *(found[what].itertuples() for what in ("mixtures", "definition", "metrics")), strict=True
    ):
        mixture, one, two = (steps(corpus / path) for path in (row.mixture_path, row.source_1_path, row.source_2_path))
        assert row.mixture_path == f"{AUDIO}/{SETS[name][1]}/mix_clean/{row.mixture_ID}.wav"
        assert len(mixture) == row.length and np.array_equal(mixture, one + two)
        assert float(rms_dbfs(mixture / 32768)) == pytest.approx(-25.0, abs=0.01)
        snr_db = 10 * np.log10(np.sum(one**2) / np.sum(two**2))
        assert snr_db == pytest.approx(snrs.source_1_SNR, abs=1e-3) == -snrs.source_2_SNR
        assert -5.01 < snr_db < 5.01
        for source, path, gain in (
            (one, gains.source_1_path, gains.source_1_gain),
            (two, gains.source_2_path, gains.source_2_gain),
        ):
            utterance = steps(corpus / "LibriSpeech" / path)[: row.length]
            assert np.abs(np.round(gain * utterance) - source).max() <= 1


def test_talkers_of_a_mixture_and_of_the_sets_differ(corpus: Path):
    speakers = {}
    for name in SIZES:
        found = lists(corpus, name)
        assert not (found["info"]["speaker_1_ID"] == found["info"]["speaker_2_ID"]).any()
        assert set(found["info"]["speaker_1_sex"]) == {"F", "M"}
        speakers[name] = set(found["utterances"]["speaker_ID"])
        paths = [corpus / "LibriSpeech" / path for path in found["utterances"]["origin_path"]]
        assert [soundfile.info(path).frames for path in paths] == found["utterances"]["length"].tolist()
        assert [path.parents[1].name for path in paths] == found["utterances"]["speaker_ID"].tolist()
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 37
    variants = [variant for groups in demo._VARIANTS.values() for group in groups for variant in group]
    assert len(set(variants)) == len(variants)


def test_runs_read_it_as_libri2mix_and_mix_anew(corpus: Path, tmp_path: Path):
    section = config.compose_run(["task=separation", "data=separation/demo", f"data.root={corpus}"], "x")["data"]
    options = {key: value for key, value in section.items() if key != "_target_"}
    data = DemoData(**{**options, "dynamic": {**options["dynamic"], "p": 1.0}})
    data.setup("fit")
    assert [len(data.utterances(name)) for name in SIZES] == list(SIZES.values())
    item = data.utterances("train")[(0, 0)]
    assert item["wave"].shape == (16000,) and item["sources"].shape == (2, 16000)
    assert item["speakers"].split("/")[0] != item["speakers"].split("/")[1]
    assert data.utterances("dev")[(0, 0)]["genders"] in ("MF", "FF", "MM")
    with pytest.raises(InputError, match="does not exist, and data=separation/demo is the built-in synthetic corpus"):
        DemoData(**{**options, "root": str(tmp_path / "corpora")}).prepare_data()


def test_the_same_seed_gives_the_same_bytes_and_a_corpus_that_is_there_stays(tmp_path: Path):
    sizes = {"num_train": 2, "num_dev": 1, "num_test": 1, "show_progress": False}
    first = prepare_demo_corpus(tmp_path / "first", **sizes)
    again = prepare_demo_corpus(tmp_path / "again", **sizes)
    other = prepare_demo_corpus(tmp_path / "other", seed=1, **sizes)
    before = digest(first)
    assert before == digest(again) != digest(other)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    prepare_demo_corpus(first, **sizes)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    with pytest.raises(InputError, match="num_dev is 0: the built-in corpus needs at least 1"):
        prepare_demo_corpus(tmp_path / "new", num_dev=0)


def said(num_speakers: int, num: int) -> list[Utterance]:
    return [Utterance(f"{who}-{n}", str(who), "-", "", 100) for who in range(num_speakers) for n in range(num)]


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_draws_are_different_and_use_every_utterance_about_equally_often(num_speakers: int):
    drawn = draw_mixtures(said(6, 5), 60, num_speakers, (-3.0, 3.0), np.random.default_rng(0))
    assert len({frozenset(one.id for one in mixture.utterances) for mixture in drawn}) == 60
    used = pd.Series([one.id for mixture in drawn for one in mixture.utterances]).value_counts()
    assert len(used) == 30 and used.max() - used.min() <= 3
    assert all(len({one.speaker for one in mixture.utterances}) == num_speakers for mixture in drawn)
    levels = np.array([level for mixture in drawn for level in mixture.snrs_db])
    assert levels.min() > -3 and levels.max() < 3 and abs(levels.mean()) < 0.6


@pytest.mark.parametrize(("num_speakers", "utterances", "num"), [(2, said(2, 3), 10), (3, said(2, 9), 1)])
def test_more_mixtures_than_the_utterances_give_are_refused(num_speakers: int, utterances: list[Utterance], num: int):
    with pytest.raises(InputError, match=f"and {num} are wanted: want fewer, or take more speakers"):
        draw_mixtures(utterances, num, num_speakers, (0.0, 0.0), np.random.default_rng(0))


def test_gains_have_one_peak_limit_and_do_not_blow_up_a_pause():
    generator = np.random.default_rng(0)
    speech = generator.normal(0, 0.1, 8000)
    spiky = np.where(np.arange(8000) == 10, 1.0, 1e-3 * speech)
    placed = np.stack([spiky, 0.01 * speech])
    gains = mixing_gains(placed, [3.0], -25.0, audible_powers(placed, list(placed)))
    scaled = gains[:, None] * placed
    assert max(np.abs(scaled).max(), np.abs(scaled.sum(0)).max()) == pytest.approx(0.99)
    assert 10 * np.log10(np.sum(scaled[0] ** 2) / np.sum(scaled[1] ** 2)) == pytest.approx(3.0)
    pause_first = np.concatenate([np.zeros(8000), speech])
    placed = np.stack([speech, pause_first[:8000]])
    gains = mixing_gains(placed, [0.0], -25.0, audible_powers(placed, [speech, pause_first]))
    assert np.isfinite(gains).all() and gains[1] < 15 * gains[0]
