"""Losses on the two logits (batch, 2): column 0 spoof, column 1 bona fide; labels 0 and 1 likewise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in nats with a weight a class, divided by the weights of the batch (torch's weighted mean).

    Bona fide speech is the minority in every public corpus (about 1 in 10 in ASVspoof 2019 LA), hence 0.1 / 0.9.
    """

    def __init__(self, spoof_weight: float, bonafide_weight: float, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([spoof_weight, bonafide_weight]), persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return F.cross_entropy(logits_bc.float(), label_b, weight=self.weight, label_smoothing=self.label_smoothing)
