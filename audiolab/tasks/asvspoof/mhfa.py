"""Multi-head factorised attentive pooling over the layers of a self-supervised encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiolab.tasks.asvspoof.model import BackEnd


class MHFA(BackEnd):
    """Hidden states (batch, num_layers, frames, in_dim) -> embedding (batch, dim).

    Keys and values are two learned mixes of the layers, each compressed to `compressed_dim`; every head weighs the
    frames by a softmax of one linear map of the keys and averages the same values; the heads' averages together are
    mapped to the embedding. Peng et al., "An attention-based backend allowing efficient fine-tuning of transformer
    models for speaker verification", SLT 2022, section 3.

    >>> MHFA(in_dim=24, num_layers=3, num_heads=4, compressed_dim=8, dim=16)(torch.ones(2, 3, 10, 24)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self, in_dim: int, num_layers: int, num_heads: int = 32, compressed_dim: int = 128, dim: int = 256
    ) -> None:
        super().__init__()
        self.in_dim, self.num_layers, self.dim = in_dim, num_layers, dim
        self.key_logits, self.value_logits = (nn.Parameter(torch.zeros(num_layers)) for _ in range(2))
        self.compress_keys = nn.Linear(in_dim, compressed_dim)
        self.compress_values = nn.Linear(in_dim, compressed_dim)
        self.attention = nn.Linear(compressed_dim, num_heads)
        self.output = nn.Linear(num_heads * compressed_dim, dim)

    def forward(self, states_bltd: Tensor) -> Tensor:
        """Pool the states."""
        keys_btd = self.compress_keys(_mix(states_bltd, self.key_logits))
        values_btd = self.compress_values(_mix(states_bltd, self.value_logits))
        weights_bth = torch.softmax(self.attention(keys_btd), dim=1)
        return self.output((weights_bth.transpose(1, 2) @ values_btd).flatten(1))


def _mix(states_bltd: Tensor, logits_l: Tensor) -> Tensor:
    weights_l = torch.softmax(logits_l, dim=0).to(states_bltd.dtype)
    return torch.einsum("bltd,l->btd", states_bltd, weights_l)
