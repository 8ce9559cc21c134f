"""A run's tables equal those of the official packages, fit a narrow terminal, and are drawn."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from audiolab.errors import InputError, UndefinedMetricError
from audiolab.reporting.plots import heat_map
from audiolab.reporting.tables import breakdown_tables, breakdowns
from audiolab.tasks.asvspoof.asv_scores import facts_of
from audiolab.tasks.asvspoof.evaluation import figures_of, metrics_of
from audiolab.tasks.asvspoof.module import SpoofingDetection
from audiolab.tasks.asvspoof.protocols import Trial
from audiolab.training.evaluation import Evaluation


def attack_names(codes: np.ndarray) -> np.ndarray:
    return np.array(["-" if code == 0 else f"A{code:02d}" for code in codes], dtype=object)


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    folder = shared / "reference" / "asvspoof"
    with np.load(folder / "eval_scores.npz") as file:
        arrays = {name: file[name] for name in file.files if name.startswith(("la21", "df21"))}
    return arrays, json.loads((folder / "eval_expected.json").read_text())


@pytest.fixture(scope="module")
def la21(reference) -> pd.DataFrame:
    arrays, expected = reference
    want = expected["la21_tables"]
    code = want["subset_names"].index("eval")
    here, asv = arrays["la21/subset"] == code, arrays["la21/asv_subset"] == code
    codecs = np.array(want["codec_names"], dtype=object)
    attack = attack_names(arrays["la21/attack"][here])
    score = arrays["la21/score"][here].astype(np.float64)
    table = pd.DataFrame({"id": [f"LA_E_{n:07d}" for n in range(score.size)], "attack": attack, "score": score})
    table["speaker"] = [f"LA_{n % 48:04d}" for n in range(score.size)]
    table["label"] = np.where(attack == "-", "bonafide", "spoof")
    table["codec"] = codecs[arrays["la21/codec"][here]]
    scores = pd.DataFrame({"score": arrays["la21/asv_score"][asv].astype(np.float64)})
    scores["key"] = np.array(["target", "nontarget", "spoof"], dtype=object)[arrays["la21/asv_key"][asv]]
    scores["attack"] = attack_names(arrays["la21/asv_attack"][asv])
    scores["codec"] = codecs[arrays["la21/asv_codec"][asv]]
    trials = [Trial(name, "-", name, "spoof") for name in sorted(set(attack) - {"-"})]
    facts = facts_of(scores, trials, Path("score.txt"), "eval")
    table.attrs = {**json.loads(json.dumps(facts)), "set": "eval", "codecs": want["codec_names"]}
    return table


@pytest.fixture(scope="module")
def metrics(la21: pd.DataFrame) -> dict[str, float]:
    return metrics_of(la21)


def printed(metrics: dict[str, float], width: int) -> str:
    terminal = Console(width=width, file=io.StringIO())
    for table in breakdown_tables("eval", metrics, SpoofingDetection.headline, width):
        terminal.print(table)
    return terminal.file.getvalue()


def test_2021_la_tables_of_a_run_equal_the_official_ones(reference, metrics: dict[str, float]):
    want = reference[1]["la21_tables"]
    found = breakdowns(metrics)
    for group, name, scale in (("eer", "EER", 100), ("min_tdcf_2021", "min_tDCF", 1)):
        table = found[f"{group}_by_attack_and_codec"]
        assert (list(table.index), list(table.columns)) == (want["rows"], want["cols"])
        np.testing.assert_allclose(table, scale * np.array(want["eval"][name], dtype=float), rtol=0, atol=1e-10)
    assert metrics["min_tdcf_2021"] == pytest.approx(float(want["eval"]["min_tDCF"][-1][-1]), abs=1e-12)
    assert list(found["codec"].index) == want["cols"][:-1]
    np.testing.assert_allclose(found["codec"]["eer"], 100 * np.array(want["eval"]["EER"][-1][:-1], dtype=float))


def test_2021_df_table_of_a_run_equals_the_official_one(reference):
    arrays, expected = reference
    want = expected["df21_tables"]
    here = arrays["df21/subset"] == want["subset_names"].index("eval")
    vocoder = np.array(want["vocoder_names"], dtype=object)[arrays["df21/vocoder"][here]]
    genuine = vocoder == "bonafide"
    table = pd.DataFrame({"score": arrays["df21/score"][here].astype(np.float64), "vocoder": vocoder, "speaker": "-"})
    table["codec"] = np.array(want["compression_names"], dtype=object)[arrays["df21/compression"][here]]
    table["label"], table["attack"] = np.where(genuine, "bonafide", "spoof"), np.where(genuine, "-", "A07")
    table.attrs = {"codecs": want["compression_names"]}
    metrics = metrics_of(table)
    found = breakdowns(metrics)["eer_by_vocoder_and_codec"].loc[want["rows"]]
    assert list(found.columns) == want["cols"]
    np.testing.assert_allclose(found, 100 * np.array(want["eval"]["EER"], dtype=float), rtol=0, atol=1e-10)
    shown = printed(metrics, 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("neural_vocoder_nonautoregressive") == 1 + 3  # ten columns do not fit beside so long a name


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_no_number_is_broken(metrics: dict[str, float], width: int):
    shown = printed(metrics, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    low, high = (metrics[f"attack/A07/eer_{end}"] for end in ("low", "high"))
    assert f"{metrics['attack/A07/eer']:.2f} [{low:.2f}, {high:.2f}]" in shown
    row = next(line for line in shown.split("by attack and codec")[1].splitlines() if line.split()[:1] == ["A19"])
    assert [float(cell) for cell in row.split()[1:]] == pytest.approx(
        [metrics[f"eer_by_attack_and_codec/A19/{codec}"] for codec in row_codecs(shown)], abs=0.005
    )


def row_codecs(shown: str) -> list[str]:
    heading = next(
        line for line in shown.split("by attack and codec")[1].splitlines() if line.split()[:1] == ["attack"]
    )
    return heading.split()[1:]


def test_codec_tables_are_left_out_where_there_is_one_codec_or_none(la21: pd.DataFrame):
    one = la21[la21["codec"] == "alaw"].copy()
    one.attrs = {}
    without = one.drop(columns="codec")
    assert metrics_of(one) == metrics_of(without)
    assert not [name for name in metrics_of(one) if "codec" in name]


def test_an_epoch_of_training_is_judged_without_breakdowns(la21: pd.DataFrame, metrics: dict[str, float]):
    table = la21.copy()
    table.attrs = {**la21.attrs, "headline_only": True}
    assert metrics_of(table) == {name: value for name, value in metrics.items() if "/" not in name}


def test_figures_of_the_tables(la21: pd.DataFrame, metrics: dict[str, float]):
    figures = figures_of(la21, metrics)
    axes = figures["eer_by_attack_and_codec"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*(f"A{n:02d}" for n in range(7, 20)), "Pooled"]
    assert axes.texts[0].get_text() == f"{metrics['eer_by_attack_and_codec/A07/none']:.1f}"
    assert len(axes.texts) == 14 * 8
    assert "min_tdcf_2021_by_attack_and_codec" in figures
    with pytest.raises(InputError, match=r"shape \(2,\): pass \(1, 2\)"):
        heat_map([1.0, 2.0], ["A07"], ["none", "alaw"], "EER (%)")


def test_numbers_on_a_heat_map_stand_out_from_their_cell():
    figure = heat_map(np.linspace(0, 1, 12).reshape(3, 4), list("abc"), list("wxyz"), "EER (%)")
    image = figure.axes[0].images[0]
    for text, value in zip(figure.axes[0].texts, np.linspace(0, 1, 12), strict=True):
        luminance = float(np.dot(image.cmap(image.norm(value))[:3], (0.2126, 0.7152, 0.0722)))
        assert (text.get_color() == "black") == (luminance > 0.5) or 0.4 < luminance < 0.6


class Stub:
    """A task whose estimates are all the same, as those of a network that has collapsed."""

    headline = SpoofingDetection.headline
    only_after_training = SpoofingDetection.only_after_training

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def metrics(self, table: pd.DataFrame) -> dict[str, float]:
        return metrics_of(table)

    def log(self, name: str, value: float, **more: object) -> None:
        self.logged[name] = value


def test_equal_scores_do_not_end_a_training_and_are_refused_anywhere_else(la21, tmp_path, caplog):
    table = la21.assign(score=0.5)
    table.attrs = {}
    with pytest.raises(UndefinedMetricError, match="fewer than 3 distinct values"):
        metrics_of(table)
    evaluation, task = Evaluation(tmp_path), Stub()
    with caplog.at_level(logging.WARNING):
        evaluation._judge_epoch(task, "dev", table)
    assert np.isnan(task.logged["dev/eer"])
    assert "dev is not measured in this epoch" in caplog.text
    table = la21.assign(score=np.nan)
    table.attrs = {}
    with pytest.raises(InputError, match="nan or inf"):  # a diverged network does end it
        evaluation._judge_epoch(task, "dev", table)
