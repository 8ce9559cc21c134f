"""Losses against the recorded references and float64 arithmetic of our own; mixup and FGM on known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audiolab import build, config
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.backend import AttentionPooling
from audiolab.tasks.asvspoof.losses import (
    AMSoftmax,
    Criterion,
    FocalLoss,
    OCSoftmax,
    SupConCrossEntropy,
    WeightedCrossEntropy,
    supervised_contrastive,
)
from audiolab.tasks.asvspoof.model import Detector
from audiolab.tasks.asvspoof.module import SpoofingDetection
from audiolab.tasks.asvspoof.texture import TextureFrontEnd
from audiolab.training.fgm import adversarial
from audiolab.training.mixup import Mixup
from audiolab.training.optim import Optimization
from audiolab.training.schedules import Constant

CONF = Path(__file__).resolve().parent.parent / "conf"
LOSSES = [name for name in config.choices("loss", [CONF]) if name.startswith("asvspoof/")]


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Inputs and gradients; values."""
    folder = shared / "reference" / "asvspoof"
    arrays = np.load(folder / "model_blocks.npz")
    tensors = {key.removeprefix("loss/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith("loss/")}
    return tensors, json.loads((folder / "model_blocks.json").read_text())["loss_values"]


def criterion_of(name: str, embedding_dim: int) -> Criterion:
    criterion = build.build(config.compose_run(["task=asvspoof", f"loss={name}"], "x")["loss"])
    torch.manual_seed(0)
    criterion.attach(embedding_dim)
    return criterion


def task_of(criterion: Criterion, **options) -> SpoofingDetection:
    torch.manual_seed(0)
    front_end = TextureFrontEnd(hidden=16, dim=8, dropout=0.0, feature_noise=0.0)
    model = Detector(front_end, AttentionPooling(dim=8), dropout=0.0)
    recipe = Optimization(1e-2, 0.0, (0.9, 0.999), 1e-8, Constant(warmup=0.0, warmup_start=1.0))
    return SpoofingDetection(model, criterion, recipe, -25.0, None, **{"score": "difference", **options})


def batch_of(size: int = 8) -> dict[str, torch.Tensor]:
    """White noise for spoof, low-pass noise for bona fide."""
    noise_bt = torch.randn(size, 4000, generator=torch.Generator().manual_seed(1)) * 0.1
    label_b = torch.arange(size) % 2
    smooth_bt = torch.nn.functional.avg_pool1d(noise_bt[:, None], 3, 1, 1)[:, 0]
    return {"wave": torch.where(label_b[:, None] == 1, smooth_bt, noise_bt), "label": label_b}


def test_values_equal_the_reference(reference):
    tensors, values = reference
    features, logits, labels = tensors["features"], tensors["logits"], tensors["labels"]

    def value(criterion: Criterion) -> float:
        return criterion(features, logits, labels).item()

    oc = OCSoftmax(0.9, 0.5, 20.0)
    oc.center = nn.Parameter(tensors["oc_center"])
    assert value(oc) == pytest.approx(values["oc_softmax"], rel=1e-5)
    torch.testing.assert_close(oc.scores(features, logits).detach(), tensors["oc_scores"], atol=1e-6, rtol=0)
    focal = value(FocalLoss(0.9, 2.5, "mean_over_elements"))
    assert focal == pytest.approx(values["focal_a09_g25_mean"], rel=1e-5)
    assert value(FocalLoss(0.9, 2.5, "mean_over_batch")) == pytest.approx(values["focal_sum"] / 12, rel=1e-5)
    assert supervised_contrastive(features, labels, 0.07).item() == pytest.approx(values["supcon_t007"], rel=1e-5)
    weighted = value(WeightedCrossEntropy(0.1, 0.9))
    assert weighted == pytest.approx(values["weighted_ce_0p1_0p9"], rel=1e-5)
    both = value(SupConCrossEntropy(0.5, 0.07, 0.1, 0.9))
    assert both == pytest.approx(weighted + 0.5 * values["supcon_t007"], rel=1e-5)


def test_gradients_equal_the_reference(reference):
    tensors, _ = reference
    features = tensors["features"].clone().requires_grad_()
    logits = tensors["logits"].clone().requires_grad_()
    oc = OCSoftmax(0.9, 0.5, 20.0)
    oc.center = nn.Parameter(tensors["oc_center"])
    oc(features, logits, tensors["labels"]).backward()
    torch.testing.assert_close(features.grad, tensors["oc_grad_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(oc.center.grad, tensors["oc_grad_center"], atol=1e-5, rtol=1e-5)
    FocalLoss(0.9, 2.5, "mean_over_elements")(features, logits, tensors["labels"]).backward()
    torch.testing.assert_close(logits.grad, tensors["focal_grad_logits"], atol=1e-6, rtol=1e-5)


def am_softmax_float64(embedding: np.ndarray, vectors: np.ndarray, label: np.ndarray, s: float, m: float) -> float:
    total = 0.0
    for x, y in zip(embedding, label, strict=True):
        cosines = [float(x @ w / np.linalg.norm(x) / np.linalg.norm(w)) for w in vectors]
        own, other = s * (cosines[y] - m), s * cosines[1 - y]
        total += -own + np.logaddexp(own, other)
    return total / len(label)


def test_am_softmax_and_its_gradient_equal_the_formula(reference):
    tensors, _ = reference
    features, labels = tensors["features"].clone().requires_grad_(), tensors["labels"]
    criterion = AMSoftmax(30.0, 0.35)
    criterion.attach(features.shape[1])
    loss = criterion(features, tensors["logits"], labels)
    loss.backward()
    x, w = features.detach().double().numpy(), criterion.class_vectors.detach().double().numpy()
    expected = am_softmax_float64(x, w, labels.numpy(), 30.0, 0.35)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for array, gradient in ((x, features.grad), (w, criterion.class_vectors.grad)):
        for where in ((0, 0), (1, 3), (-1, -1)):
            value = array[where]
            array[where] = value + 1e-6
            above = am_softmax_float64(x, w, labels.numpy(), 30.0, 0.35)
            array[where] = value - 1e-6
            below = am_softmax_float64(x, w, labels.numpy(), 30.0, 0.35)
            array[where] = value
            assert gradient[where].item() == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-5)


def test_supcon_of_lonely_anchors_and_of_one_utterance_is_zero_with_finite_gradients():
    for embedding, label in ((torch.randn(1, 4), [1]), (torch.randn(3, 4), [0, 1, 0]), (torch.zeros(3, 4), [0, 0, 1])):
        embedding.requires_grad_()
        loss = supervised_contrastive(embedding, torch.tensor(label), 0.07)
        loss.backward()
        assert torch.isfinite(embedding.grad).all() and torch.isfinite(loss)
        assert (loss == 0) == (len(label) == 1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_float32_under_autocast_and_for_half_inputs(name: str, reference):
    tensors, _ = reference
    criterion = criterion_of(name, 16)
    half = (tensors["features"].bfloat16(), tensors["logits"].bfloat16())
    expected = criterion(half[0].float(), half[1].float(), tensors["labels"])
    expected_scores = criterion.scores(half[0].float(), half[1].float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scores = criterion(*half, tensors["labels"]), criterion.scores(*half)
    assert loss.dtype == scores.dtype == torch.float32
    assert torch.equal(loss, expected) and torch.equal(scores, expected_scores)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{}, {"fgm": 0.5}], ids=["plain", "fgm"])
def test_every_loss_fits_a_batch_and_then_scores_bona_fide_higher(name: str, options: dict[str, float]):
    task, batch = task_of(criterion_of(name, 8), **options), batch_of()
    optimizer, _ = task.optimization.build(task, 60)
    first = None
    for _ in range(60):
        loss, parts = task.loss(batch)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in task.parameters() if p.requires_grad)  # or DDP would stop
        optimizer.step()
    assert loss.item() < 0.7 * first
    assert parts["accuracy"] == 1
    scores = task.eval()(batch["wave"])
    assert scores.dtype == torch.float32
    assert scores[batch["label"] == 1].min() > scores[batch["label"] == 0].max()


def test_losses_on_the_embedding_have_a_parameter_group_and_leave_the_classifier_alone():
    composed = config.compose_run(["task=asvspoof", "loss=asvspoof/oc_softmax"], "x")
    task = task_of(OCSoftmax(0.9, 0.5, 20.0))
    task.optimization = build.build(composed["optimizer"], schedule=build.build(composed["schedule"]))
    groups = {group["name"]: group for group in task.optimization.parameter_groups(task)}
    assert [p is task.criterion.center for p in groups["loss"]["params"]] == [True]
    assert groups["loss"]["weight_decay"] == 0 and groups["rest"]["weight_decay"] > 0
    frozen = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.classifier.weight", "model.classifier.bias"}
    assert next(iter(task.optimization.assign(task_of(WeightedCrossEntropy(0.1, 0.9))))).name == "rest"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss=asvspoof/supcon", "module.mixup=1.0"], "mixup=1.0 does not go with SupConCrossEntropy"),
        (["loss=asvspoof/oc_softmax", "module.score=bonafide_logit"], "does not go with OCSoftmax"),
        (["module.fgm=-1"], "give numbers from 0"),
        (["loss=asvspoof/focal", "loss.alpha=1.5"], "alpha=1.5, gamma=2.5 do not fit"),
        (["loss=asvspoof/oc_softmax", "loss.r_fake=0.95"], "r_fake below r_real"),
        (["loss=asvspoof/am_softmax", "loss.scale=0"], "give a positive scale"),
        (["loss=asvspoof/supcon", "loss.temperature=0"], "give positive numbers"),
        (["loss.spoof_weight=0"], "give positive weights"),
    ],
)
def test_values_and_pairs_that_cannot_work(overrides: list[str], expected: str):
    from audiolab import assemble

    with pytest.raises(InputError, match=expected):
        assemble.build_task(config.compose_run(["task=asvspoof", *overrides], "x"))


