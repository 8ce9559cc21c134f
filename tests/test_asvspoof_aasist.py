"""AASIST: its graph layers against plain re-computations, its sizes, what it learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from torch.nn import functional as F

from audiolab import build, config
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.aasist import AASIST
from audiolab.tasks.asvspoof.aasist_backend import AASISTBackEnd
from audiolab.tasks.asvspoof.graph import GraphAttention, GraphPool, HeterogeneousGraphAttention
from audiolab.tasks.asvspoof.model import Detector
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.spectro_temporal import SpectroTemporalGraphs

SMALL = {"graph_dim": 16, "stack_dim": 8}


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recordings(la_mini: Path):
    """A quarter of a second of four bona fide and four spoofed recordings of la_mini, and their labels."""
    root = la_mini / "LA"
    lines = (root / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.train.trn.txt").read_text().splitlines()
    waves, labels = [], []
    for key, label in (("bonafide", 1), ("spoof", 0)):
        for line in [line for line in lines if line.endswith(key)][:4]:
            wave, _ = soundfile.read(root / "ASVspoof2019_LA_train" / "flac" / f"{line.split()[1]}.flac")
            waves.append(wave[6000:10000])
            labels.append(label)
    wave_bt = torch.tensor(np.stack(waves), dtype=torch.float32)
    return wave_bt / wave_bt.square().mean(1, keepdim=True).sqrt() * 0.06, torch.tensor(labels)


def small(**options) -> AASIST:
    sinc = {"num_filters": 20, "channels": [8, 8, 16], "max_masked_filters": 0, "pre_activation": False}
    return AASIST(SincStream(**(sinc | options.pop("sinc", {}))), **(SMALL | options))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def model_of(name: str, *overrides: str) -> nn.Module:
    return build.build(config.compose_run(["task=asvspoof", f"model=asvspoof/{name}", *overrides], "x")["model"])


def randomize_norms(module: nn.Module) -> nn.Module:
    """Running statistics that are not 0 and 1, so that a missing norm shows; eval mode."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return module.eval()


# --- graph layers, node by node ---------------------------------------------------------------------------------


