"""The graph half of AASIST: a spectral and a temporal graph, two heterogeneous branches, readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.graph import GraphAttention, GraphPool, HeterogeneousGraphAttention


class StackBranch(nn.Module):
    """Two heterogeneous attention layers around a pooling of both graphs, with a learned stack node.

    The second layer adds to what it gets. Two branches compete in `SpectroTemporalGraphs`.
    """

    def __init__(self, in_dim: int, dim: int, pool_ratio: float, temperature: float, dropouts: Sequence[float]) -> None:
        super().__init__()
        node_dropout, pool_dropout, branch_dropout = dropouts
        self.stack = nn.Parameter(torch.randn(1, 1, in_dim))
        self.opening = HeterogeneousGraphAttention(in_dim, dim, temperature, node_dropout)
        self.pool_temporal = GraphPool(dim, pool_ratio, pool_dropout)
        self.pool_spectral = GraphPool(dim, pool_ratio, pool_dropout)
        self.closing = HeterogeneousGraphAttention(dim, dim, temperature, node_dropout)
        self.dropout = nn.Dropout(branch_dropout)

    def forward(self, temporal_bnd: Tensor, spectral_bnd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the temporal nodes, the spectral nodes and the stack node."""
        temporal_bnd, spectral_bnd, stack_b1d = self.opening(temporal_bnd, spectral_bnd, self.stack)
        nodes = self.pool_temporal(temporal_bnd), self.pool_spectral(spectral_bnd), stack_b1d
        temporal_bnd, spectral_bnd, stack_b1d = (a + b for a, b in zip(nodes, self.closing(*nodes), strict=True))
        return self.dropout(temporal_bnd), self.dropout(spectral_bnd), self.dropout(stack_b1d)


class SpectroTemporalGraphs(nn.Module):
    """Spectral nodes (batch, num_bands, in_dim) and temporal nodes (batch, frames, in_dim) -> (batch, dim).

    Each graph gets graph attention and pooling; two branches of heterogeneous attention see both; the element-wise
    maximum of the branches is read out as max |.| and mean over the temporal nodes, the same over the spectral ones,
    and the stack node: dim = 5 * stack_dim. Jung et al. 2022 (max graph
    operation and readout).

    `pool_ratios` and `temperatures` are for the spectral graph, the temporal graph and the branches; `dropouts` act on
    the nodes before attention, on the nodes that the pooling scores, and on each branch's output.

    >>> graphs = SpectroTemporalGraphs(8, 5, 8, 4, (0.5, 0.7, 0.5), (2.0, 2.0, 100.0), (0.2, 0.3, 0.2))
    >>> graphs.dim, graphs(torch.ones(2, 5, 8), torch.ones(2, 9, 8)).shape
    (20, torch.Size([2, 20]))
    """

    def __init__(
        self,
        in_dim: int,
        num_bands: int,
        graph_dim: int,
        stack_dim: int,
        pool_ratios: Sequence[float],
        temperatures: Sequence[float],
        dropouts: Sequence[float],
    ) -> None:
        super().__init__()
        for name, given, places in (
            ("pool_ratios", pool_ratios, ("spectral", "temporal", "branches")),
            ("temperatures", temperatures, ("spectral", "temporal", "branches")),
            ("dropouts", dropouts, ("nodes", "pooling", "branches")),
        ):
            if len(given) != len(places):
                raise InputError(
                    f"{name}={list(given)} has {len(given)} numbers; give {len(places)}: {', '.join(places)}."
                )
        node_dropout, pool_dropout, _ = dropouts
        self.dim = 5 * stack_dim
        self.positions = nn.Parameter(torch.randn(1, num_bands, in_dim))
        self.spectral = GraphAttention(in_dim, graph_dim, temperatures[0], node_dropout)
        self.temporal = GraphAttention(in_dim, graph_dim, temperatures[1], node_dropout)
        self.pool_spectral = GraphPool(graph_dim, pool_ratios[0], pool_dropout)
        self.pool_temporal = GraphPool(graph_dim, pool_ratios[1], pool_dropout)
        self.branches = nn.ModuleList(
            StackBranch(graph_dim, stack_dim, pool_ratios[2], temperatures[2], dropouts) for _ in range(2)
        )

    def forward(self, spectral_bnd: Tensor, temporal_bnd: Tensor) -> Tensor:
        """Return the readout."""
        spectral_bnd = self.pool_spectral(self.spectral(spectral_bnd + self.positions))
        temporal_bnd = self.pool_temporal(self.temporal(temporal_bnd))
        branches = (branch(temporal_bnd, spectral_bnd) for branch in self.branches)
        temporal_bnd, spectral_bnd, stack_b1d = (torch.maximum(*pair) for pair in zip(*branches, strict=True))
        readout = [
            temporal_bnd.abs().amax(1),
            temporal_bnd.mean(1),
            spectral_bnd.abs().amax(1),
            spectral_bnd.mean(1),
            stack_b1d.squeeze(1),
        ]
        return torch.cat(readout, dim=1)
