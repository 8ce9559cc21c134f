"""Samplers, generators, groups, schedules, evaluation: what makes results independent of processes and restarts."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from audiolab.errors import InputError
from audiolab.reporting.scores import read_scores, write_scores
from audiolab.training.evaluation import join_rows
from audiolab.training.optim import Optimization
from audiolab.training.randomness import item_generator
from audiolab.training.sampling import EvalBatches, TrainBatches
from audiolab.training.schedules import Constant, Cosine, Schedule, cosine_factor

CONSTANT = Constant(warmup=0.0, warmup_start=1.0)


def items(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [item for batch in batches for _, item in batch]


def test_epochs_are_different_permutations_of_the_same_items():
    sampler = TrainBatches(40, 4, seed=1)
    first = items(list(sampler))
    sampler.set_epoch(1)
    second = items(list(sampler))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert {epoch for batch in sampler for epoch, _ in batch} == {1}


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_global_batch(world_size: int):
    whole = list(TrainBatches(37, 4 * world_size, seed=5))
    parts = [list(TrainBatches(37, 4, 5, rank, world_size)) for rank in range(world_size)]
    assert [len(part) for part in parts] == [len(whole)] * world_size
    for number, batch in enumerate(whole):
        dealt = [draw for part in parts for draw in part[number]]
        assert sorted(dealt) == sorted(batch)


def test_resuming_in_an_epoch_gives_the_rest_and_then_whole_epochs():
    whole = TrainBatches(40, 4, seed=1)
    whole.set_epoch(3)
    expected = list(whole)
    resumed = TrainBatches(40, 4, seed=1)
    resumed.resume_at(3, 6)
    resumed.set_epoch(3)  # as the Position callback does at the epoch's start
    assert len(resumed) == 10  # a whole epoch: Lightning counts batches against it
    assert list(resumed) == expected[6:]
    resumed.set_epoch(4)
    assert len(list(resumed)) == 10


@pytest.mark.parametrize(("num_items", "world_size"), [(13, 2), (13, 3), (2, 4), (16, 4)])
def test_evaluation_sees_every_item_exactly_once(num_items: int, world_size: int):
    seen = [item for rank in range(world_size) for item in items(list(EvalBatches(num_items, 3, rank, world_size)))]
    assert sorted(seen) == list(range(num_items))


def test_too_few_items_for_a_batch_is_said():
    with pytest.raises(InputError, match="lower data.batch_size to 2"):
        TrainBatches(5, 4, seed=0, world_size=2)


def test_item_generators_do_not_collide():
    draws = {
        item_generator(seed, epoch, item, purpose).integers(2**62)
        for seed in range(3)
        for epoch in range(5)
        for item in range(50)
        for purpose in ("read", "augment")
    }
    assert len(draws) == 3 * 5 * 50 * 2


def recipe_of(schedule: Schedule = CONSTANT, **groups: dict) -> Optimization:
    return Optimization(1e-3, 0.0, (0.9, 0.999), 1e-8, schedule, groups)


def test_the_schedule_warms_up_and_decays_to_the_floor_of_each_group():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    recipe = recipe_of(Cosine(0.1, 0.1, 1e-4), encoder={"prefix": ["encoder"], "lr": 1e-5})
    optimizer, schedule = recipe.build(model, total_steps=100)
    rates = []
    for _ in range(101):
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert rates[0]["rest"] == pytest.approx(1e-4)
    assert rates[10]["rest"] == pytest.approx(1e-3)
    assert rates[100]["rest"] == pytest.approx(1e-4)
    assert rates[10]["encoder"] == rates[100]["encoder"] == pytest.approx(1e-5)  # already below the floor: kept
    assert all(later["rest"] <= earlier["rest"] for earlier, later in itertools.pairwise(rates[10:]))
    assert cosine_factor(55, 100, 10, 0.1, 0.1) == pytest.approx(0.55)


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    recipe = recipe_of(a={"prefix": "encoder"}, b={"prefix": ["enc", "head"]})
    groups = recipe.parameter_groups(model)
    assert [len(group["params"]) for group in groups] == [2, 2]
    with pytest.raises(InputError, match="matches no trainable parameter.*encoder, head"):
        recipe_of(a={"prefix": "frozen"}).parameter_groups(model)


def test_a_group_is_found_by_prefix_or_by_pattern_and_the_first_that_fits_has_it():
    encoder = nn.ModuleDict({"q_proj": nn.ModuleDict({"base": nn.Linear(2, 2), "lora_A": nn.Linear(2, 2)})})
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2), "criterion": nn.Linear(2, 2)})
    groups = {
        "lora": {"contains": ["lora_"], "lr": 1e-4, "schedule": {"warmup": 0.5}},
        "encoder": {"prefix": ["encoder."], "lr": 1e-6, "schedule": {"floor_lr": 1e-7}},
        "loss": {"prefix": "crit", "contains": "nothing", "weight_decay": 0.0},
        "absent": {"contains": "adapter", "optional": True},
    }
    recipe = Optimization(1e-3, 0.1, (0.9, 0.999), 1e-8, Cosine(0.0, 0.1, 1e-6), groups)
    found = {group["name"]: {id(p) for p in group["params"]} for group in recipe.parameter_groups(model)}
    assert list(found) == ["lora", "encoder", "loss", "rest"]
    for name, module in {
        "lora": encoder["q_proj"]["lora_A"],
        "encoder": encoder["q_proj"]["base"],
        "loss": model["criterion"],
        "rest": model["head"],
    }.items():
        assert found[name] == {id(p) for p in module.parameters()}
    optimizer, schedule = recipe.build(model, total_steps=100)
    rates = []
    for _ in range(101):
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx({"lora": 1e-5, "encoder": 1e-6, "loss": 1e-3, "rest": 1e-3})
    assert rates[50]["lora"] == max(rate["lora"] for rate in rates) == pytest.approx(1e-4)  # its own warm-up
    assert rates[100] == pytest.approx({"lora": 1e-6, "encoder": 1e-7, "loss": 1e-6, "rest": 1e-6})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0, 0.1]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"prefx": ["a"]}, "groups.a.prefx is unknown: prefix, contains, lr"),
        ({"lr": 1e-3}, "groups.a does not say which parameters"),
        ({"prefix": ["a"], "lr": -1.0}, r"groups.a.lr=-1.0, .* do not fit"),
        ({"contains": ["nothing"]}, "groups.a matches no trainable parameter"),
    ],
)
def test_a_group_that_cannot_be_meant_is_said(group: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        recipe_of(a=group).parameter_groups(nn.Linear(2, 2))


def test_rows_are_joined_by_id_and_faults_are_named():
    rows = [{"id": name, "score": float(i)} for i, name in enumerate("cab")]
    assert join_rows([*rows, dict(rows[0])], list("abc"), "dev")["id"].tolist() == ["a", "b", "c"]
    with pytest.raises(InputError, match="scored twice"):
        join_rows([*rows, {"id": "a", "score": 9.0}], list("abc"), "dev")
    with pytest.raises(InputError, match="1 of 4 utterances have no score, the first is 'd'"):
        join_rows(rows, list("abcd"), "dev")
    with pytest.raises(InputError, match="belong to no utterance"):
        join_rows(rows, list("ab"), "dev")


def test_scores_survive_the_file_bit_for_bit(tmp_path):
    score = np.random.default_rng(0).normal(size=100)
    table = pd.DataFrame({"id": [f"{i:03d}" for i in range(100)], "attack": "-", "score": score})
    table.attrs = {"set": "dev", "asv": {"A07": {"p_fa": 0.1}}}
    write_scores(tmp_path / "dev.csv", table)
    back = read_scores(tmp_path / "dev.csv")
    assert (back["score"].to_numpy() == score).all()
    assert back["id"].tolist() == table["id"].tolist()
    assert back.attrs == table.attrs


def test_step_seeds_differ_by_rank_and_batch():
    from audiolab.training.randomness import seed_step

    def draw(*where: int) -> float:
        seed_step(0, *where)
        return torch.rand(1).item()

    values = {draw(epoch, batch, rank) for epoch in range(3) for batch in range(3) for rank in range(2)}
    assert len(values) == 18
    assert draw(1, 2, 0) == draw(1, 2, 0)
