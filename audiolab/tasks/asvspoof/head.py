"""The classification head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPoolingHead(nn.Module):
    """Frames (batch, time, dim) -> logits (batch, 2), column 0 spoof, column 1 bona fide.

    LayerNorm, softmax attention over time, dropout, linear. `pool` and `classify` are the two halves: losses on the
    embedding (OC-Softmax, SupCon, adversarial noise) work between them.

    >>> head = AttentionPoolingHead(dim=32)
    >>> embedding_bd = head.pool(torch.ones(3, 21, 32))
    >>> embedding_bd.shape, head.classify(embedding_bd).shape
    (torch.Size([3, 32]), torch.Size([3, 2]))
    """

    def __init__(self, dim: int = 144, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, 2)

    def pool(self, x_btd: Tensor) -> Tensor:
        """Frames -> one embedding (batch, dim), after the dropout."""
        x_btd = self.norm(x_btd)
        return self.dropout((torch.softmax(self.attention(x_btd), dim=1) * x_btd).sum(1))

    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits (batch, 2)."""
        return self.classifier(embedding_bd)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Frames -> logits (batch, 2)."""
        return self.classify(self.pool(x_btd))
