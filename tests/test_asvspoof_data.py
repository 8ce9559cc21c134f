"""The 2019 LA reader on real recordings, and the sentence for each kind of broken corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_corpus import corpus

from audiolab.audio.crop import fixed_length
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.asv_scores import read_2019_asv_scores
from audiolab.tasks.asvspoof.data import SpoofingData
from audiolab.tasks.asvspoof.protocols import read_2019_protocol

CM = "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm."
ASV = "LA/ASVspoof2019_LA_asv_scores/ASVspoof2019.LA.asv.eval.gi.trl.scores.txt"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def drain(data: SpoofingData) -> list[dict]:
    return [batch for raw in data.train_dataloader() if (batch := data.on_before_batch_transfer(raw, 0)) is not None]


def test_la_mini_is_read_as_its_readme_counts_it(la_mini: Path):
    data = corpus(la_mini)
    data.setup("fit")
    expected = {"train": (900, 240, 56), "dev": (360, 90, 22), "eval": (800, 176, 38)}
    for name, (files, bonafide, speakers) in expected.items():
        trials = data.utterances(name).trials
        assert len(trials) == files
        assert sum(trial.label == "bonafide" for trial in trials) == bonafide
        assert len({trial.speaker for trial in trials}) == speakers
    assert {trial.attack for trial in data.utterances("eval").trials} == {"-", *(f"A{n:02d}" for n in range(7, 20))}
    assert set(data.context("eval")["asv"]) == {*(f"A{n:02d}" for n in range(7, 20)), "Pooled"}


def test_published_format_samples_are_read(shared: Path):
    formats = shared / "reference" / "asvspoof" / "formats"
    trials = read_2019_protocol(formats / "2019LA.cm.eval.trl.txt")
    assert [(t.id, t.speaker, t.attack, t.label) for t in trials[:2]] == [
        ("LA_E_9000001", "LA_0039", "A07", "spoof"),
        ("LA_E_9000002", "LA_0014", "-", "bonafide"),
    ]
    assert read_2019_protocol(formats / "2019LA.cm.train.trn.txt")[1].attack == "A01"
    scores = read_2019_asv_scores(formats / "2019LA.asv.scores.txt")
    assert scores.to_dict("records")[0] == {"attack": "-", "key": "target", "score": 4.137021}
    assert scores["attack"].tolist() == ["-", "-", "A07", "A19"]


def test_root_may_be_the_la_folder_itself(tiny_la: Path):
    assert corpus(tiny_la / "LA").ids("dev") == corpus(tiny_la).ids("dev")


def test_batches_do_not_depend_on_workers_and_labels_follow_the_protocol(tiny_la: Path):
    batches = {workers: drain(corpus(tiny_la, num_workers=workers)) for workers in (0, 2)}
    for one, two in zip(batches[0], batches[2], strict=True):
        assert one["id"] == two["id"]
        assert torch.equal(one["wave"], two["wave"])
    labels = {t.id: int(t.label == "bonafide") for t in corpus(tiny_la).utterances("train").trials}
    for batch in batches[0]:
        assert batch["label"].tolist() == [labels[name] for name in batch["id"]]
        assert batch["wave"].shape == (4, 16000)


def test_audio_kept_in_memory_is_the_same_and_is_read_once(tiny_la: Path):
    kept = corpus(tiny_la, in_memory=True)
    train = kept.utterances("train")
    first = [train[(0, index)]["wave"] for index in range(len(train))]
    for path in (tiny_la / "LA/ASVspoof2019_LA_train/flac").iterdir():
        path.unlink()
    assert all(np.array_equal(train[(0, index)]["wave"], wave) for index, wave in enumerate(first))


def test_training_windows_change_with_the_epoch_and_evaluation_never_does(tiny_la: Path):
    data = corpus(tiny_la)
    train, dev = data.utterances("train"), data.utterances("dev")
    assert not np.array_equal(train[(0, 0)]["wave"], train[(1, 0)]["wave"])
    assert np.array_equal(train[(1, 0)]["wave"], train[(1, 0)]["wave"])
    assert np.array_equal(dev[(0, 0)]["wave"], dev[(5, 0)]["wave"])


@pytest.mark.parametrize("length", [64599, 64600, 64601, 1, 200000])
def test_crops_have_the_length_asked_for(length: int):
    wave = np.arange(length, dtype=np.float32)
    crop = fixed_length(wave, 64600, np.random.default_rng(0))
    assert len(crop) == 64600
    assert crop[0] + min(length, 64600) - 1 == crop[min(length, 64600) - 1]  # consecutive samples
    if length < 64600:
        assert np.array_equal(crop[length : 2 * length], crop[: min(length, 64600 - length)])


def test_wrong_root(tmp_path: Path):
    with pytest.raises(InputError, match=r"data.root=.*nowhere is not in the ASVspoof 2019 LA layout.*holds LA/"):
        corpus(tmp_path / "nowhere").setup("fit")


def test_protocol_that_names_a_missing_file(tiny_la: Path):
    victim = next((tiny_la / "LA/ASVspoof2019_LA_dev/flac").iterdir())
    victim.unlink()
    with pytest.raises(
        InputError, match=rf"1 of 56 audio files are not there \(1 of dev\), the first is .*{victim.name}"
    ):
        corpus(tiny_la).setup("fit")
    data = corpus(tiny_la, on_bad_audio="skip")
    data.setup("fit")
    assert data.bad_audio.skipped == {str(victim): "does not exist"}
    assert data.skipped_ids == {victim.stem}


def test_duplicate_trial(tiny_la: Path):
    path = tiny_la / f"{CM}train.trn.txt"
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text() + first + "\n")
    with pytest.raises(
        InputError, match=rf"train.trn.txt, line 25: trial {first.split()[1]} is listed before, in line 1"
    ):
        corpus(tiny_la).setup("fit")


def test_wrong_label_column(tiny_la: Path):
    path = tiny_la / f"{CM}train.trn.txt"
    edit(path, " bonafide", " genuine")
    with pytest.raises(InputError, match="line 1, column 5: 'genuine' is no label, expected bonafide or spoof"):
        corpus(tiny_la).setup("fit")


def test_label_that_contradicts_the_attack(tiny_la: Path):
    path = tiny_la / f"{CM}train.trn.txt"
    edit(path, "A01 spoof", "A01 bonafide")
    with pytest.raises(InputError, match="attack 'A01' contradicts the label bonafide"):
        corpus(tiny_la).setup("fit")


def test_protocol_of_another_layout(tiny_la: Path):
    path = tiny_la / f"{CM}train.trn.txt"
    path.write_text("file,speaker,label\n0.wav,Speaker One,spoof\n")
    with pytest.raises(InputError, match=r"line 1: 1 columns, expected 5 \(speaker utterance - attack key\)"):
        corpus(tiny_la).setup("fit")
    path.write_text("")
    with pytest.raises(InputError, match="has no lines"):
        corpus(tiny_la).setup("fit")


def test_set_with_one_class(tiny_la: Path):
    path = tiny_la / f"{CM}eval.trl.txt"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if line.endswith("spoof")))
    with pytest.raises(InputError, match=r"eval.trl.txt has 8 trials, none of them bonafide"):
        corpus(tiny_la).setup("fit")


def test_tdcf_without_asv_scores(tiny_la: Path):
    (tiny_la / ASV).unlink()
    with pytest.raises(
        InputError, match=r"t-DCF needs ASV scores and .*eval.gi.trl.scores.txt does not exist.*asv_scores=none"
    ):
        corpus(tiny_la, asv_scores="require").setup("fit")
    data = corpus(tiny_la)
    data.setup("fit")
    assert data.context("eval") == {}
    assert "asv" in data.context("dev")


def test_asv_scores_of_another_set(tiny_la: Path):
    edit(tiny_la / ASV, "A07 spoof", "A01 spoof")
    with pytest.raises(InputError, match="does not belong to the eval protocol: attack A01 is in one of them only"):
        corpus(tiny_la).setup("fit")


@pytest.mark.parametrize(
    ("old", "new", "expected"), [(" target ", " genuine ", "column 2"), ("target ", "target nan", "column 3")]
)
def test_malformed_asv_scores(tiny_la: Path, old: str, new: str, expected: str):
    edit(tiny_la / ASV, old, new)
    with pytest.raises(InputError, match=f"line 1, {expected}"):
        corpus(tiny_la).setup("fit")


def test_corrupt_flac_in_the_middle_of_an_epoch(tiny_la: Path):
    victim = sorted((tiny_la / "LA/ASVspoof2019_LA_train/flac").iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:3000])
    for workers in (0, 2):
        data = corpus(tiny_la, num_workers=workers)
        with pytest.raises(InputError, match=rf"{victim.name}.*(cut off|damaged)"):
            drain(data)
        data = corpus(tiny_la, num_workers=workers, on_bad_audio="skip")
        data.setup("fit")
        batches = drain(data)
        names = [name for batch in batches for name in batch["id"]]
        assert len(names) == 24 and len(set(names)) == 23 and victim.stem not in names  # another one stands in for it
        assert list(data.bad_audio.skipped) == [str(victim)]
        drain(data)  # the next epoch meets it again and counts it once
        assert len(data.bad_audio.skipped) == 1


def test_too_many_bad_files_end_the_run(tiny_la: Path):
    for victim in sorted((tiny_la / "LA/ASVspoof2019_LA_train/flac").iterdir())[:7]:
        victim.write_bytes(b"")
    data = corpus(tiny_la, on_bad_audio="skip", max_bad_audio=0.1)
    data.setup("fit")
    with pytest.raises(InputError, match=r"6 of 56 audio files cannot be used and data.max_bad_audio=0.1 allows 5"):
        drain(data)


def test_missing_files_of_all_sets_are_named_at_once(tiny_la: Path):
    for split, number in (("train", 2), ("eval", 1)):
        for victim in sorted((tiny_la / f"LA/ASVspoof2019_LA_{split}/flac").iterdir())[:number]:
            victim.unlink()
    known = r"3 of 56 audio files are not there \(2 of train, 1 of eval\).*on_bad_audio=skip data.max_bad_audio=3"
    with pytest.raises(InputError, match=known):
        corpus(tiny_la).setup("fit")
    advice = r"3 of 56 .* data.max_bad_audio=0.01 allows 0.*data.max_bad_audio=3 would do"
    with pytest.raises(InputError, match=advice):
        corpus(tiny_la, on_bad_audio="skip", max_bad_audio=0.01).setup("fit")
    data = corpus(tiny_la, on_bad_audio="skip", max_bad_audio=3)
    data.setup("fit")
    assert len(data.skipped_ids) == 3 and data.bad_audio.num_files == 56


def test_an_utterance_of_another_scale_is_named_once(tiny_la: Path, caplog: pytest.LogCaptureFixture):
    data = corpus(tiny_la, eval_samples=16000, eval_batch_size=4)
    batch = next(iter(data.val_dataloader()[0]))
    batch["wave"][2, 5] = -1e30
    for _ in range(2):
        assert data.on_before_batch_transfer({**batch, "bad": []}, 0)["id"] == batch["id"]
    said = [record.message for record in caplog.records if "full scale" in record.message]
    assert len(said) == 1 and said[0].startswith(f"{batch['id'][2]} has samples up to 1e+30")


def test_whole_utterances_need_batches_of_one(tiny_la: Path):
    with pytest.raises(InputError, match="set data.eval_batch_size=1"):
        corpus(tiny_la, eval_batch_size=8)


def test_augmentation_is_for_training_only(tiny_la: Path):
    class Training:
        training, global_rank, world_size = True, 0, 1

    data = corpus(tiny_la, eval_samples=16000, eval_batch_size=4)
    data.augment = lambda wave, generators: wave * 0 + len(generators)
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    clean = batch["wave"].clone()
    data.trainer = Training()
    assert data.on_after_batch_transfer(dict(batch), 0)["wave"].eq(4).all()
    data.trainer.training = False
    assert torch.equal(data.on_after_batch_transfer(dict(batch), 0)["wave"], clean)