def test_the_seeds_score_is_the_bona_fide_logit():
    task, batch = task_of(WeightedCrossEntropy(0.1, 0.9), score="bonafide_logit").eval(), batch_of()
    with torch.no_grad():
        logits = task.model(batch["wave"] * 0 + task._at_level(batch["wave"]))
        assert torch.equal(task(batch["wave"]), logits[:, 1])
        task.score = "difference"
        assert torch.equal(task(batch["wave"]), logits[:, 1] - logits[:, 0])


def test_an_adversarial_step_has_its_length_in_every_row_and_raises_every_loss():
    task, batch = task_of(WeightedCrossEntropy(0.1, 0.9), fgm=0.5), batch_of()
    embedding = task.model.embed(task._at_level(batch["wave"]))

    def each(points: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(task.model.classify(points), batch["label"], reduction="none")

    moved = adversarial(embedding, lambda points: each(points).mean(), 0.5)
    torch.testing.assert_close((moved - embedding).norm(dim=1), torch.full((8,), 0.5))
    assert (each(moved) > each(embedding)).all()
    total, parts = task.loss(batch)
    clean = task.criterion(embedding, task.model.classify(embedding), batch["label"])
    assert parts["adversarial_loss"] > clean
    assert total.item() == pytest.approx((clean + parts["adversarial_loss"]).item(), rel=1e-6)
    with torch.no_grad():  # a forward pass for statistics only
        assert task.loss(batch)[0].item() == pytest.approx(clean.item(), rel=1e-6)


def test_an_adversarial_step_of_a_linear_loss_is_known_and_trains_the_network_behind_it():
    slope = torch.tensor([3.0, 4.0])
    embedding = torch.zeros(2, 2, requires_grad=True)
    moved = adversarial(embedding, lambda points: (points @ slope).sum(), 0.5)
    assert torch.allclose(moved, torch.tensor([0.3, 0.4]).expand(2, 2))
    (moved @ slope).sum().backward()
    assert torch.equal(embedding.grad, slope.expand(2, 2))


def test_an_adversarial_step_is_exact_under_half_precision_for_confident_rows():
    layer = nn.Linear(4, 2)
    embedding = (layer.weight[0] - layer.weight[1]).detach().repeat(3, 1) * 30 + 0.01 * torch.randn(3, 4)
    label = torch.zeros(3, dtype=torch.long)

    def loss_of(points: torch.Tensor) -> torch.Tensor:
        return WeightedCrossEntropy(1.0, 1.0)(points, layer(points), label)

    expected = adversarial(embedding, loss_of, 0.5) - embedding
    with torch.autocast("cpu", dtype=torch.float16):
        found = adversarial(embedding, loss_of, 0.5) - embedding
    assert torch.equal(found, expected)


def test_mixup_of_known_answers():
    mixup = Mixup(0.25, torch.tensor([2, 0, 1]))
    label = torch.tensor([0, 1, 1])
    assert mixup.mix(torch.tensor([[0.0], [4.0], [8.0]])).flatten().tolist() == [6.0, 1.0, 5.0]
    assert mixup.dominant(label).tolist() == [1, 0, 1]
    assert mixup.dominant(label).dtype == torch.int64
    seen = []
    value = mixup.loss(lambda target: seen.append(target.tolist()) or target[0].float(), label)
    assert seen == [[0, 1, 1], [1, 0, 1]]
    assert value.item() == 0.75


def test_mixup_draws_depend_on_the_step_alone_and_follow_beta():
    def draw() -> tuple[float, list[int]]:
        torch.manual_seed(3)
        mixup = Mixup.draw(8, 0.4)
        return mixup.share, mixup.partner_b.tolist()

    assert draw() == draw()
    shares = np.array([Mixup.draw(2, 0.4).share for _ in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / 1.8, rel=0.1)  # 1 / (4 (2 a + 1))


def test_a_mixed_loss_is_that_of_mixed_waveforms_at_the_runs_level_against_both_labels():
    task, batch = task_of(WeightedCrossEntropy(0.5, 0.5), mixup=1.0), batch_of()
    torch.manual_seed(5)
    loss, parts = task.loss(batch)
    torch.manual_seed(5)
    mixup = Mixup.draw(8, 1.0)
    partner = mixup.partner_b
    level = task._at_level(batch["wave"])
    logits = task.model(task._at_level(mixup.share * level + (1 - mixup.share) * level[partner]))
    log_p = torch.log_softmax(logits, 1)
    rows = torch.arange(8)
    nats = mixup.share * log_p[rows, batch["label"]] + (1 - mixup.share) * log_p[rows, batch["label"][partner]]
    assert loss.item() == pytest.approx(-nats.mean().item(), rel=1e-5)
    assert parts["accuracy"] == (logits.argmax(1) == mixup.dominant(batch["label"])).float().mean()
    assert not parts["accuracy"].requires_grad
