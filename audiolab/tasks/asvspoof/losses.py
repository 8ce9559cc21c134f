"""Losses of a batch: embedding (batch, dim) and logits (batch, 2), column 0 spoof, column 1 bona fide; labels 0 and 1.

What is trained decides what may be scored, so a loss also says which score its model gives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError


class Criterion(nn.Module, ABC):
    """A loss, and the score of the models it trains; both in float32, also where the model runs in half precision.

    `uses_logits` is False where the loss judges the embedding itself and leaves the model's classifier untrained,
    `pairwise` True where it compares the utterances of a batch. A score above `boundary` counts as bona fide in the
    training accuracy. `SpoofingDetection` calls `attach` once, before the first use.
    """

    uses_logits: ClassVar[bool] = True
    pairwise: ClassVar[bool] = False
    boundary: float = 0.0

    @abstractmethod
    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor: ...

    def _scores(self, embedding_bd: Tensor, logits_bc: Tensor) -> Tensor:
        return logits_bc[:, 1] - logits_bc[:, 0]

    def attach(self, embedding_dim: int) -> None:
        """Make the parameters of a loss that has its own, for embeddings of this size."""

    def total_weight(self, label_b: Tensor) -> float | Tensor:
        """Return what the loss of these utterances is divided by."""
        return len(label_b)

    def forward(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        """Return the loss of a batch in nats, a scalar."""
        with torch.autocast(embedding_bd.device.type, enabled=False):
            return self._loss(embedding_bd.float(), logits_bc.float(), label_b)

    def scores(self, embedding_bd: Tensor, logits_bc: Tensor) -> Tensor:
        """Return scores (batch,), higher = more bona fide; by default the difference of the logits."""
        with torch.autocast(embedding_bd.device.type, enabled=False):
            return self._scores(embedding_bd.float(), logits_bc.float())


class WeightedCrossEntropy(Criterion):
    """Cross-entropy with a weight a class, divided by the weights of the batch (torch's weighted mean).

    Bona fide speech is the minority in every public corpus (about 1 in 10 in ASVspoof 2019 LA), hence 0.1 / 0.9.

    >>> loss = WeightedCrossEntropy(spoof_weight=0.1, bonafide_weight=0.9)
    >>> round(float(loss(torch.zeros(2, 4), torch.zeros(2, 2), torch.tensor([0, 1]))), 4)
    0.6931
    """

    def __init__(self, spoof_weight: float, bonafide_weight: float, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if min(spoof_weight, bonafide_weight) <= 0 or not 0 <= label_smoothing < 1:
            raise InputError(
                f"loss.spoof_weight={spoof_weight}, bonafide_weight={bonafide_weight}, label_smoothing="
                f"{label_smoothing} do not fit: give positive weights and a smoothing from 0 to below 1"
            )
        self.register_buffer("weight", torch.tensor([spoof_weight, bonafide_weight]).float(), persistent=False)
        self.label_smoothing = label_smoothing

    def total_weight(self, label_b: Tensor) -> Tensor:
        """Return the sum of the utterances' class weights."""
        return self.weight[label_b].float().sum()

    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        return F.cross_entropy(logits_bc, label_b, weight=self.weight.float(), label_smoothing=self.label_smoothing)


class FocalLoss(Criterion):
    """Focal loss (Lin et al. 2017, eq. 5): -a (1 - p)^gamma log p, p the true class' probability.

    a is `alpha` for bona fide, 1 - `alpha` for spoof. `reduction` says what the sum is divided by: `mean_over_batch` by
    the utterances, `mean_over_elements` by utterances x classes (half of it), as kornia and the seed project do.
    """

    def __init__(self, alpha: float, gamma: float, reduction: Literal["mean_over_batch", "mean_over_elements"]) -> None:
        super().__init__()
        if not 0 < alpha < 1 or gamma < 0:
            raise InputError(
                f"loss.alpha={alpha}, gamma={gamma} do not fit: give an alpha between 0 and 1, a gamma from 0 up"
            )
        self.alpha, self.gamma, self.reduction = alpha, gamma, reduction

    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        log_p_b = F.log_softmax(logits_bc, dim=1).gather(1, label_b[:, None]).squeeze(1)
        alpha_b = torch.where(label_b == 1, self.alpha, 1 - self.alpha)
        other_b = F.softmax(logits_bc, dim=1).gather(1, 1 - label_b[:, None]).squeeze(1)  # 1 - p, not cancelled
        loss = (-alpha_b * other_b.pow(self.gamma) * log_p_b).mean()
        return loss / 2 if self.reduction == "mean_over_elements" else loss


class OCSoftmax(Criterion):
    """One-class softmax (Zhang et al. 2021, eq. 4): bona fide speech within a cosine of one centre, spoofs beyond one.

    mean of log(1 + exp(alpha (r_real - cos))) over bona fide and log(1 + exp(alpha (cos - r_fake))) over spoofed
    embeddings. The score is the cosine to the centre, -1 to 1.
    """

    uses_logits: ClassVar[bool] = False

    def __init__(self, r_real: float, r_fake: float, alpha: float) -> None:
        super().__init__()
        if not -1 <= r_fake < r_real <= 1 or alpha <= 0:
            raise InputError(
                f"loss.r_real={r_real}, r_fake={r_fake}, alpha={alpha} do not fit: give cosines from -1 to 1, r_fake "
                "below r_real, and a positive alpha"
            )
        self.r_real, self.r_fake, self.alpha = r_real, r_fake, alpha
        self.boundary = (r_real + r_fake) / 2

    def attach(self, embedding_dim: int) -> None:
        """Draw the centre."""
        self.center = nn.Parameter(torch.randn(1, embedding_dim))

    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        cosine_b = self._scores(embedding_bd, logits_bc)
        too_far_b = torch.where(label_b == 1, self.r_real - cosine_b, cosine_b - self.r_fake)
        return F.softplus(self.alpha * too_far_b).mean()

    def _scores(self, embedding_bd: Tensor, logits_bc: Tensor) -> Tensor:
        return _cosines(embedding_bd, self.center)[:, 0]


class AMSoftmax(Criterion):
    """Additive-margin softmax (Wang et al. 2018, eq. 6): cross-entropy of scaled cosines, the true one less `margin`.

    Each class has a weight vector of its own. The score is scale x (cosine to bona fide - cosine to spoof).
    """

    uses_logits: ClassVar[bool] = False

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__()
        if scale <= 0 or not 0 <= margin < 2:
            raise InputError(
                f"loss.scale={scale}, margin={margin} do not fit: give a positive scale and a margin from 0 to below 2"
            )
        self.scale, self.margin = scale, margin

    def attach(self, embedding_dim: int) -> None:
        """Draw the vectors of the two classes."""
        self.class_vectors = nn.Parameter(torch.randn(2, embedding_dim))

    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        cosine_bc = _cosines(embedding_bd, self.class_vectors)
        return F.cross_entropy(self.scale * (cosine_bc - self.margin * F.one_hot(label_b, 2)), label_b)

    def _scores(self, embedding_bd: Tensor, logits_bc: Tensor) -> Tensor:
        cosine_bc = _cosines(embedding_bd, self.class_vectors)
        return self.scale * (cosine_bc[:, 1] - cosine_bc[:, 0])


class SupConCrossEntropy(WeightedCrossEntropy):
    """Weighted cross-entropy of the logits + `supcon_weight` x `supervised_contrastive` of the embeddings.

    The contrast is taken within the batch of each process. The score is the difference of the logits.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        supcon_weight: float,
        temperature: float,
        spoof_weight: float,
        bonafide_weight: float,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(spoof_weight, bonafide_weight, label_smoothing)
        if supcon_weight <= 0 or temperature <= 0:
            raise InputError(
                f"loss.supcon_weight={supcon_weight}, temperature={temperature} do not fit: give positive numbers "
                "(loss=asvspoof/cross_entropy is the loss without the contrast)"
            )
        self.supcon_weight, self.temperature = supcon_weight, temperature

    def _loss(self, embedding_bd: Tensor, logits_bc: Tensor, label_b: Tensor) -> Tensor:
        contrast = supervised_contrastive(embedding_bd, label_b, self.temperature)
        return super()._loss(embedding_bd, logits_bc, label_b) + self.supcon_weight * contrast


def supervised_contrastive(embedding_bd: Tensor, label_b: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out) of L2-normalised embeddings, in nats.

    Every utterance is an anchor, all others of its class are its positives; an anchor that is alone in its class counts
    as 0 in the mean. Oneself is in the denominator with a weight of 1e-8, as in the public implementations.

    >>> bool(supervised_contrastive(torch.eye(4), torch.arange(4), 0.07) == 0)
    True
    """
    unit_bd = F.normalize(embedding_bd, dim=1)
    oneself_bb = torch.eye(len(unit_bd), dtype=torch.bool, device=unit_bd.device)
    positive_bb = (label_b[:, None] == label_b) & ~oneself_bb
    similarity_bb = unit_bd @ unit_bd.T / temperature
    log_p_bb = similarity_bb - (similarity_bb + oneself_bb * math.log(1e-8)).logsumexp(1, keepdim=True)
    return -((log_p_bb * positive_bb).sum(1) / positive_bb.sum(1).clamp(min=1)).mean()


def _cosines(embedding_bd: Tensor, vectors_cd: Tensor) -> Tensor:
    return F.normalize(embedding_bd, dim=1) @ F.normalize(vectors_cd.float(), dim=1).T