def attention_by_hand(scores, temperature):
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def project_by_hand(project, gathered_d, node_d):
    y_d = project.aggregate.weight @ gathered_d + project.aggregate.bias + project.keep.weight @ node_d
    y_d = y_d + project.keep.bias
    norm = project.norm
    y_d = (y_d - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return torch.where(y_d > 0, 1.0507009873554805 * y_d, 1.0507009873554805 * 1.6732632423543772 * y_d.expm1())


def compare_by_hand(layer, a_d, b_d):
    return torch.tanh(layer.weight @ (a_d * b_d) + layer.bias)


@torch.no_grad()
def test_graph_attention_is_the_sum_over_neighbours():
    layer = randomize_norms(GraphAttention(6, 4, temperature=0.7, dropout=0.2)).double()
    nodes_bnd = torch.randn(2, 5, 6, dtype=torch.float64)
    y_bnd = layer(nodes_bnd)
    for nodes_nd, y_nd in zip(nodes_bnd, y_bnd, strict=True):
        for node_d, y_d in zip(nodes_nd, y_nd, strict=True):
            scores = [float(layer.score.weight[0] @ compare_by_hand(layer.compare, node_d, x)) for x in nodes_nd]
            shares = attention_by_hand(scores, 0.7)
            gathered_d = sum(share * x for share, x in zip(shares, nodes_nd, strict=True))
            assert torch.allclose(y_d, project_by_hand(layer.project, gathered_d, node_d), atol=1e-12)


@torch.no_grad()
def test_heterogeneous_attention_has_four_kinds_of_scores_and_a_stack_node():
    layer = randomize_norms(HeterogeneousGraphAttention(6, 4, temperature=0.5, dropout=0.2)).double()
    first_bnd, second_bnd, stack_b1d = (torch.randn(2, n, 6, dtype=torch.float64) for n in (3, 2, 1))
    outputs = layer(first_bnd, second_bnd, stack_b1d)
    for row in range(2):
        nodes = [(0, layer.first.weight @ x + layer.first.bias) for x in first_bnd[row]]
        nodes += [(1, layer.second.weight @ x + layer.second.bias) for x in second_bnd[row]]
        expected = []
        for kind, node_d in nodes:
            scores = []
            for other_kind, other_d in nodes:
                vector = layer.score.weight[kind if kind == other_kind else 2]
                scores.append(float(vector @ compare_by_hand(layer.compare, node_d, other_d)))
            shares = attention_by_hand(scores, 0.5)
            gathered_d = sum(share * x for share, (_, x) in zip(shares, nodes, strict=True))
            expected.append(project_by_hand(layer.project, gathered_d, node_d))
        stack_d = stack_b1d[row, 0]
        scores = [
            float(layer.score_stack.weight[0] @ compare_by_hand(layer.compare_stack, stack_d, x)) for _, x in nodes
        ]
        shares = attention_by_hand(scores, 0.5)
        gathered_d = sum(share * x for share, (_, x) in zip(shares, nodes, strict=True))
        stack_d = layer.aggregate_stack(gathered_d) + layer.keep_stack(stack_d)
        assert torch.allclose(torch.cat([outputs[0][row], outputs[1][row]]), torch.stack(expected), atol=1e-12)
        assert torch.allclose(outputs[2][row, 0], stack_d, atol=1e-12)
    # one stack node for the whole batch, as it is learned, is the same as one a row
    assert torch.allclose(layer(first_bnd, second_bnd, stack_b1d[:1])[2][0], outputs[2][0])


def test_graph_pooling_keeps_the_best_nodes_in_order_of_their_scores():
    pool = GraphPool(3, ratio=0.5, dropout=0.3).eval()
    with torch.no_grad():
        pool.score.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        pool.score.bias.zero_()
    nodes_nd = torch.tensor([[0.1, 1, 2], [2.0, 3, 4], [-1.0, 5, 6], [1.0, 7, 8], [0.5, 9, 10]])
    kept = pool(torch.stack([nodes_nd, nodes_nd.flip(0)]))
    scores = torch.sigmoid(torch.tensor([[2.0], [1.0]]))
    for row in kept:
        assert torch.allclose(row, scores * nodes_nd[[1, 3]])
    assert pool(torch.randn(1, 1, 3)).shape == (1, 1, 3)  # never fewer than one
    assert GraphPool(3, ratio=1.0, dropout=0.0)(torch.randn(1, 7, 3)).shape == (1, 7, 3)


def test_dropout_before_pooling_scores_but_does_not_touch_the_nodes():
    pool, nodes_bnd = GraphPool(3, ratio=1.0, dropout=0.5).train(), torch.ones(64, 4, 3)
    factors_bnd = pool(nodes_bnd)
    assert (factors_bnd == factors_bnd[..., :1]).all()
    assert len(factors_bnd[..., 0].unique()) > 2


@torch.no_grad()
def test_the_readout_is_the_larger_branch():
    graphs = randomize_norms(SpectroTemporalGraphs(6, 5, 6, 4, (0.4, 0.7, 0.5), (2, 2, 100), (0.2, 0.3, 0.2)))
    spectral_bnd, temporal_bnd = torch.randn(2, 5, 6), torch.randn(2, 9, 6)
    spectral = graphs.pool_spectral(graphs.spectral(spectral_bnd + graphs.positions))
    temporal = graphs.pool_temporal(graphs.temporal(temporal_bnd))
    found = []
    for branch in graphs.branches:
        t, s, stack = branch.opening(temporal, spectral, branch.stack)
        t, s = branch.pool_temporal(t), branch.pool_spectral(s)
        more_t, more_s, more_stack = branch.closing(t, s, stack)
        found.append([t + more_t, s + more_s, stack + more_stack])
    t, s, stack = (torch.stack(pair).amax(0) for pair in zip(*found, strict=True))
    assert (t.shape[1], s.shape[1]) == (3, 1)
    expected = torch.cat([t.abs().amax(1), t.mean(1), s.abs().amax(1), s.mean(1), stack[:, 0]], dim=1)
    assert torch.allclose(graphs(spectral_bnd, temporal_bnd), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pool_ratios": [0.5, 0.5]}, r"pool_ratios=\[0.5, 0.5\] has 2 numbers; give 3: spectral, temporal, branches"),
        ({"pool_ratios": [0.5, 0.0, 0.5]}, "pool ratio of 0.0"),
        ({"temperatures": [2.0, 0.0, 100.0]}, "temperature of 0.0"),
        ({"dropouts": [0.2]}, "dropouts="),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        small(**options)


# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "total"), [("aasist", 297_866), ("aasist_l", 85_306)])
def test_parameter_totals_of_the_published_sizes(name, total):
    model = model_of(name)
    assert count(model) == total
    # the five opening norms of the residual blocks are in the published total and do nothing
    unused = sum(count(block.norm1) for block in model.sinc.blocks if block.norm1 is not None)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == total - unused
    assert model.eval().embed(torch.randn(1, 16_000)).shape == (1, 160)


def test_parameter_total_of_the_back_end_outside_the_encoder():
    back_end = AASISTBackEnd(1024)
    assert count(back_end) + count(nn.Linear(back_end.dim, 2)) == 447_242
    assert (back_end.in_dim, back_end.dim) == (1024, 160)
    with torch.device("meta"):
        model = model_of("xlsr_aasist", "model.front_end.pretrained=null")
    assert count(model) - count(model.front_end.encoder) == 447_242
    assert count(model) == 315_885_962


# --- the whole model --------------------------------------------------------------------------------------------


def test_any_length_from_the_shortest_on():
    model = small().eval()
    for num_samples in (model.min_samples, model.min_samples + 1, 9001):
        logits_bc = model(torch.randn(2, num_samples))
        assert logits_bc.shape == (2, 2)
        assert logits_bc.isfinite().all()
    with pytest.raises(InputError, match=f"at least {model.min_samples} samples"):
        model(torch.randn(2, model.min_samples - 1))
    back_end = AASISTBackEnd(8, map_dim=12, channels=[4], **SMALL).eval()
    for num_frames in (1, 2, 3, 4, 50):
        assert back_end(torch.randn(2, num_frames, 8)).isfinite().all()


def ssl_like() -> Detector:
    """The back end on another front end: 16 channels of the sinc stream in the place of a self-supervised encoder."""
    front_end = SincStream(num_filters=20, channels=[8, 16], max_masked_filters=0, pre_activation=False)
    return Detector(
        front_end, AASISTBackEnd(16, map_dim=24, channels=[8, 16, 16], attention_dim=16, **SMALL), dropout=0.5
    )


@pytest.mark.parametrize("make", [small, ssl_like])
def test_gradients_reach_every_trainable_parameter_and_no_other(make, recordings):
    model, (wave_bt, label_b) = make(), recordings
    F.cross_entropy(model(wave_bt), label_b).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert ".norm1." in name
            assert parameter.grad is None, name


@pytest.mark.parametrize("make", [small, ssl_like])
def test_rows_of_a_batch_do_not_mix_in_eval(make, recordings):
    model, (wave_bt, _) = make(), recordings
    model(wave_bt)  # running statistics of real maps
    model.eval()
    together = model(wave_bt)
    for row in range(3):
        assert torch.allclose(model(wave_bt[row : row + 1])[0], together[row], atol=1e-5)
    assert torch.equal(model(wave_bt), together)
    assert torch.equal(model.classify(model.embed(wave_bt)), together)
    assert not torch.equal(model.train()(wave_bt), model(wave_bt))


@pytest.mark.parametrize("make", [small, ssl_like])
def test_one_batch_of_real_recordings_is_learnt(make, recordings):
    model, (wave_bt, label_b) = make(), recordings
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(wave_bt), label_b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.4
    assert losses[-1] < 0.05


def test_bfloat16_autocast_trains(recordings):
    model, (wave_bt, label_b) = small(), recordings
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(wave_bt), label_b)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
