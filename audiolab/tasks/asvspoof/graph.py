"""Layers on complete graphs of nodes (batch, node, dim): attention in one graph, attention across two, pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError


class GraphAttention(nn.Module):
    """Graph attention with a temperature, (batch, node, in_dim) -> (batch, node, out_dim).

    Every node attends to all nodes, itself too: a_ij = softmax_j(w . tanh(W (x_i * x_j) + b) / temperature), and
    y_i = SELU(BN(P sum_j a_ij x_j + Q x_i)). `dropout` acts on the incoming nodes. Tak et al. 2021
    (RawGAT-ST), with the temperature of Jung et al. 2022 (AASIST).

    >>> GraphAttention(8, 4, temperature=2.0, dropout=0.2).eval()(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, in_dim: int, out_dim: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.temperature = _positive(temperature)
        self.dropout = nn.Dropout(dropout)
        self.compare = nn.Linear(in_dim, out_dim)
        self.score = _score_layer(out_dim, 1)
        self.project = NodeProjection(in_dim, out_dim)

    def forward(self, nodes_bnd: Tensor) -> Tensor:
        """Run the layer."""
        nodes_bnd = self.dropout(nodes_bnd)
        score_bnn = self.score(compare_pairs(nodes_bnd, self.compare)).squeeze(-1)
        attention_bnn = torch.softmax(score_bnn / self.temperature, dim=-1)
        return self.project(nodes_bnd, attention_bnn)


class HeterogeneousGraphAttention(nn.Module):
    """Attention over the union of two graphs and a stack node that listens to both and to which nobody listens.

    Each graph has its own input projection. Pairs are scored by one of three vectors: both nodes in the first graph,
    both in the second, one in each. The stack node is s' = P' sum_j a_j x_j + Q' s with a = softmax_j(w' . tanh(W'
    (x_j * s) + b') / temperature), without norm and activation. Jung et al. 2022 (HS-GAL).

    >>> layer = HeterogeneousGraphAttention(8, 4, temperature=100.0, dropout=0.2).eval()
    >>> [tuple(nodes.shape) for nodes in layer(torch.ones(2, 5, 8), torch.ones(2, 3, 8), torch.ones(1, 1, 8))]
    [(2, 5, 4), (2, 3, 4), (2, 1, 4)]
    """

    def __init__(self, in_dim: int, out_dim: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.temperature = _positive(temperature)
        self.dropout = nn.Dropout(dropout)
        self.first, self.second = nn.Linear(in_dim, in_dim), nn.Linear(in_dim, in_dim)
        self.compare, self.compare_stack = nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim)
        self.score = _score_layer(out_dim, 3)  # first graph, second graph, across
        self.score_stack = _score_layer(out_dim, 1)
        self.project = NodeProjection(in_dim, out_dim)
        self.aggregate_stack, self.keep_stack = nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim)

    def forward(self, first_bnd: Tensor, second_bnd: Tensor, stack_b1d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nodes of the first graph, of the second, and the stack node; its batch may be 1 on the way in."""
        sizes = [first_bnd.shape[1], second_bnd.shape[1]]
        nodes_bnd = self.dropout(torch.cat([self.first(first_bnd), self.second(second_bnd)], dim=1))

        in_second_n = torch.arange(sum(sizes), device=nodes_bnd.device) >= sizes[0]
        across_nn = in_second_n[:, None] != in_second_n
        kind_nn = torch.where(across_nn, 2, in_second_n.long())
        score_bnnk = self.score(compare_pairs(nodes_bnd, self.compare))
        score_bnn = score_bnnk.gather(-1, kind_nn.expand(len(nodes_bnd), -1, -1).unsqueeze(-1)).squeeze(-1)
        attention_bnn = torch.softmax(score_bnn / self.temperature, dim=-1)

        score_b1n = self.score_stack(torch.tanh(self.compare_stack(nodes_bnd * stack_b1d))).transpose(1, 2)
        attention_b1n = torch.softmax(score_b1n / self.temperature, dim=-1)
        stack_b1d = self.aggregate_stack(attention_b1n @ nodes_bnd) + self.keep_stack(stack_b1d)

        first_bnd, second_bnd = self.project(nodes_bnd, attention_bnn).split(sizes, dim=1)
        return first_bnd, second_bnd, stack_b1d


class GraphPool(nn.Module):
    """Keep the share `ratio` of the nodes (rounded down, at least one) with the highest scores, best first.

    Each kept node is multiplied by its score, the sigmoid of a linear function of the node after dropout (Gao and Ji
    2019, Graph U-Nets).

    >>> GraphPool(4, ratio=0.5, dropout=0.3)(torch.ones(2, 5, 4)).shape
    torch.Size([2, 2, 4])
    """

    def __init__(self, dim: int, ratio: float, dropout: float) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise InputError(f"A pool ratio of {ratio} keeps no such share of the nodes; give more than 0, at most 1.")
        self.ratio = ratio
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(dim, 1)

    def forward(self, nodes_bnd: Tensor) -> Tensor:
        """Pool the nodes."""
        score_bn1 = torch.sigmoid(self.score(self.dropout(nodes_bnd)))
        kept = score_bn1.topk(max(int(nodes_bnd.shape[1] * self.ratio), 1), dim=1)
        return nodes_bnd.take_along_dim(kept.indices, dim=1) * kept.values


class NodeProjection(nn.Module):
    """SELU(BN(P (attention @ nodes) + Q nodes)): the step from attention weights to new nodes, with biases."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.aggregate, self.keep = nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim)
        self.norm = nn.BatchNorm1d(out_dim)

    def forward(self, nodes_bnd: Tensor, attention_bnn: Tensor) -> Tensor:
        """Project; the norm takes every node of the batch as one sample."""
        nodes_bnd = self.aggregate(attention_bnn @ nodes_bnd) + self.keep(nodes_bnd)
        return F.selu(self.norm(nodes_bnd.flatten(0, 1)).view_as(nodes_bnd))


def compare_pairs(nodes_bnd: Tensor, compare: nn.Linear) -> Tensor:
    """tanh(W (x_i * x_j) + b) of all pairs of nodes: (batch, node, node, out_dim), symmetric in the nodes.

    >>> pairs_bnnd = compare_pairs(torch.randn(2, 5, 8), nn.Linear(8, 4))
    >>> pairs_bnnd.shape, torch.allclose(pairs_bnnd, pairs_bnnd.transpose(1, 2), atol=1e-6)
    (torch.Size([2, 5, 5, 4]), True)
    """
    return torch.tanh(compare(nodes_bnd.unsqueeze(2) * nodes_bnd.unsqueeze(1)))


def _score_layer(dim: int, num_kinds: int) -> nn.Linear:
    """One scoring vector a kind, each drawn as a matrix (dim, 1) of Glorot and Bengio (2010) would be."""
    layer = nn.Linear(dim, num_kinds, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (dim + 1)))
    return layer


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise InputError(f"An attention temperature of {temperature} is not possible; give a positive number.")
    return temperature
