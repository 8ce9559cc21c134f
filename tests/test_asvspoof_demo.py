"""The built-in spoofing corpus: layout, determinism, atomic building, and no shortcut to the class."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from audiolab.audio import built_in
from audiolab.audio.io import audio_info, read_audio
from audiolab.audio.level import peak_dbfs, rms_dbfs
from audiolab.errors import InputError
from audiolab.tasks.asvspoof import demo
from audiolab.tasks.asvspoof.demo import prepare_demo_corpus

SIZES = {"train": 120, "dev": 48, "eval": 72}
SMALLEST = {"num_train": 12, "num_dev": 12, "num_eval": 12}
PROTOCOLS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built-in") / "asvspoof"
    return prepare_demo_corpus(root, **{f"num_{name}": size for name, size in SIZES.items()}, show_progress=False)


def _rows(root: Path, split: str) -> list[list[str]]:
    protocol = root / f"ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{PROTOCOLS[split]}.txt"
    return [line.split(" ") for line in protocol.read_text().splitlines()]


def _flac(root: Path, split: str, name: str) -> Path:
    return root / f"ASVspoof2019_LA_{split}" / "flac" / f"{name}.flac"


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_layout_is_that_of_the_public_corpus(corpus, shared):
    def names(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir() or path.suffix == ".txt"}

    assert names(corpus) - {"README.txt"} == names(shared / "data/la_mini/LA")
    assert "SYNTHETIC" in (corpus / "README.txt").read_text().split("\n")[0]


@pytest.mark.parametrize("split", SIZES)
def test_protocols_and_files_agree(corpus, split):
    rows = _rows(corpus, split)
    letter = split[0].upper()
    assert sorted(row[1] for row in rows) == [f"LA_{letter}_{number:07d}" for number in range(1, SIZES[split] + 1)]
    assert {path.stem for path in (corpus / f"ASVspoof2019_LA_{split}/flac").iterdir()} == {row[1] for row in rows}
    for speaker, _, system, attack, key in rows:
        assert speaker.startswith("LA_00") and system == "-"
        assert (key == "bonafide") == (attack == "-") and key in ("bonafide", "spoof")
    attacks = ["A07", "A08", "A09", "A16"] if split == "eval" else ["A01", "A02", "A03", "A04"]
    counts = Counter(row[3] for row in rows)
    assert counts == {"-": SIZES[split] // 3} | dict.fromkeys(attacks, SIZES[split] // 6)
    for speaker in {row[0] for row in rows}:
        assert {row[4] for row in rows if row[0] == speaker} == {"bonafide", "spoof"}


def test_no_speaker_is_in_two_splits(corpus):
    speakers = [{row[0] for row in _rows(corpus, split)} for split in SIZES]
    assert [len(group) for group in speakers] == [12, 6, 8]
    assert len(set.union(*speakers)) == 26
    variants = demo._TRAIN_VARIANTS + demo._DEV_VARIANTS + demo._EVAL_VARIANTS
    assert len(set(variants)) == len(variants)


def test_numbers_do_not_tell_the_class(corpus):
    is_bonafide = [row[4] == "bonafide" for row in sorted(_rows(corpus, "train"), key=lambda row: row[1])]
    assert 20 < sum(one != two for one, two in itertools.pairwise(is_bonafide)) < 80
    assert 10 < sum(is_bonafide[:60]) < 30


def test_every_file_is_speech_at_16_khz(corpus):
    for split in SIZES:
        for _, name, *_ in _rows(corpus, split):
            path = _flac(corpus, split, name)
            info = audio_info(path)
            assert (info.sample_rate, info.num_channels, info.encoding) == (16000, 1, "FLAC PCM_16")
            waveform, _ = read_audio(path)
            assert 1.5 <= info.duration_s <= 2.5
            assert -38 < rms_dbfs(waveform) < -15 and peak_dbfs(waveform) <= 0


def test_asv_scores_are_the_simulated_ones(corpus):
    for split, num_targets, num_nontargets in (("dev", 300, 1200), ("eval", 500, 2500)):
        path = corpus / f"ASVspoof2019_LA_asv_scores/ASVspoof2019.LA.asv.{split}.gi.trl.scores.txt"
        rows = [line.split(" ") for line in path.read_text().splitlines()]
        scores = {key: np.array([float(row[2]) for row in rows if row[1] == key]) for key in ("target", "nontarget")}
        assert [len(scores["target"]), len(scores["nontarget"])] == [num_targets, num_nontargets]
        assert scores["target"].mean() == pytest.approx(3.0, abs=0.35)
        assert scores["target"].std() == pytest.approx(1.8, abs=0.25)
        assert scores["nontarget"].mean() == pytest.approx(-5.0, abs=0.35)
        assert {row[0] for row in rows if row[1] != "spoof"} == {"bonafide"}
        spoofs = Counter(row[0] for row in rows if row[1] == "spoof")
        assert spoofs == Counter(row[3] for row in _rows(corpus, split) if row[4] == "spoof")


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first = prepare_demo_corpus(tmp_path / "first", **SMALLEST, show_progress=False)
    again = prepare_demo_corpus(tmp_path / "again", **SMALLEST, show_progress=False)
    other = prepare_demo_corpus(tmp_path / "other", seed=1, **SMALLEST, show_progress=False)
    assert _digest(first) == _digest(again) != _digest(other)
    name = _rows(first, "dev")[0][1]
    assert not np.array_equal(read_audio(_flac(first, "dev", name))[0], read_audio(_flac(other, "dev", name))[0])


def test_a_corpus_that_is_there_is_not_made_again_until_the_recipe_changes(tmp_path, monkeypatch):
    root = prepare_demo_corpus(tmp_path / "corpus", **SMALLEST, show_progress=False)
    before = _digest(root)
    build = demo._build
    built = []
    monkeypatch.setattr(demo, "_build", lambda *arguments: (built.append(1), build(*arguments)))
    assert prepare_demo_corpus(root, **SMALLEST) == root and not built
    (root / "ASVspoof2019_LA_dev/flac/stray.flac").write_text("x")
    monkeypatch.setattr(built_in, "code_digest", lambda code: "changed")
    prepare_demo_corpus(root, **SMALLEST, show_progress=False)
    assert built == [1]
    assert not (root / "ASVspoof2019_LA_dev/flac/stray.flac").exists()  # the new one replaced the old one whole
    assert _digest(root) != before and [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    waveform, made = demo._waveform, []

    def interrupted(trial):
        made.append(trial)
        if len(made) > 5:
            raise KeyboardInterrupt
        return waveform(trial)

    monkeypatch.setattr(demo, "_waveform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_demo_corpus(tmp_path / "corpus", **SMALLEST, show_progress=False)
    assert len(made) > 5 and list(tmp_path.iterdir()) == []


def test_processes_that_build_at_once_do_no_harm(tmp_path):
    """Both finish with the whole corpus in place, and the remains of a build killed long ago go."""
    stale = tmp_path / ".corpus.building-0000"
    stale.mkdir()
    os.utime(stale, (time.time() - 7200,) * 2)
    options = SMALLEST | {"show_progress": False}
    processes = [
        multiprocessing.get_context("fork").Process(
            target=prepare_demo_corpus, args=(tmp_path / "corpus",), kwargs=options
        )
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    alone = prepare_demo_corpus(tmp_path / "alone", **SMALLEST, show_progress=False)
    assert _digest(tmp_path / "corpus") == _digest(alone)


def test_two_builds_that_finish_together_keep_the_first(tmp_path):
    stamp = {"corpus": "a corpus"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / built_in.STAMP).write_text('{"corpus": "a corpus"}')
        (tmp_path / name / "maker").write_text(name)
        built_in._publish(tmp_path / name, tmp_path / "corpus", stamp)
    assert (tmp_path / "corpus/maker").read_text() == "one"


def test_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    for root in (tmp_path / "thesis", tmp_path / "thesis" / "chapter1.txt"):
        with pytest.raises(InputError, match="holds something else than the built-in corpus"):
            prepare_demo_corpus(root, **SMALLEST)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="num_dev is 5: the built-in corpus needs at least 12"):
        prepare_demo_corpus(tmp_path / "new", num_dev=5)
    (tmp_path / "empty").mkdir()
    assert prepare_demo_corpus(tmp_path / "empty", **SMALLEST, show_progress=False).is_dir()


# Shortcuts


def _simple_features(waveform: np.ndarray) -> list[float]:
    """Level, duration, peak and zero-crossing rate."""
    crossings = np.mean(np.diff(np.signbit(waveform)))
    return [float(rms_dbfs(waveform)), len(waveform) / 16000, float(peak_dbfs(waveform)), float(crossings)]


def _logistic_regression(features: np.ndarray, is_bonafide: np.ndarray) -> np.ndarray:
    """Weights with a bias last, by Newton's method on class-balanced, lightly regularised log loss."""
    weights = np.zeros(features.shape[1])
    balance = np.where(is_bonafide, 0.5 / is_bonafide.mean(), 0.5 / (1 - is_bonafide.mean()))
    for _ in range(20):
        probability = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (balance * (probability - is_bonafide)) + weights
        curvature = (features.T * (balance * probability * (1 - probability))) @ features + np.eye(len(weights))
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def _eer(scores: np.ndarray, is_bonafide: np.ndarray) -> float:
    thresholds = np.sort(scores)
    miss = np.array([np.mean(scores[is_bonafide] < threshold) for threshold in thresholds])
    false_alarm = np.array([np.mean(scores[~is_bonafide] >= threshold) for threshold in thresholds])
    best = np.argmin(np.abs(miss - false_alarm))
    return float(miss[best] + false_alarm[best]) / 2


def test_level_duration_peak_and_zero_crossings_do_not_tell_the_class(corpus):
    features, labels = {}, {}
    for split in SIZES:
        rows = _rows(corpus, split)
        features[split] = np.array([_simple_features(read_audio(_flac(corpus, split, row[1]))[0]) for row in rows])
        labels[split] = np.array([row[4] == "bonafide" for row in rows])

    def eers(leak_db: float) -> list[float]:
        shifted = {split: features[split] + np.outer(labels[split], [leak_db, 0, 0, 0]) for split in SIZES}
        mean, deviation = shifted["train"].mean(axis=0), shifted["train"].std(axis=0)
        scaled = {split: np.c_[(shifted[split] - mean) / deviation, np.ones(SIZES[split])] for split in SIZES}
        weights = _logistic_regression(scaled["train"], labels["train"])
        return [_eer(scaled[split] @ weights, labels[split]) for split in ("dev", "eval")]

    assert min(eers(leak_db=0.0)) > 0.33
    assert max(eers(leak_db=6.0)) < 0.15  # the check itself can see a leak: 6 dB against a spread of 2 dB
