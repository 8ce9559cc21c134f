"""AASIST: the sinc encoder's map as a spectral and a temporal graph, joined by heterogeneous attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.aasist_weights import load_official
from audiolab.tasks.asvspoof.model import SpoofModel
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.spectro_temporal import SpectroTemporalGraphs


class AASIST(SpoofModel):
    """Jung et al. 2022, "AASIST: audio anti-spoofing using integrated spectro-temporal graph attention networks".

    The largest magnitude of the sinc stream's map over time is a spectral node, over the bands a temporal node. The
    other options are those of `SpectroTemporalGraphs`, and the dropout on the embedding. `pretrained` is a file of the
    public code, `AASIST.pth` or `AASIST-L.pth`, which wants audio at its recorded level. With the published sizes
    297,866 parameters.

    >>> import torch
    >>> model = AASIST(SincStream(channels=(4, 8)), graph_dim=8, stack_dim=4)
    >>> model.embed(torch.zeros(2, 4000)).shape, model(torch.zeros(2, 4000)).shape
    (torch.Size([2, 20]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        sinc: SincStream,
        graph_dim: int = 64,
        stack_dim: int = 32,
        pool_ratios: Sequence[float] = (0.5, 0.7, 0.5),
        temperatures: Sequence[float] = (2.0, 2.0, 100.0),
        dropouts: Sequence[float] = (0.2, 0.3, 0.2),
        embedding_dropout: float = 0.5,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.sinc = sinc
        self.graphs = SpectroTemporalGraphs(
            sinc.dim, sinc.bank.num_bands, graph_dim, stack_dim, pool_ratios, temperatures, dropouts
        )
        self.dropout = nn.Dropout(embedding_dropout)
        self.classifier = nn.Linear(self.graphs.dim, 2)
        self.embedding_dim, self.min_samples = self.graphs.dim, sinc.min_samples
        if pretrained is not None:
            if sinc.blocks[0].pre_activation:
                raise InputError(
                    f"The weights of {pretrained} were trained without the opening norms of the residual blocks: set "
                    "model.sinc.pre_activation=false, or model.pretrained=null."
                )
            load_official(self, pretrained)

    def _embed(self, wave_bt: Tensor, states: Tensor | None) -> Tensor:
        magnitude_bcft = self.sinc.maps(wave_bt)
        spectral_bcf, temporal_bct = magnitude_bcft.amax(3), magnitude_bcft.amax(2)
        return self.dropout(self.graphs(spectral_bcf.transpose(1, 2), temporal_bct.transpose(1, 2)))

    def without_pretrained(self) -> dict[str, Any]:
        """Return the options that build the same model with random weights, for a checkpoint that holds them all."""
        return {"pretrained": None}

    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits (batch, 2)."""
        return self.classifier(embedding_bd)
