"""Muon: what it does to a matrix, which weights get it, and that the rest is AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from audiolab.errors import InputError
from audiolab.training.muon import MuonOptimization, orthogonalized
from audiolab.training.schedules import Constant, Cosine

CONSTANT = Constant(warmup=0.0, warmup_start=1.0)


def recipe(**options: object) -> MuonOptimization:
    given = {"lr": 1e-2, "matrix_lr": 0.1, "momentum": 0.9, "elementwise": [], "weight_decay": 0.1}
    return MuonOptimization(**{**given, "betas": (0.9, 0.98), "eps": 1e-8, "schedule": CONSTANT, **options})


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.conv, self.depthwise = nn.Conv1d(8, 4, 3), nn.Conv1d(4, 4, 3, groups=4)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.conv(self.first(x).mT))
        return self.last(self.norm(x.mT))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    generator, losses = torch.Generator().manual_seed(0), []
    wave = torch.randn(4, 12, 6, generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(wave) - wave[:, 4:, :5]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_all_directions_of_a_matrix_become_about_as_long_and_stay_where_they_are(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    ours = torch.diagonal(left.mT @ orthogonalized(1e-6 * matrix) @ right.mT)[values > 0.05 * values.max()]
    assert ours.min() > 0.6 and ours.max() < 1.3
    assert orthogonalized(torch.zeros(shape)).abs().max() == 0


def test_matrices_are_those_of_linear_and_dense_convolution_layers_but_for_the_named_ones() -> None:
    model = Model()
    optimizer, _ = recipe(elementwise=["last."], groups={"head": {"prefix": "first", "lr": 1e-3}}).build(model, 10)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["head", "head_matrices", "rest", "rest_matrices"]
    assert [w is model.conv.weight for w in groups["rest_matrices"]["params"]] == [True]
    assert [w is model.first.weight for w in groups["head_matrices"]["params"]] == [True]
    assert groups["head_matrices"]["lr"] == pytest.approx(1e-2)  # a tenth of the others' rate in both
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_what_is_no_matrix_is_trained_as_adamw_does() -> None:
    ours, theirs = Model(), Model()
    optimizer, _ = recipe(elementwise=["weight"]).build(ours, 10)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8)
    train(ours, optimizer, 20)
    train(theirs, reference, 20)
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_it_learns_and_goes_on_from_its_state_to_the_bit() -> None:
    model = Model()
    optimizer, _ = recipe().build(model, 10)
    losses = train(model, optimizer, 40)
    assert losses[-1] < 0.5 * losses[0]
    again = copy.deepcopy(model)
    resumed, _ = recipe().build(again, 10)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 5) == train(again, resumed, 5)


def test_both_rates_follow_the_schedule() -> None:
    optimizer, schedule = recipe(schedule=Cosine(0.1, 0.1, 0.0)).build(Model(), 100)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx([1e-3, 1e-2]) and rates[10] == pytest.approx([1e-2, 0.1])
    assert max(rates[99]) < 1e-3


@pytest.mark.parametrize("options", [{"matrix_lr": 0.0}, {"momentum": 1.0}])
def test_rates_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match=f"optimizer.{next(iter(options))}"):
        recipe(**options)
