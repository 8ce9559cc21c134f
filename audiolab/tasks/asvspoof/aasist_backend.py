"""AASIST as a back end on the frames of a self-supervised encoder (Tak et al. 2022, SSL_Anti-spoofing)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.model import BackEnd
from audiolab.tasks.asvspoof.sinc import SincBlock
from audiolab.tasks.asvspoof.spectro_temporal import SpectroTemporalGraphs

_POOL = 3  # the map is max-pooled 3 x 3 before the encoder, which then keeps its size


class AASISTBackEnd(BackEnd):
    """Frames (batch, frames, in_dim) -> embedding (batch, dim).

    A projection to `map_dim`, taken as a picture of map_dim x frames, is max-pooled 3 x 3, normalised and run through
    the residual encoder of AASIST without its pooling. Attention maps of two 1 x 1 convolutions, softmax over the time
    or over the bands, sum it to the spectral and the temporal nodes of `SpectroTemporalGraphs`, whose options the
    others are. With the published sizes and a classifier to two logits 447,242 parameters.

    >>> back_end = AASISTBackEnd(in_dim=16, map_dim=12, channels=(4, 8), graph_dim=8, stack_dim=4)
    >>> back_end.dim, back_end(torch.ones(2, 10, 16)).shape
    (20, torch.Size([2, 20]))
    """

    def __init__(
        self,
        in_dim: int,
        map_dim: int = 128,
        channels: Sequence[int] = (32, 32, 64, 64, 64, 64),
        attention_dim: int = 128,
        pre_activation: bool = False,
        graph_dim: int = 64,
        stack_dim: int = 32,
        pool_ratios: Sequence[float] = (0.5, 0.5, 0.5),
        temperatures: Sequence[float] = (2.0, 2.0, 100.0),
        dropouts: Sequence[float] = (0.2, 0.3, 0.2),
    ) -> None:
        super().__init__()
        if map_dim < _POOL:
            raise InputError(f"map_dim={map_dim} leaves no band after pooling by {_POOL}; give {_POOL} or more.")
        self.in_dim = in_dim
        self.project = nn.Linear(in_dim, map_dim)
        self.norm = nn.Sequential(nn.BatchNorm2d(1), nn.SELU(inplace=True))
        widths = itertools.pairwise([1, *channels])
        self.blocks = nn.Sequential(
            *(SincBlock(*pair, i == 0, pre_activation, pool=1) for i, pair in enumerate(widths))
        )
        self.norm_out = nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.SELU(inplace=True))
        self.attention = nn.Sequential(
            nn.Conv2d(channels[-1], attention_dim, 1),
            nn.SELU(inplace=True),
            nn.BatchNorm2d(attention_dim),
            nn.Conv2d(attention_dim, channels[-1], 1),
        )
        self.graphs = SpectroTemporalGraphs(
            channels[-1], map_dim // _POOL, graph_dim, stack_dim, pool_ratios, temperatures, dropouts
        )
        self.dim = self.graphs.dim

    def forward(self, frames_btd: Tensor) -> Tensor:
        """Return the embedding."""
        x_bcft = self.project(frames_btd).transpose(1, 2).unsqueeze(1)
        # fewer frames than one pool are one
        x_bcft = F.pad(x_bcft, (0, max(_POOL - x_bcft.shape[3], 0)), value=-torch.inf)
        x_bcft = self.norm(F.max_pool2d(x_bcft, _POOL))
        # channels last, as in the sinc stream
        x_bcft = self.norm_out(self.blocks(x_bcft.contiguous(memory_format=torch.channels_last)))
        weight_bcft = self.attention(x_bcft)
        spectral_bcf = (x_bcft * torch.softmax(weight_bcft, dim=3)).sum(3)
        temporal_bct = (x_bcft * torch.softmax(weight_bcft, dim=2)).sum(2)
        return self.graphs(spectral_bcf.transpose(1, 2), temporal_bct.transpose(1, 2))
