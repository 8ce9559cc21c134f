"""Corpora in their published layouts: read, tested on with a trained run, pooled, and under test conditions."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest_corpus import (
    make_tiny_asvspoof5,
    make_tiny_csv,
    make_tiny_df2021,
    make_tiny_in_the_wild,
    make_tiny_la,
    make_tiny_la2021,
)

from audiolab import assemble, run, test
from audiolab import config as conf
from audiolab.errors import InputError
from audiolab.metrics.spoofing import PUBLISHED_ASV_RATES, asv_table, compute_eer
from audiolab.reporting.scores import read_scores
from audiolab.tasks.asvspoof.asv_scores import rates_of, read_2021_asv_scores
from audiolab.tasks.asvspoof.data import SpoofingData
from audiolab.tasks.asvspoof.evaluation import metrics_of
from audiolab.tasks.asvspoof.module import SpoofingDetection

SMALL = ["data.batch_size=4", "data.crop_samples=8000", "data.eval_samples=8000", "data.num_workers=0"]


def data_of(*overrides: str) -> SpoofingData:
    """Build the DataModule that a command line gives."""
    config = conf.compose_run(["task=asvspoof", *overrides, *SMALL], "x")
    assemble.check(config)
    return assemble.build_data(config)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> dict[str, Path]:
    """A tiny corpus of real recordings in each layout; read only."""
    base = tmp_path_factory.mktemp("corpora")
    return {
        "la2019": make_tiny_la(la_mini, base / "la2019"),
        "la2021": make_tiny_la2021(la_mini, base / "la2021"),
        "df2021": make_tiny_df2021(la_mini, base / "df2021", merged=True),
        "parts": make_tiny_df2021(la_mini, base / "parts", merged=False),
        "asvspoof5": make_tiny_asvspoof5(la_mini, base / "asvspoof5"),
        "in_the_wild": make_tiny_in_the_wild(la_mini, base / "in_the_wild"),
        "csv": make_tiny_csv(la_mini, base / "csv"),
    }


@pytest.fixture(scope="module")
def finished(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the tiny 2019 LA."""
    out = tmp_path_factory.mktemp("out")
    small = ["model=asvspoof/sinc_small", "trainer=cpu", "trainer.max_epochs=1", "data.published_size=false"]
    where = ["data=asvspoof/la2019", f"data.root={roots['la2019']}", f"outputs={out}", "name=done"]
    assert run.main(["task=asvspoof", *small, *where, *SMALL]) == 0
    return out / "asvspoof" / "done"


def evaluated(finished: Path, out: Path, *overrides: str, sets: list[str] | None = None) -> dict[str, dict[str, float]]:
    quiet = ["data.num_workers=0", "trainer=cpu"]
    return test.test(str(finished), [*overrides, *quiet], sets=sets, out=str(out))


@pytest.mark.parametrize(
    ("layout", "trials", "bonafide", "expected"),
    [
        ("la2021", 16, 8, {"codec/none/eer", "codec/alaw/eer", "eer_by_attack_and_codec/A07/alaw", "min_tdcf_2021"}),
        (
            "df2021",
            24,
            12,
            {"vocoder/traditional_vocoder/eer", "source/vcc2020/eer", "eer_by_vocoder_and_codec/Pooled/low_mp3"},
        ),
        ("asvspoof5", 16, 8, {"codec/C00/eer", "codec/C05/eer", "attack/A08/eer"}),
        ("in_the_wild", 16, 8, set()),
        ("csv", 16, 8, {"codec/x/eer", "attack/A07/eer"}),
    ],
)
def test_a_trained_run_is_tested_on_every_corpus(
    finished: Path, roots: dict[str, Path], tmp_path: Path, layout: str, trials: int, bonafide: int, expected: set[str]
):
    results = evaluated(finished, tmp_path, f"data=asvspoof/{layout}", f"data.root={roots[layout]}")["eval"]
    assert (results["num_bonafide"], results["num_bonafide"] + results["num_spoof"]) == (bonafide, trials)
    assert expected <= set(results)
    if not expected:
        assert not [name for name in results if "/" in name]  # the corpus does not tell its attacks
    assert ("min_tdcf_2019" in results) == (layout == "la2021")
    saved = read_scores(tmp_path / "scores" / "eval.csv")
    assert metrics_of(saved) == results
    assert (tmp_path / "scores" / "eval.2col.txt").exists() == (layout != "csv")  # its file names have spaces
    for group in {name.partition("/")[0] for name in expected if "/" in name}:
        with (tmp_path / "tables" / f"eval_{group}.csv").open() as file:
            rows = {row[group]: row for row in csv.DictReader(file)}
        for name in (name for name in expected if name.startswith(f"{group}/")):
            _, member, metric = name.split("/")
            assert float(rows[member][metric]) == results[name]
        if "_by_" in group:
            assert (tmp_path / "plots" / f"eval_{group}.png").read_bytes().startswith(b"\x89PNG")


