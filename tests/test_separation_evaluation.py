"""Tables of separated mixtures: what is measured, what is left out and counted, the intervals, the pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from audiolab.audio.io import read_audio
from audiolab.audio.level import PEAK_LIMIT
from audiolab.errors import UndefinedMetricError
from audiolab.metrics.interval import mean_interval
from audiolab.metrics.separation import sdr, si_sdr, snr
from audiolab.reporting.gains import gain_bars, gain_histogram
from audiolab.reporting.scores import read_scores, write_scores
from audiolab.tasks.separation.evaluation import figures_of, metrics_of, sources_of
from audiolab.tasks.separation.examples import chosen_examples, example_of
from audiolab.tasks.separation.scoring import numbers_of


@pytest.fixture(scope="module")
def speech(shared: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Three real mixtures (batch, time) and their sources (batch, speaker, time), 1.75 s each."""
    base = shared / "data/mix_mini/Libri2Mix/wav16k/min/test"
    names = sorted(path.name for path in (base / "mix_clean").glob("*.flac"))[:3]
    waves = {
        folder: torch.stack([torch.from_numpy(read_audio(base / folder / name)[0][:28000]) for name in names])
        for folder in ("mix_clean", "s1", "s2")
    }
    return waves["mix_clean"], torch.stack([waves["s1"], waves["s2"]], 1)


def leaky(sources_bst: torch.Tensor, leak: float = 0.3) -> torch.Tensor:
    """Estimates in the other order, each with some of the other talker, at any level."""
    return 7.0 * (sources_bst.flip(1) + leak * sources_bst)


def rows_of(speech: tuple[torch.Tensor, torch.Tensor], **more) -> pd.DataFrame:
    mixture_bt, sources_bst = speech
    numbers = numbers_of(leaky(sources_bst), sources_bst, mixture_bt, bss_eval=True)
    facts = {"num_speakers": 2, "speakers": "a/b", "genders": "MF", "overlap": 1.0, **more}
    return pd.DataFrame([{"id": f"m{i}", **facts, **row} for i, row in enumerate(numbers)])


def test_a_row_has_what_the_metrics_say_in_float64(speech: tuple[torch.Tensor, torch.Tensor]):
    mixture_bt, sources_bst = (signal.double() for signal in speech)
    estimate_bst = leaky(sources_bst)
    for i, row in enumerate(numbers_of(leaky(speech[1]), speech[1], speech[0], bss_eval=True)):
        assert row["permutation"] == "2-1"
        for metric, name in ((si_sdr, "si_sdr"), (snr, "snr"), (sdr, "sdr")):
            assert row[name] == pytest.approx(metric(estimate_bst[i, [1, 0]], sources_bst[i]).mean().item(), abs=1e-5)
        before = si_sdr(mixture_bt[i], sources_bst[i])
        assert row["si_sdri"] == pytest.approx(row["si_sdr"] - before.mean().item(), abs=1e-9)
        assert row["si_sdr_mixture_2"] == pytest.approx(before[1].item(), abs=1e-9)
        assert row["sdri"] == pytest.approx(row["sdr"] - sdr(mixture_bt[i], sources_bst[i]).mean().item(), abs=1e-6)
        assert row["silent_references"] == 0


def test_silent_references_are_left_out_of_every_mean_counted_and_told(
    speech: tuple[torch.Tensor, torch.Tensor], caplog: pytest.LogCaptureFixture
):
    mixture_bt, sources_bst = speech[0].clone(), speech[1].clone()
    sources_bst[1, 0] = 0.0
    sources_bst[2] = 0.0
    mixture_bt[1], mixture_bt[2] = sources_bst[1].sum(0), 0.0
    rows = numbers_of(leaky(speech[1]), sources_bst, mixture_bt, bss_eval=True)
    assert [row["silent_references"] for row in rows] == [0, 1, 2]
    assert rows[1]["si_sdr"] == rows[1]["si_sdr_2"] and math.isnan(rows[1]["si_sdr_1"])
    table = pd.DataFrame([{"id": f"m{i}", **row} for i, row in enumerate(rows)])
    with caplog.at_level("WARNING"):
        metrics = metrics_of(table)
        table.attrs["headline_only"] = True
        metrics_of(table)  # an epoch of training says nothing
    assert [record.getMessage() for record in caplog.records] == [
        "scores: 3 references of 2 of the 3 mixtures are silent, so that they have no ratio, and the means "
        "leave them out"
    ]
    assert metrics["silent_references"] == 3 and metrics["num_mixtures"] == 2
    assert metrics["si_sdri"] == pytest.approx((rows[0]["si_sdri"] + rows[1]["si_sdri"]) / 2, abs=1e-12)
    assert not [name for name, value in metrics.items() if math.isnan(value)]
    assert len(sources_of(table)) == 3
    figures_of(table, metrics)
    with pytest.raises(UndefinedMetricError, match="all references of all 1 mixtures are silent"):
        metrics_of(table[2:])


