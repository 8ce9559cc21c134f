"""The models of this task: waveform (batch, time), 16 kHz -> logits (batch, 2), column 0 spoof, column 1 bona fide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.backend import BiMambaBlock
from audiolab.tasks.asvspoof.fusion import SEFusion
from audiolab.tasks.asvspoof.head import AttentionPoolingHead
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.texture import TextureProjection, TextureStream
from audiolab.tasks.asvspoof.wavlm import WavLMStream


class SpoofModel(nn.Module, ABC):
    """A detector in two halves: `embed` gives one vector an utterance, `classify` its logits.

    Any length of at least `min_samples` works and gives correspondingly many frames; the fixed crops of this task need
    no padding mask, so there is none.
    """

    head: AttentionPoolingHead
    min_samples: int

    @abstractmethod
    def _frames(self, wave_bt: Tensor) -> Tensor: ...

    def frames(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> frames (batch, frames, d_model) before the head. Raises InputError below `min_samples`."""
        if wave_bt.ndim != 2 or wave_bt.shape[1] < self.min_samples:
            raise InputError(
                f"{type(self).__name__} got a waveform of shape {tuple(wave_bt.shape)}; it wants (batch, time) with at "
                f"least {self.min_samples} samples at 16 kHz. Give longer audio or repeat it."
            )
        return self._frames(wave_bt)

    def embed(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> embedding (batch, d_model)."""
        return self.head.pool(self.frames(wave_bt))

    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits (batch, 2)."""
        return self.head.classify(embedding_bd)

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> logits (batch, 2)."""
        return self.classify(self.embed(wave_bt))


class DualStreamSEMamba(SpoofModel):
    """WavLM and sinc streams, fused by squeeze-excitation, four bidirectional Mamba blocks, attention pooling.

    The options are those of `WavLMStream`, `SincStream`, `SEFusion`, `BiMambaBlock` and `AttentionPoolingHead`; with
    WavLM-large 317,119,070 parameters, of which 1,665,950 lie outside WavLM.
    """

    def __init__(
        self,
        pretrained: str | None,
        wavlm_config: dict[str, Any] | None = None,
        freeze_layers: int = 18,
        gradient_checkpointing: bool = True,
        mask_time_prob: float = 0.075,
        mask_time_length: int = 10,
        num_filters: int = 70,
        num_taps: int = 129,
        sinc_channels: Sequence[int] = (32, 32, 64, 64, 64, 64),
        max_masked_filters: int = 20,
        pre_activation: bool = False,
        d_model: int = 144,
        se_reduction: int = 16,
        fusion_dropout: float = 0.1,
        num_blocks: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        ffn_expand: int = 4,
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.wavlm = WavLMStream(
            pretrained, wavlm_config, freeze_layers, gradient_checkpointing, mask_time_prob, mask_time_length
        )
        self.sinc = SincStream(
            num_filters,
            num_taps,
            channels=sinc_channels,
            max_masked_filters=max_masked_filters,
            pre_activation=pre_activation,
        )
        self.fusion = SEFusion(self.wavlm.dim, self.sinc.dim, d_model, se_reduction, fusion_dropout)
        self.backend = nn.Sequential(
            *(BiMambaBlock(d_model, d_state, d_conv, expand, ffn_expand) for _ in range(num_blocks))
        )
        self.head = AttentionPoolingHead(d_model, head_dropout)
        self.min_samples = max(self.wavlm.min_samples, self.sinc.min_samples)

    def _frames(self, wave_bt: Tensor) -> Tensor:
        return self.backend(self.fusion(self.wavlm(wave_bt), self.sinc(wave_bt)))


class SincMamba(SpoofModel):
    """The sinc stream alone, projected to d_model, with the same back end and head; no pretrained weights.

    >>> import torch
    >>> SincMamba(sinc_channels=(8, 8), d_model=16, num_blocks=1)(torch.zeros(2, 4000)).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        num_filters: int = 70,
        num_taps: int = 129,
        sinc_channels: Sequence[int] = (32, 32, 64, 64, 64, 64),
        max_masked_filters: int = 20,
        pre_activation: bool = False,
        d_model: int = 144,
        num_blocks: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        ffn_expand: int = 4,
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.sinc = SincStream(
            num_filters,
            num_taps,
            channels=sinc_channels,
            max_masked_filters=max_masked_filters,
            pre_activation=pre_activation,
        )
        self.project = nn.Sequential(nn.Linear(self.sinc.dim, d_model), nn.LayerNorm(d_model))
        self.backend = nn.Sequential(
            *(BiMambaBlock(d_model, d_state, d_conv, expand, ffn_expand) for _ in range(num_blocks))
        )
        self.head = AttentionPoolingHead(d_model, head_dropout)
        self.min_samples = self.sinc.min_samples

    def _frames(self, wave_bt: Tensor) -> Tensor:
        return self.backend(self.project(self.sinc(wave_bt)))


class TextureDetector(SpoofModel):
    """Statistics of short-window band levels, a small projection, optional BiMamba blocks over segments, the same head.

    The options are those of `TextureStream`, `TextureProjection`, `BiMambaBlock` and `AttentionPoolingHead`; with the
    defaults 39,515 parameters. For little data and CPUs: it learns from hundreds of utterances in minutes.

    >>> import torch
    >>> TextureDetector()(torch.zeros(2, 16000)).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        window_samples: int = 48,
        hop_samples: int = 12,
        num_bands: int = 12,
        lags: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
        segment_s: float | None = None,
        segment_hop_s: float = 0.2,
        inactive_share: float = 0.3,
        hidden: int = 128,
        feature_noise: float = 0.5,
        dropout: float = 0.3,
        d_model: int = 96,
        num_blocks: int = 0,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        ffn_expand: int = 4,
    ) -> None:
        super().__init__()
        self.texture = TextureStream(
            window_samples, hop_samples, num_bands, lags, segment_s, segment_hop_s, inactive_share
        )
        self.project = TextureProjection(self.texture.dim, hidden, d_model, dropout, feature_noise)
        self.backend = nn.Sequential(
            *(BiMambaBlock(d_model, d_state, d_conv, expand, ffn_expand) for _ in range(num_blocks))
        )
        self.head = AttentionPoolingHead(d_model, dropout)
        self.min_samples = self.texture.min_samples

    def _frames(self, wave_bt: Tensor) -> Tensor:
        return self.backend(self.project(self.texture(wave_bt)))