def test_every_corpus_is_tested_on_as_one_command(
    finished: Path, roots: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    where = ["data=asvspoof/la2021", f"data.root={roots['la2021']}", "data.num_workers=0", "trainer=cpu"]
    test.main([str(finished), *where, "-o", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "eval EER (%) by attack and codec" in shown
    assert "eval min t-DCF 2021 by attack and codec" in shown
    reported = json.loads((tmp_path / "metrics.json").read_text())["eval"]
    assert f"\nEER {reported['eer']:.2f} %\n" in shown
    assert f"{reported['eer_by_attack_and_codec/A08/Pooled']:.2f}" in shown


def test_the_parts_of_the_df_archive_may_be_merged_or_not(roots: dict[str, Path]):
    merged = data_of("data=asvspoof/df2021", f"data.root={roots['df2021']}").utterances("eval")
    parts = data_of("data=asvspoof/df2021", f"data.root={roots['parts']}").utterances("eval")
    assert merged.trials == parts.trials
    for index in range(len(merged)):
        assert np.array_equal(merged[(0, index)]["wave"], parts[(0, index)]["wave"])
    assert {path.parent.parent.parent.name[-6:] for path in map(parts.path, range(len(parts)))} == {"part00", "part01"}


def test_subsets_of_2021(roots: dict[str, Path]):
    root = f"data.root={roots['la2021']}"
    whole = {subset: data_of("data=asvspoof/la2021", root, f"data.subset={subset}") for subset in ("eval", "progress")}
    assert {subset: len(data.utterances("eval")) for subset, data in whole.items()} == {"eval": 16, "progress": 4}
    assert whole["progress"].context("eval")["asv"] != whole["eval"].context("eval")["asv"]
    with pytest.raises(InputError, match="data.subset=dev does not fit ASVspoof 2021 LA: give eval, progress, hidden"):
        data_of("data=asvspoof/la2021", root, "data.subset=dev")
    with pytest.raises(InputError, match="data.subset=eval does not fit ASVspoof 2019 LA: give null"):
        data_of("data=asvspoof/la2019", f"data.root={roots['la2019']}", "data.subset=eval")


def test_2021_asv_rates_are_of_attack_codec_and_subset(roots: dict[str, Path]):
    facts = data_of("data=asvspoof/la2021", f"data.root={roots['la2021']}").context("eval")
    asv = roots["la2021"] / "keys/LA/ASV"
    scores = read_2021_asv_scores(asv / "trial_metadata.txt", asv / "ASVtorch_kaldi/score.txt")
    scores = scores[scores["subset"] == "eval"]
    assert rates_of(facts) == asv_table(scores["score"], scores["key"], scores["attack"], scores["codec"])
    assert facts["asv_by_codec"]["alaw"]["A07"] != facts["asv_by_codec"]["none"]["A07"]


def test_published_asv_rates_are_taken_by_name_only_and_said(roots: dict[str, Path], caplog: pytest.LogCaptureFixture):
    where = ["data=asvspoof/asvspoof5", f"data.root={roots['asvspoof5']}"]
    assert "asv" not in data_of(*where).context("eval")
    with pytest.raises(InputError, match="t-DCF needs ASV scores and ASVspoof 5 has none.*data.asv_scores=none"):
        data_of(*where, "data.asv_scores=require").setup("test")
    with caplog.at_level(logging.WARNING):
        facts = data_of(*where, "data.asv_scores=asvspoof5").context("eval")
    assert rates_of(facts)["Pooled", "Pooled"].p_fa_spoof == PUBLISHED_ASV_RATES["asvspoof5"].p_fa_spoof
    assert "published rates of asvspoof5, not with ASV scores of this set" in caplog.text


@pytest.mark.parametrize("layout", ["asvspoof5", "csv"])
def test_corpora_with_a_training_set_are_trained_on(roots: dict[str, Path], layout: str):
    data = data_of(f"data=asvspoof/{layout}", f"data.root={roots[layout]}")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["wave"].shape == (4, 8000)
    labels = {trial.id: int(trial.label == "bonafide") for trial in data.utterances("train").trials}
    assert batch["label"].tolist() == [labels[name] for name in batch["id"]]
    assert (data.val_sets, data.test_sets) == (["dev"], ["eval"])


@pytest.mark.parametrize("layout", ["la2021", "df2021", "in_the_wild"])
def test_corpora_without_a_training_set_say_what_to_do(roots: dict[str, Path], tmp_path: Path, layout: str):
    argv = [f"data=asvspoof/{layout}", f"data.root={roots[layout]}", f"outputs={tmp_path}"]
    with pytest.raises(InputError, match=r"has no training set: train on another corpus .* audiolab.test <run>"):
        run.main(["task=asvspoof", *argv])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choice", "there", "expected"),
    [
        (
            "la2019",
            "in_the_wild",
            "it has no ASVspoof2019_LA_cm_protocols/; .*like In-the-Wild: .*in_the_wild",
        ),
        ("la2021", "la2019", "it has no keys/LA/CM/trial_metadata.txt .*choose data=asvspoof/la2019"),
        ("df2021", "la2021", "it has no keys/DF/CM/.*choose data=asvspoof/la2021"),
        ("asvspoof5", "df2021", "it has no ASVspoof5.train.tsv.*choose data=asvspoof/df2021"),
        (
            "in_the_wild",
            "asvspoof5",
            "it has no meta.csv; give the folder release_in_.*choose data=asvspoof/asvspoof5",
        ),
        ("csv", "la2019", "it has no trial list, it is a folder; give the CSV file.*choose data=asvspoof/la2019"),
        ("la2019", "csv", ".*looks like CSV: choose data=asvspoof/csv"),
    ],
)
def test_the_root_of_another_corpus_is_recognised(roots: dict[str, Path], choice: str, there: str, expected: str):
    with pytest.raises(InputError, match=f"data.root=.* is not in the .* layout: {expected}"):
        data_of(f"data=asvspoof/{choice}", f"data.root={roots[there]}").setup("test")


def test_the_size_is_compared_with_the_published_one(roots: dict[str, Path], caplog: pytest.LogCaptureFixture):
    where = ["data=asvspoof/la2019", f"data.root={roots['la2019']}"]
    data_of(*where).setup("fit")
    said = [record.getMessage() for record in caplog.records if "where ASVspoof 2019 LA has" in record.getMessage()]
    assert len(said) == 3
    assert "train of" in said[0] and "has 24 trials (12 bona fide) where ASVspoof 2019 LA has 25,380 (2,580)" in said[0]
    caplog.clear()
    data_of(*where, "data.published_size=false").setup("fit")
    data_of("data=asvspoof/la_mini", f"data.root={roots['la2019']}").setup("fit")
    assert "where ASVspoof" not in caplog.text


def pooled(roots: dict[str, Path], **layouts: str) -> list[str]:
    sections = [f"{name}:{{layout:{layout},root:{roots[layout]}}}" for name, layout in layouts.items()]
    return ["data=asvspoof/pooled", f"data.corpora={{{','.join(sections)}}}", "data.published_size=false"]


def test_pooled_corpora_are_concatenated_and_nothing_collides(roots: dict[str, Path]):
    data = data_of(*pooled(roots, a="la2019", b="la2019", itw="in_the_wild"))
    data.setup("fit")
    assert {name: len(data.utterances(name)) for name in ("train", "dev", "pooled")} == {
        "train": 48,
        "dev": 32,
        "pooled": 48,
    }
    ids = data.ids("train")
    assert len(set(ids)) == 48 and {name.partition(":")[0] for name in ids} == {"a", "b"}
    trials = data.utterances("pooled").trials
    assert {"a:A07", "b:A07", "itw:unknown", "-"} <= {trial.attack for trial in trials}
    assert "itw:Speaker 0" in {trial.speaker for trial in trials}
    assert (data.val_sets, data.test_sets) == (["dev"], ["pooled"])


def test_pooled_evaluation_has_one_threshold_and_each_corpus_by_itself(
    finished: Path, roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = evaluated(finished, tmp_path / "pooled", *pooled(roots, la21="la2021", itw="in_the_wild"))
    assert list(results) == ["pooled", "la21", "itw"]
    alone = evaluated(finished, tmp_path / "alone", "data=asvspoof/la2021", f"data.root={roots['la2021']}")["eval"]
    assert results["la21"] == alone  # t-DCF, codec tables and all
    assert (tmp_path / "pooled/scores/la21.2col.txt").read_bytes() == (
        tmp_path / "alone/scores/eval.2col.txt"
    ).read_bytes()
    table = read_scores(tmp_path / "pooled/scores/pooled.csv")
    genuine, score = (table["label"] == "bonafide").to_numpy(), table["score"].to_numpy()
    eer, threshold = compute_eer(score[genuine], score[~genuine])
    assert results["pooled"]["eer"] == 100 * eer
    for name in ("la21", "itw"):
        here = (table["corpus"] == name).to_numpy()
        own = results["pooled"]
        assert own[f"corpus/{name}/eer"] == results[name]["eer"]
        assert own[f"corpus/{name}/pooled_miss_percent"] == 100 * np.mean(score[here & genuine] <= threshold)
        assert own[f"corpus/{name}/pooled_false_alarm_percent"] == 100 * np.mean(score[here & ~genuine] > threshold)
    assert "min_tdcf_2021" not in results["pooled"]  # there is no ASV system of both
    assert "pooled by corpus" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("corpora", "expected"),
    [
        ("{}", "data.corpora is empty: give at least one"),
        ("{a:{layout:la2109,root:/x}}", "data.corpora.a.layout=la2109 is unknown: did you mean la2019"),
        ("{a:{layot:la2019,root:/x}}", "data.corpora.a.layot is not an option of open_corpus: did you mean .*a.layout"),
        ("{a:{layout:la2019}}", "data.corpora.a.root is missing"),
        ("{a:{layout:la2019,root:/x}}", "data.corpora.a.root=/x is not in the ASVspoof 2019 LA layout"),
        ("{a:{layout:la2021,root:/x,subset:dev}}", "data.corpora.a.subset=dev does not fit"),
        ("{a:la2019}", "data.corpora.a='la2019' does not fit: give {layout"),
        ("[la2019]", "data.corpora=.* does not fit"),
    ],
)
def test_wrong_corpora(corpora: str, expected: str):
    with pytest.raises(InputError, match=expected):
        data_of("data=asvspoof/pooled", f"data.corpora={corpora}").setup("test")


def test_one_corpus_and_several_are_not_mixed(roots: dict[str, Path]):
    with pytest.raises(InputError, match="data.corpora is for data=asvspoof/pooled"):
        data_of("data=asvspoof/la2019", "data.root=/x", "data.corpora={a:{layout:la2019,root:/x}}")
    with pytest.raises(InputError, match="with data=asvspoof/pooled use data.corpora"):
        data_of(*pooled(roots, a="la2019"), "data.root=/x")


def test_conditions_are_a_further_test_set(finished: Path, roots: dict[str, Path], tmp_path: Path):
    results = evaluated(finished, tmp_path / "c", "data.conditions=[noise_10db,none,g711_alaw]", sets=["conditions"])
    assert list(results) == ["conditions"]
    plain = evaluated(finished, tmp_path / "plain")["eval"]
    metrics = results["conditions"]
    assert metrics["num_bonafide"] == 3 * plain["num_bonafide"]
    assert metrics["condition/none/eer"] == plain["eer"]
    assert metrics["eer_by_attack_and_condition/A07/none"] == plain["attack/A07/eer"]
    assert "min_tdcf_2019" not in metrics  # the ASV scores are of clean speech
    table = pd.read_csv(tmp_path / "c/tables/conditions_eer_by_attack_and_condition.csv", index_col=0)
    assert list(table.columns) == ["noise_10db", "none", "g711_alaw", "Pooled"]  # in the order given
    scores = read_scores(tmp_path / "c/scores/conditions.csv").set_index("id")["score"]
    clean = read_scores(tmp_path / "plain/scores/eval.csv").set_index("id")["score"]
    for name, score in clean.items():
        assert scores[f"{name}@none"] == pytest.approx(score, abs=1e-6)
        assert scores[f"{name}@noise_10db"] != pytest.approx(score, abs=1e-6)


def test_conditions_touch_nothing_else_and_do_not_depend_on_workers_or_one_another(roots: dict[str, Path]):
    where = ["data=asvspoof/la2019", f"data.root={roots['la2019']}", "data.published_size=false"]
    plain, with_conditions = data_of(*where), data_of(*where, "data.conditions=[none,noise_20db,g711_alaw]")
    for data in (plain, with_conditions):
        data.setup("fit")
    assert (plain.test_sets, with_conditions.test_sets) == (["eval"], ["eval", "conditions"])
    for name in ("train", "dev", "eval"):
        one, two = plain.utterances(name), with_conditions.utterances(name)
        assert one.ids == two.ids
        assert all(np.array_equal(one[(1, i)]["wave"], two[(1, i)]["wave"]) for i in range(len(one)))
    waves = []
    for conditions, workers in (("none,noise_20db,g711_alaw", 0), ("noise_20db", 0), ("g711_alaw,noise_20db", 2)):
        data = data_of(*where, f"data.conditions=[{conditions}]", f"++data.num_workers={workers}")
        data.num_workers = workers
        data.choose_test_sets(["conditions"])
        data.setup("test")
        found = {}
        for batch in data.test_dataloader()[0]:
            found |= dict(zip(batch["id"], batch["wave"].numpy(), strict=True))
        waves.append({name: wave for name, wave in found.items() if name.endswith("@noise_20db")})
    assert len(waves[0]) == 16
    for name, wave in waves[0].items():
        assert np.array_equal(wave, waves[1][name]) and np.array_equal(wave, waves[2][name])
    first = list(waves[0].values())
    assert not np.array_equal(first[0], first[1])


def test_wrong_conditions(finished: Path, roots: dict[str, Path]):
    where = ["data=asvspoof/la2019", f"data.root={roots['la2019']}"]
    with pytest.raises(InputError, match="data.conditions: .*noise_21db.*did you mean"):
        data_of(*where, "data.conditions=[noise_21db]")
    with pytest.raises(InputError, match="data.conditions names none twice"):
        data_of(*where, "data.conditions=[none,none]")
    with pytest.raises(InputError, match=r"--set conditions is unknown: .* has train, dev, eval; .*data.conditions=\["):
        test.test(str(finished), sets=["conditions"])


def test_a_missing_file_is_left_out_of_the_conditions_too(la_mini: Path, tmp_path: Path):
    root = make_tiny_la(la_mini, tmp_path / "la")
    victim = sorted((root / "LA/ASVspoof2019_LA_eval/flac").iterdir())[0]
    victim.unlink()
    shutil.rmtree(root / "LA/ASVspoof2019_LA_asv_scores")
    where = ["data=asvspoof/la2019", f"data.root={root}", "data.on_bad_audio=skip", "data.max_bad_audio=0.5"]
    data = data_of(*where, "data.conditions=[none,g711_alaw]")
    data.setup("test")
    assert data.skipped_ids == {victim.stem, f"{victim.stem}@none", f"{victim.stem}@g711_alaw"}
    assert data.bad_audio.skipped == {str(victim): "does not exist"}


def test_a_dev_set_that_cannot_be_measured_yet_does_not_end_the_training(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = SpoofingDetection.rows

    def equal_at_first(task: SpoofingDetection, batch: dict[str, Any]) -> list[dict[str, Any]]:
        too_early = task.trainer.state.fn == "fit" and task.current_epoch == 0
        return [{**row, "score": 0.0} if too_early else row for row in rows(task, batch)]

    monkeypatch.setattr(SpoofingDetection, "rows", equal_at_first)
    where = ["data=asvspoof/la_mini", f"data.root={roots['la2019']}", f"outputs={tmp_path}", "name=x", "logger=[csv]"]
    small = ["model=asvspoof/sinc_small", "trainer=cpu", "trainer.max_epochs=2", "data.eval_batch_size=8"]
    assert run.main(["task=asvspoof", *small, *where, *SMALL]) == 0
    assert "dev EER nan %" in capsys.readouterr().out
    best = torch.load(tmp_path / "asvspoof/x/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == 1