def test_estimates_that_are_no_numbers_are_no_silence(speech: tuple[torch.Tensor, torch.Tensor]):
    mixture_bt, sources_bst = speech
    estimate_bst = leaky(sources_bst)
    estimate_bst[1, 0, 100] = math.nan
    rows = numbers_of(estimate_bst, sources_bst, mixture_bt, bss_eval=False)
    table = pd.DataFrame([{"id": f"m{i}", **row} for i, row in enumerate(rows)])
    assert table["silent_references"].sum() == 0
    with pytest.raises(
        UndefinedMetricError, match="1 of 3 mixtures hold samples that are no numbers, first those of m1"
    ):
        metrics_of(table)


def test_of_more_estimates_than_talkers_those_that_fit_are_judged(speech: tuple[torch.Tensor, torch.Tensor]):
    mixture_bt, sources_bst = speech
    noise = torch.randn(3, 2, 28000, generator=torch.Generator().manual_seed(0))
    four = torch.stack([noise[:, 0], leaky(sources_bst)[:, 0], noise[:, 1], leaky(sources_bst)[:, 1]], 1)
    more, two = (numbers_of(signal, sources_bst, mixture_bt, bss_eval=False) for signal in (four, leaky(sources_bst)))
    assert [row.pop("permutation") for row in more] == ["4-2"] * 3
    assert [row.pop("permutation") for row in two] == ["2-1"] * 3
    assert more == two


def test_saved_rows_give_the_same_numbers_to_the_bit_silence_included(
    speech: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
):
    table = rows_of(speech)
    table.loc[1, ["si_sdr_1", "si_sdr_mixture_1"]] = math.nan
    table["genders"] = ["MF", "FF", "MF"]
    table.attrs = {"set": "test", "skipped": 0}
    write_scores(tmp_path / "test.csv", table)
    read = read_scores(tmp_path / "test.csv")
    assert metrics_of(read) == metrics_of(table)
    assert read["permutation"].tolist() == ["2-1"] * 3


def test_tables_are_by_what_differs_and_single_talkers_by_their_own_snr(speech: tuple[torch.Tensor, torch.Tensor]):
    table = rows_of(speech)
    alike = {name.split("/")[0] for name in metrics_of(table) if "/" in name}
    assert alike == {"snr"}
    table["genders"], table["overlap"], table["num_speakers"] = ["MF", "FF", "MF"], [0.1, 0.5, 0.9], [2, 2, 3]
    metrics = metrics_of(table)
    assert {name.split("/")[0] for name in metrics if "/" in name} == {
        "snr",
        "genders",
        "overlap_percent",
        "num_speakers",
    }
    assert metrics["genders/MF/mixtures"] == 2
    assert metrics["genders/MF/si_sdri"] == pytest.approx(table["si_sdri"][[0, 2]].mean())
    assert metrics["overlap_percent/40 to 60/si_sdri"] == pytest.approx(table["si_sdri"][1])
    cells = [(name, value) for name, value in metrics.items() if name.startswith("snr/") and name.endswith("/talkers")]
    assert sum(value for _, value in cells) == 6
    sources = sources_of(table)
    low = sources[(sources["si_sdr_mixture"] >= -2.5) & (sources["si_sdr_mixture"] < 0)]
    assert metrics["snr/-2.5 to 0/si_sdri"] == pytest.approx(low["si_sdri"].mean())
    table.attrs["headline_only"] = True
    assert not [name for name in metrics_of(table) if "/" in name]


