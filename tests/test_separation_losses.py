"""Losses of separation against recorded numbers, their edge cases, and the orders that they find."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from audiolab.audio.io import read_audio
from audiolab.errors import InputError
from audiolab.metrics.separation import best_permutation, pit, si_sdr, snr
from audiolab.tasks.separation.losses import Criterion, SASDRLoss, SISDRLoss, SNRLoss
from audiolab.tasks.separation.mixit import MixITLoss

SI_SDR = SISDRLoss(soft_cap_db=80.0, zero_mean=True, silent_references="leave_out")
UNCAPPED = SISDRLoss(soft_cap_db=150.0, zero_mean=True, silent_references="leave_out")
LOSSES = {
    "si_sdr": SI_SDR,
    "si_sdr_no_mean": SISDRLoss(soft_cap_db=30.0, zero_mean=False, silent_references="suppress"),
    "snr": SNRLoss(soft_cap_db=30.0, silent_references="suppress"),
    "snr_leave_out": SNRLoss(soft_cap_db=80.0, silent_references="leave_out"),
    "sa_sdr": SASDRLoss(soft_cap_db=30.0),
    "mixit": MixITLoss(soft_cap_db=30.0, silent_references="suppress"),
}


@pytest.fixture(scope="module")
def reference(shared: Path):
    folder = shared / "reference/separation"
    return load_file(folder / "metrics_signals.safetensors"), json.loads((folder / "metrics_expected.json").read_text())


@pytest.fixture(scope="module")
def edge(shared: Path):
    signals = load_file(shared / "reference/separation/edge_signals.safetensors")
    names = {key.rpartition(".")[0] for key in signals}
    return {name: (signals[f"{name}.est"][None], signals[f"{name}.ref"][None]) for name in sorted(names)}


@pytest.fixture(scope="module")
def speech(shared: Path) -> Tensor:
    """Two talkers of mix_mini, (1, 2, time)."""
    files = sorted((shared / "data/mix_mini").rglob("*.flac"))[:2]
    waves = [torch.as_tensor(read_audio(file)[0]) for file in files]
    return torch.stack([wave[: min(map(len, waves))] for wave in waves])[None]


def per_item(criterion: Criterion, estimate: Tensor, sources: Tensor) -> Tensor:
    """The loss of each utterance by itself."""
    return torch.stack([criterion(*pair)[0] for pair in zip(estimate.split(1), sources.split(1), strict=True)])


def gradient(criterion: Criterion, estimate: Tensor, sources: Tensor) -> Tensor:
    leaf = estimate.clone().requires_grad_()
    criterion(leaf, sources)[0].backward()
    return leaf.grad


@pytest.mark.parametrize("num_speakers", [2, 3, 4, 5])
def test_values_and_gradients_equal_the_libraries(reference, num_speakers: int):
    signals, expected = reference
    estimate, sources = (signals[f"c{num_speakers}.{key}"].double() for key in ("est", "ref"))
    facts = expected[f"c{num_speakers}"]
    wanted = [-item["pit_si_sdr_zero_mean"]["mean_db"] for item in facts["per_item"]]
    np.testing.assert_allclose(per_item(UNCAPPED, estimate, sources), wanted, atol=1e-6)
    np.testing.assert_allclose(per_item(SI_SDR, estimate, sources), wanted, atol=1e-4)
    np.testing.assert_allclose(per_item(SI_SDR, estimate.float(), sources.float()), wanted, atol=2e-3)
    assert SI_SDR(estimate, sources)[0].item() == pytest.approx(
        facts["asteroid"]["pit_neg_si_sdr_loss_float32"], abs=2e-3
    )
    by_snr = per_item(SNRLoss(soft_cap_db=150.0, silent_references="leave_out"), estimate, sources)
    np.testing.assert_allclose(by_snr, [-item["pit_snr"]["mean_db"] for item in facts["per_item"]], atol=1e-6)
    for dtype in (torch.float64, torch.float32):
        found, known = (
            gradient(SI_SDR, estimate.to(dtype), sources.to(dtype)).double(),
            facts["grad_pit_neg_si_sdr_wrt_est"],
        )
        assert found.norm().item() == pytest.approx(known["l2"], rel=1e-4)
        first = known["first8_of_item0_est0"]
        np.testing.assert_allclose(found[0, 0, :8], first, rtol=1e-4, atol=1e-4 * np.abs(first).max())
        assert abs((found * estimate).sum().item()) < 1e-6 * found.norm() * estimate.norm()


@pytest.mark.parametrize("num_speakers", [2, 3, 4, 5])
def test_energies_of_all_talkers_in_one_ratio(reference, num_speakers: int):
    signals, expected = reference
    estimate, sources = (signals[f"c{num_speakers}.{key}"].double() for key in ("est", "ref"))
    _, order = pit(estimate, sources, metric=snr)
    ordered = estimate.gather(1, order[..., None].expand_as(estimate))
    known = expected[f"c{num_speakers}"]["torchmetrics"]["sa_sdr_plain_float64"]
    found = -per_item(SASDRLoss(soft_cap_db=150.0), estimate, sources)
    orders = itertools.permutations(range(num_speakers))  # the one with the least distortion may not be that of `pit`
    least = torch.stack([(estimate[:, order] - sources).square().sum((1, 2)) for order in orders]).min(0).values
    torch.testing.assert_close(found, 10 * (sources.square().sum((1, 2)) / least).log10(), atol=1e-6, rtol=0)
    in_order = 10 * (sources.square().sum((1, 2)) / (ordered - sources).square().sum((1, 2))).log10()
    np.testing.assert_allclose(in_order, known, atol=1e-5)
    assert (found >= in_order - 1e-9).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name: str):
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2, 2, 40, generator=generator, dtype=torch.float64) + 0.3
    sources[1, 0] = 0  # silent
    estimate = sources.flip(1) + 0.5 * torch.randn(2, 2, 40, generator=generator, dtype=torch.float64)
    criterion = LOSSES[name]
    assert torch.autograd.gradcheck(lambda e: criterion(e, sources)[0], estimate.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_every_edge_case_has_a_finite_value_and_gradient(edge, name: str):
    for case, (estimate, sources) in edge.items():
        for scale in (1.0, 0.0):
            found = gradient(LOSSES[name], scale * estimate, sources)
            assert LOSSES[name](scale * estimate, sources)[0].isfinite(), case
            assert found.isfinite().all(), case
        assert gradient(LOSSES[name], estimate, 0 * sources).isfinite().all(), case


def test_si_sdr_of_edge_cases(edge):
    for name in (
        "plain_15db",
        "permuted",
        "scaled_x0p1",
        "scaled_x1000",
        "sign_flipped",
        "dc_offset_both",
        "quiet_x1e-4",
    ):
        assert SI_SDR(*edge[name])[0].item() == pytest.approx(-15, abs=1e-3), name
    assert SI_SDR(*edge["high_60db"])[0].item() == pytest.approx(-60, abs=0.1)
    assert SI_SDR(*edge["high_90db"])[0].item() < -70
    assert UNCAPPED(*(signal.double() for signal in edge["high_90db"]))[0].item() == pytest.approx(-90, abs=0.01)
    assert SI_SDR(*edge["perfect"])[0].item() == pytest.approx(-80, abs=0.1)
    assert SI_SDR(*edge["orthogonal_estimate"])[0].item() == pytest.approx(80, abs=0.1)
    assert SI_SDR(0 * edge["plain_15db"][0], edge["plain_15db"][1])[0].item() == pytest.approx(80, abs=0.1)


def test_a_silent_reference_is_left_out_or_its_silence_is_learned(edge):
    estimate, sources = edge["silent_reference_1"]  # the first talker at 15 dB
    loss, parts = SI_SDR(estimate.flip(1), sources)
    assert loss.item() == pytest.approx(-15, abs=1e-3)
    assert parts["silent_references"].item() == 0.5
    found = gradient(SI_SDR, estimate, sources)
    assert found[0, 0].abs().max() > 0
    assert (found[0, 1] == 0).all()
    quieter = torch.stack([estimate[:, 0], 0.1 * estimate[:, 1]], 1)
    for criterion in (LOSSES["si_sdr_no_mean"], LOSSES["snr"]):
        excess = 10 * (estimate[0, 1].square().sum() / sources.square().sum()).log10().item()
        first = 2 * criterion(estimate, sources)[0].item() - excess
        assert first == pytest.approx(-15, abs=0.3)  # capped at 30 dB
        assert 2 * (criterion(estimate, sources)[0] - criterion(quieter, sources)[0]).item() > 15
        assert gradient(criterion, estimate, sources)[0, 1].mul(estimate[0, 1]).sum() > 0  # downwards
        assert criterion(estimate, 0 * sources)[0].item() == 0
    constant = sources.clone()
    constant[0, 1] = 0.3  # a mean is no sound
    assert SI_SDR(estimate, constant)[1]["silent_references"].item() == 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_the_level_of_the_signals_does_not_matter(speech: Tensor, name: str):
    generator = torch.Generator().manual_seed(1)
    estimate = speech.flip(1) + 0.03 * torch.randn(speech.shape, generator=generator)
    value, slope = LOSSES[name](estimate, speech)[0], gradient(LOSSES[name], estimate, speech)
    for gain in (1e-4, 1e-8, 1e4):
        signals = gain * estimate, gain * speech
        assert LOSSES[name](*signals)[0].item() == pytest.approx(value.item(), abs=1e-4)
        found = gain * gradient(LOSSES[name], *signals)
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-4 * slope.abs().max().item())


def test_float32_is_exact_where_inner_products_are_not(speech: Tensor):
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(2))
    noise -= (noise * speech).sum(-1, keepdim=True) / speech.square().sum(-1, keepdim=True) * speech
    noise *= speech.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    for level_db in (40, 60, 70):
        estimate = speech + 10 ** (-level_db / 20) * noise
        expected = SI_SDR(estimate.double(), speech.double())[0].item()
        assert expected == pytest.approx(-level_db, abs=0.5)
        assert SI_SDR(estimate, speech)[0].item() == pytest.approx(expected, abs=0.01)
    half = SI_SDR((speech + 0.1 * noise).half(), speech.half())[0]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(-20, abs=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SI_SDR(speech + 1e-3 * noise, speech)[0].item() == pytest.approx(-60, abs=0.1)


@pytest.mark.parametrize("num_speakers", [2, 3, 5, 6, 7])
def test_the_order_found_is_the_best_of_all(num_speakers: int):
    generator = torch.Generator().manual_seed(num_speakers)
    sources = torch.randn(3, num_speakers, 200, generator=generator)
    shuffled = torch.stack([source[torch.randperm(num_speakers, generator=generator)] for source in sources])
    estimate = shuffled + 2 * torch.randn(sources.shape, generator=generator)
    best, _ = pit(estimate, sources)
    torch.testing.assert_close(per_item(SI_SDR, estimate, sources), -best, atol=1e-3, rtol=0)


def test_assignments_are_the_recorded_ones(shared: Path):
    for case in json.loads((shared / "reference/separation/assignment_cases.json").read_text())["cases"]:
        found = best_permutation(-torch.tensor(case["cost"], dtype=torch.float64).T[None])[0]
        assert found.tolist() == case["perm"]


def test_the_soft_cap_ends_what_a_better_estimate_earns():
    sources = torch.randn(1, 2, 400, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 2, 400, generator=torch.Generator().manual_seed(1))
    for criterion in (SISDRLoss(30.0, False, "leave_out"), SNRLoss(30.0, "leave_out"), SASDRLoss(30.0)):
        values = [criterion(sources + gain * noise, sources)[0].item() for gain in (1e-1, 1e-3, 0)]
        assert values == pytest.approx([-20, -30, -30], abs=0.8)
        assert values[2] == pytest.approx(-30, abs=1e-4)


def test_mixit_deals_the_estimates_to_the_mixtures():
    generator = torch.Generator().manual_seed(3)
    sources = torch.randn(4, 2, 300, generator=generator)
    criterion = LOSSES["mixit"]
    mixture, targets = criterion.problem(sources.sum(1), None)
    torch.testing.assert_close(mixture, targets.sum(1))
    estimate = sources.reshape(2, 4, 300)[:, [2, 0, 3, 1]]
    assert criterion(estimate, targets)[0].item() == pytest.approx(-30, abs=1e-3)
    noisy = estimate + 0.3 * torch.randn(estimate.shape, generator=generator)
    tried = []
    for ways in itertools.product((0, 1), repeat=4):
        deal = torch.tensor([[float(way == mixture) for way in ways] for mixture in (0, 1)])
        error = targets - deal @ noisy
        share = error.square().sum(-1) / targets.square().sum(-1)
        tried.append((10 * (share + 1e-3).log10()).mean(-1))
    torch.testing.assert_close(per_item(criterion, noisy, targets), torch.stack(tried).min(0).values, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="batch of 3 mixtures cannot be summed in pairs"):
        criterion.problem(torch.zeros(3, 8), None)
    with pytest.raises(InputError, match="13 estimates cannot be dealt to 2 mixtures"):
        criterion(torch.zeros(1, 13, 8), torch.zeros(1, 2, 8))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mixit"])
def test_estimates_that_do_not_fit_the_sources_are_refused(name: str):
    with pytest.raises(InputError, match=r"separates 3 speakers, the mixtures have 2: give model.num_speakers=2"):
        LOSSES[name](torch.zeros(1, 3, 8), torch.zeros(1, 2, 8))
    with pytest.raises(InputError, match=r"\(1, 2, 7\) cannot be compared with sources of shape \(1, 2, 8\)"):
        LOSSES[name](torch.zeros(1, 2, 7), torch.zeros(1, 2, 8))


def test_a_second_derivative_is_refused():
    estimate = torch.randn(1, 2, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        torch.autograd.grad(SI_SDR(estimate, estimate.detach().flip(1) ** 2)[0], [estimate], create_graph=True)


def test_an_estimate_that_is_not_a_number_gives_a_loss_that_is_none():
    for num_speakers in (2, 7):
        estimate = torch.ones(1, num_speakers, 8)
        estimate[0, 0, 0] = torch.nan
        assert SI_SDR(estimate, torch.randn(1, num_speakers, 8, generator=torch.Generator()))[0].isnan()


def test_a_model_output_learns_from_the_loss(speech: Tensor):
    mask = torch.zeros(1, 2, speech.shape[-1], requires_grad=True)
    mixture = speech.sum(1, keepdim=True)
    optimizer = torch.optim.Adam([mask], lr=0.3)
    start = si_sdr(mixture.expand_as(speech), speech).mean().item()
    for _ in range(25):
        optimizer.zero_grad()
        noise = 1e-3 * torch.tensor([1.0, -1.0])[None, :, None]  # the two estimates begin alike
        loss, _ = SI_SDR((mask.sigmoid() + noise) * mixture, speech)
        loss.backward()
        optimizer.step()
    assert -loss.item() > start + 5
