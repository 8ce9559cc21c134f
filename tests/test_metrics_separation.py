"""Separation metrics against recorded numbers of four libraries, and their edge cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiolab.errors import InputError
from audiolab.metrics.separation import best_permutation, pit, sdr, si_sdr, si_sdr_improvement, snr

SPEAKERS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def reference(shared: Path):
    folder = shared / "reference/separation"
    signals = load_file(folder / "metrics_signals.safetensors")
    expected = json.loads((folder / "metrics_expected.json").read_text())
    return {
        num: ({key: signals[f"c{num}.{key}"].double() for key in ("est", "ref", "mix")}, expected[f"c{num}"])
        for num in SPEAKERS
    }


@pytest.fixture(scope="module")
def edge(shared: Path):
    folder = shared / "reference/separation"
    signals = load_file(folder / "edge_signals.safetensors")
    expected = json.loads((folder / "edge_expected.json").read_text())
    return {
        name: (signals[f"{name}.est"], signals[f"{name}.ref"], expected[name]) for name in expected if name != "_meta"
    }


@pytest.mark.parametrize("num_speakers", SPEAKERS)
def test_pairwise_values_equal_the_libraries(reference, num_speakers: int):
    signals, expected = reference[num_speakers]
    for item, facts in enumerate(expected["per_item"]):
        estimate, target = signals["est"][item, :, None], signals["ref"][item, None]
        for key, found in (
            ("si_sdr_matrix_est_by_ref_zero_mean", si_sdr(estimate, target)),
            ("si_sdr_matrix_est_by_ref_no_mean_removal", si_sdr(estimate, target, zero_mean=False)),
            ("snr_matrix_est_by_ref", snr(estimate, target)),
        ):
            np.testing.assert_allclose(found, facts[key], atol=1e-6)
        single = si_sdr(estimate.float(), target.float())
        np.testing.assert_allclose(single, facts["si_sdr_matrix_est_by_ref_zero_mean"], atol=2e-3)


@pytest.mark.parametrize("num_speakers", SPEAKERS)
def test_order_improvement_and_bss_eval_equal_the_libraries(reference, num_speakers: int):
    signals, expected = reference[num_speakers]
    best, permutation = pit(signals["est"], signals["ref"])
    by_sdr, sdr_permutation = pit(signals["est"], signals["ref"], metric=sdr)
    for item, facts in enumerate(expected["per_item"]):
        assert permutation[item].tolist() == facts["pit_si_sdr_zero_mean"]["perm"] == facts["hungarian_perm_zero_mean"]
        assert best[item].item() == pytest.approx(facts["pit_si_sdr_zero_mean"]["mean_db"], abs=1e-6)
        estimate, target = signals["est"][item, permutation[item]], signals["ref"][item]
        improvement = si_sdr_improvement(estimate[None], target[None], signals["mix"][item][None])
        assert improvement.mean().item() == pytest.approx(facts["si_sdri_zero_mean_mean_db"], abs=1e-6)
        bss = facts["mir_eval_bss_eval_sources"]
        assert sdr_permutation[item].tolist() == bss["perm"]
        np.testing.assert_allclose(sdr(estimate, target), bss["sdr"], atol=1e-6)
        assert by_sdr[item].item() == pytest.approx(np.mean(bss["sdr"]), abs=1e-6)
        mixture = sdr(signals["mix"][item], target)
        np.testing.assert_allclose(mixture, facts["mir_eval_mixture_sdr_fixed_perm"], atol=1e-6)


def test_si_sdr_of_every_edge_case(edge):
    for name, (estimate, target, facts) in edge.items():
        wanted = facts["formula_float64"]["si_sdr_zero_mean"]
        for value, expected, silent in zip(
            si_sdr(estimate.double(), target.double()).tolist(), wanted, target.abs().sum(-1) == 0, strict=True
        ):
            if silent:
                assert math.isnan(value), name
            elif expected == "inf":
                assert value > 300, name
            elif expected == "nan":  # silent estimate
                assert value < -300, name
            else:
                assert value == pytest.approx(expected, abs=1e-6 if expected < 120 else 0.01), name
    for name in ("plain_15db", "scaled_x0p1", "scaled_x1000", "sign_flipped", "dc_offset_both", "quiet_x1e-4"):
        estimate, target, _ = edge[name]
        assert si_sdr(estimate, target).tolist() == pytest.approx([15, 15], abs=1e-3), name
    assert si_sdr(*edge["high_60db"][:2]).tolist() == pytest.approx([60, 60], abs=0.1)
    assert min(si_sdr(*edge["high_90db"][:2]).tolist()) > 70


def test_bss_eval_of_every_edge_case_that_has_a_value(edge):
    for name in ("plain_15db", "scaled_x1000", "dc_offset_both", "high_60db", "quiet_x1e-4", "mixture_as_estimate"):
        estimate, target, facts = edge[name]
        assert sdr(estimate, target).tolist() == pytest.approx(
            facts["fast_bss_eval_float64"]["sdr_filter512"], abs=1e-6
        )
    estimate, target, _ = edge["silent_reference_1"]
    assert sdr(estimate, target)[0].item() == pytest.approx(15.869787, abs=1e-5)
    assert sdr(estimate, target)[1].isnan()


def test_a_silent_reference_counts_for_nothing_and_the_mixture_improves_nothing(edge):
    estimate, target, _ = edge["silent_reference_1"]
    best, permutation = pit(estimate[None].flip(1), target[None])
    assert best.item() == pytest.approx(15, abs=1e-3)
    assert permutation.tolist() == [[1, 0]]
    assert pit(estimate[None], torch.zeros_like(target)[None])[0].isnan()
    target = edge["plain_15db"][1]
    mixture = target.sum(0)
    assert si_sdr_improvement(mixture.expand(1, 2, -1), target[None], mixture[None]).tolist() == [[0, 0]]


def test_gradients_are_finite_for_every_edge_case(edge):
    for name, (estimate, target, _) in edge.items():
        for metric in (si_sdr, snr):
            leaf = estimate.clone().requires_grad_()
            value = metric(leaf, target)
            value[target.abs().sum(-1) > 0].sum().backward()
            assert leaf.grad.isfinite().all(), (name, metric.__name__)


def test_assignments_are_optimal_from_two_to_ten_speakers(shared: Path):
    cases = json.loads((shared / "reference/separation/assignment_cases.json").read_text())["cases"]
    assert len(cases) == 21
    for case in cases:
        cost = torch.tensor(case["cost"], dtype=torch.float64)
        found = best_permutation(-cost[None])[0]
        total = cost[found, torch.arange(len(cost))].mean().item()
        assert total == pytest.approx(case["mean_cost"], abs=1e-9)


def test_signals_that_do_not_fit():
    with pytest.raises(InputError, match="as many samples"):
        si_sdr(torch.zeros(2, 10), torch.zeros(2, 11))
    with pytest.raises(InputError, match=r"\(batch, speaker, time\) and alike"):
        pit(torch.zeros(1, 3, 10), torch.zeros(1, 2, 10))