def test_the_interval_covers_the_mean_of_other_talkers_as_often_as_it_says():
    """Talkers have difficulties of their own; taking mixtures for independent would be right in half the cases."""
    generator = np.random.default_rng(0)
    covered = {"talkers": 0, "mixtures": 0}
    for _ in range(300):
        difficulty = generator.normal(size=20)
        pairs = [generator.choice(20, 2, replace=False) for _ in range(100)]
        values = [difficulty[a] + difficulty[b] + 0.3 * generator.normal() for a, b in pairs]
        for unit, members in (
            ("talkers", [[str(a), str(b)] for a, b in pairs]),
            ("mixtures", [[str(number)] for number in range(100)]),
        ):
            low, high = mean_interval(values, members)
            covered[unit] += low < 0 < high
    assert 0.88 < covered["talkers"] / 300 < 0.98
    assert covered["mixtures"] / 300 < 0.7
    assert all(math.isnan(end) for end in mean_interval([1.0], [["a"]]))


def test_examples_are_at_one_level_and_do_not_clip(speech: tuple[torch.Tensor, torch.Tensor]):
    mixture_bt, sources_bst = (signal.numpy() for signal in speech)
    estimates = 300 * sources_bst[0] + 30 * sources_bst[0, ::-1]  # a level that means nothing
    row = numbers_of(torch.from_numpy(estimates)[None], speech[1][:1], speech[0][:1], bss_eval=False)[0]
    example = example_of("m0", mixture_bt[0], sources_bst[0], estimates, row, 16000)
    assert set(example.sounds) == {"mix", "ref1", "spk1", "ref2", "spk2"}
    assert np.allclose(example.sounds["ref1"] + example.sounds["ref2"], example.sounds["mix"], atol=1e-6)
    rms = {name: float(np.sqrt(np.mean(wave**2))) for name, wave in example.sounds.items()}
    assert 20 * math.log10(rms["mix"]) == pytest.approx(-25, abs=0.01)
    assert rms["spk1"] == pytest.approx(rms["ref1"], rel=1e-4)
    peaked = sources_bst[0].copy()
    peaked[:, 1000] = 1.0
    sounds = example_of("m0", peaked.sum(0), peaked, estimates, row, 16000).sounds
    assert max(float(np.abs(wave).max()) for wave in sounds.values()) == pytest.approx(PEAK_LIMIT)
    silent = np.zeros_like(sources_bst[0])
    assert not np.any(example_of("m0", silent[0], silent, silent, row, 16000).sounds["mix"])


def test_examples_are_the_worst_to_the_best_and_in_training_always_the_same():
    table = pd.DataFrame({"id": list("abcde"), "si_sdri": [3.0, math.nan, 1.0, 5.0, 4.0]})
    assert chosen_examples(table, 3) == {"worst": "c", "median": "e", "best": "d"}
    assert chosen_examples(table, 1) == {"median": "e"} and chosen_examples(table, 0) == {}
    assert len(chosen_examples(table, 9)) == 4
    table.attrs["headline_only"] = True
    before = chosen_examples(table, 3)
    table["si_sdri"] = table["si_sdri"].to_numpy()[::-1].copy()
    assert before == {"example_1": "a", "example_2": "d", "example_3": "e"}
    assert chosen_examples(table.assign(si_sdri=[1.0, math.nan, 9.0, 2.0, 2.0]), 3) == before


def test_what_was_made_worse_is_set_apart_in_the_histogram():
    labels = gain_histogram([-1.0, 4.0, 6.0, 7.0], 4.0, (1.0, 7.0), "SI-SDRi", "Mixtures").axes[0]
    assert [text.get_label() for text in labels.containers] == ["better: 75.0 %", "worse: 25.0 %"]


def test_an_interval_of_few_talkers_does_not_set_the_axis():
    names, values, intervals = ["below -10", "-10 to 0", "from 0"], [4.0, 6.0, 5.0], [(-9, 22), (5, 7), (4, 6)]
    [axes] = gain_bars(names, values, intervals, [2, 40, 41], "SI-SDRi", "SNR (dB)").axes
    assert axes.get_ylim()[0] > -1 and axes.get_ylim()[1] < 8 and "interval" in axes.get_ylabel()
    drawn = [segment for one in axes.collections for segment in one.get_segments() if np.size(segment)]
    assert [segment[:, 1].tolist() for segment in drawn] == [[5, 7], [4, 6]]
    [axes] = gain_bars(names[:1], values[:1], intervals[:1], [2], "SI-SDRi", "SNR (dB)").axes
    assert "interval" not in axes.get_ylabel()
