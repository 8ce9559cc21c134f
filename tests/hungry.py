"""A small detector that runs out of memory on purpose: the allocator's own error, not a pretended one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiolab.tasks.asvspoof.model import SpoofModel


def allocate_too_much() -> None:
    """Ask for a petabyte."""
    torch.empty(2**50)


class _HungryBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        allocate_too_much()
        return gradient


class Hungry(SpoofModel):
    """A linear layer over frames of 200 samples; memory suffices for `fits` utterances in training, `fits_eval` else.

    It runs out at the training passes numbered in `passes` only (None: all), in process `rank` only (None: all), in
    the `where` (forward or backward) pass.
    """

    embedding_dim, min_samples = 6, 200

    def __init__(
        self,
        fits: int,
        fits_eval: int,
        passes: Sequence[int] | None,
        rank: int | None,
        where: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layer, self.classifier = nn.Linear(200, 6), nn.Linear(6, 2)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("num_seen", torch.zeros(()))
        self.fits, self.fits_eval, self.passes, self.rank, self.where = fits, fits_eval, passes, rank, where
        self.pass_number = -1
        self.sizes: list[int] = []

    def _embed(self, wave_bt: Tensor, states: Tensor | None) -> Tensor:
        self.sizes.append(len(wave_bt))
        if self.training:
            self.pass_number += 1
            self.num_seen += len(wave_bt)
        frames_bnt = wave_bt[:, : wave_bt.shape[1] // 200 * 200].reshape(len(wave_bt), -1, 200)
        embedding_bd = self.dropout(torch.tanh(self.layer(10 * frames_bnt)).square().mean(1))
        if self._runs_out(len(wave_bt)):
            if self.where == "backward" and self.training:
                return _HungryBackward.apply(embedding_bd)
            allocate_too_much()
        return embedding_bd

    def _runs_out(self, num: int) -> bool:
        if self.rank is not None and int(os.environ.get("RANK", 0)) != self.rank:
            return False
        if not self.training:
            return num > self.fits_eval
        return num > self.fits and (self.passes is None or self.pass_number in self.passes)

    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits."""
        return self.classifier(embedding_bd)
