"""The self-supervised stream: a pretrained encoder, wholly, partly or not trained, and a learned mix of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.encoders import config_of, load_encoder
from audiolab.tasks.asvspoof.lora import add_lora
from audiolab.tasks.asvspoof.model import FrontEnd
from audiolab.training.feature_cache import fingerprint

_MASK_MIN_SPANS = 2  # SpecAugment of WavLM and wav2vec 2.0: at least two masked spans an utterance


class SSLStream(FrontEnd):
    """Waveform (batch, time) -> the softmax-weighted sum of hidden states (batch, frames, dim), 20 ms a frame.

    `pretrained` and `config` choose the encoder, see `encoders.load_encoder`. State 0 is the encoder's input, state k
    the output of layer k, the last one after the encoder's final norm where it has one. `layers` names the states that
    are used, "all" or a list of numbers; layers above the highest are taken out. One state has no weight to learn.
    `mix` False gives the states themselves, (batch, states, frames, dim), to a back end that weighs them. The config's
    own masking options have no effect, nor has its layer drop: that would leave hidden states missing and parameters
    without gradient.

    The convolutional feature extractor and the feature projection are always frozen. `freeze_layers` k freezes layers
    0..k-1 too, "all" everything; frozen parts stay in eval mode, and a wholly frozen encoder runs without a graph.
    `lora` {r, alpha, dropout, targets} puts adapters on an encoder that is otherwise frozen: `lora.add_lora`.
    `gradient_checkpointing` recomputes each layer in the backward pass. `mask_time_prob` > 0 masks spans of
    `mask_time_length` frames in training (SpecAugment, drawn from torch's default generator); the mask embedding is
    trained where the encoder is.

    >>> tiny = {"model_type": "wavlm", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    ...         "intermediate_size": 32, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8,
    ...         "num_conv_pos_embedding_groups": 2}
    >>> stream = SSLStream(pretrained=None, config=tiny, freeze_layers="all")
    >>> states = stream.encode(torch.zeros(2, 8000))
    >>> stream(torch.zeros(2, 8000)).shape, states.shape, stream.is_frozen
    (torch.Size([2, 24, 16]), torch.Size([2, 3, 24, 16]), True)
    """

    def __init__(
        self,
        pretrained: str | None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | Literal["all"] = "all",
        mix: bool = True,
        freeze_layers: int | Literal["all"] = 0,
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
    ) -> None:
        super().__init__()
        self.encoder = load_encoder(pretrained, config, needs_mask_embedding=mask_time_prob > 0)
        self.layers = _used_states(layers, len(self.encoder.encoder.layers))
        norm_last = self.encoder.config.do_stable_layer_norm
        self._final_norm = norm_last and self.layers[-1] == len(self.encoder.encoder.layers)
        del self.encoder.encoder.layers[self.layers[-1] :]
        self.dim, self.min_samples = self.encoder.config.hidden_size, _receptive_field(self.encoder.config)
        self.gradient_checkpointing = gradient_checkpointing
        self.mask_time_prob, self.mask_time_length = mask_time_prob, mask_time_length
        self.num_layers = None if mix else len(self.layers)
        self.layer_logits = nn.Parameter(torch.zeros(len(self.layers))) if mix and len(self.layers) > 1 else None
        self.freeze_layers = self._checked_freezing(freeze_layers, lora)
        for module in self._frozen():
            module.requires_grad_(False)
        if norm_last and not self._final_norm:
            self.encoder.encoder.layer_norm.requires_grad_(False)  # not used
        if mask_time_prob == 0 or freeze_layers == "all":
            self.encoder.masked_spec_embed.requires_grad_(False)
        self._lora_dropouts = add_lora(self.encoder, lora) if lora is not None else []
        self.train(self.training)

    @property
    def is_frozen(self) -> bool:
        """Whether `encode` has nothing trainable and nothing random in it."""
        return self.freeze_layers == "all" and not self._lora_dropouts and self.mask_time_prob == 0

    def train(self, mode: bool = True) -> SSLStream:
        """Set the mode, frozen parts always to eval: their dropout must not act."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        for dropout in self._lora_dropouts:
            dropout.train(mode)
        return self

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> the states in use (batch, states, frames, dim)."""
        return torch.stack(self.hidden_states(wave_bt), dim=1)

    def encoder_name(self) -> str:
        """Return a name for the encoder's weights and the states in use."""
        return fingerprint(self.encoder, self.layers)

    def without_pretrained(self) -> dict[str, Any]:
        """Return the options that build the same encoder with random weights, for a checkpoint that holds them all."""
        return {"pretrained": None, "config": config_of(self.encoder)}

    def forward(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Run the stream on `min_samples` samples or more, or only the mix on `states` that `encode` gave."""
        if states is not None and states.shape[1] != len(self.layers):
            raise InputError(
                f"{states.shape[1]} hidden states were given; {len(self.layers)} are in use: {self.layers}"
            )
        if self.num_layers is not None:
            return self.encode(wave_bt) if states is None else states
        parts = self.hidden_states(wave_bt) if states is None else states.unbind(1)
        if self.layer_logits is None:
            return parts[0]
        weights = torch.softmax(self.layer_logits, dim=0)
        weights = weights.view(-1, 1, 1, 1)  # not 0-d, so that the sum stays float32 under autocast
        return sum(weight * state for weight, state in zip(weights, parts, strict=True))

    def hidden_states(self, wave_bt: Tensor) -> list[Tensor]:
        """The states in use, each (batch, frames, dim)."""
        trains = self.freeze_layers != "all" or bool(self._lora_dropouts)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            states = self._run(self._features(wave_bt))
        return [states[number] for number in self.layers]

    def _features(self, wave_bt: Tensor) -> Tensor:
        """Frames at the encoder's input; in training with spans of them masked."""
        features_bct = self.encoder.feature_extractor(wave_bt)
        features_btd, _ = self.encoder.feature_projection(features_bct.transpose(1, 2))
        if not self.training or self.mask_time_prob == 0:
            return features_btd
        masked_bt = self._draw_mask(*features_btd.shape[:2]).to(features_btd.device)
        return torch.where(masked_bt.unsqueeze(-1), self.encoder.masked_spec_embed.to(features_btd.dtype), features_btd)

    def _run(self, features_btd: Tensor) -> list[Tensor]:
        """The encoder's input and the output of each of its layers."""
        encoder = self.encoder.encoder
        hidden_btd = features_btd + encoder.pos_conv_embed(features_btd)
        if not self.encoder.config.do_stable_layer_norm:
            hidden_btd = encoder.layer_norm(hidden_btd)
        states = [encoder.dropout(hidden_btd)]
        # WavLM's first layer computes a position bias for all; wav2vec 2.0's layers have none
        has_bias = self.encoder.config.model_type == "wavlm"
        shared: dict[str, Any] = {"position_bias": None} if has_bias else {}
        for layer in encoder.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                output = checkpoint(layer, states[-1], use_reentrant=False, **shared)
            else:
                output = layer(states[-1], **shared)
            if has_bias:
                output, shared["position_bias"] = output
            states.append(output)
        if self._final_norm:
            states[-1] = encoder.layer_norm(states[-1])
        return states

    def _frozen(self) -> list[nn.Module]:
        if self.freeze_layers == "all":
            return [self.encoder]
        layers = self.encoder.encoder.layers[: self.freeze_layers]
        return [self.encoder.feature_extractor, self.encoder.feature_projection, *layers]

    def _checked_freezing(self, freeze_layers: int | str, lora: dict[str, Any] | None) -> int | str:
        num_layers = len(self.encoder.encoder.layers)
        if lora is not None and freeze_layers != "all":
            raise InputError(f"lora trains adapters on a frozen encoder, but freeze_layers={freeze_layers}: give all.")
        if freeze_layers != "all" and not (isinstance(freeze_layers, int) and 0 <= freeze_layers <= num_layers):
            raise InputError(
                f"freeze_layers={freeze_layers}, but {num_layers} layers of the encoder are in use; give 0 to "
                f"{num_layers}, or all for everything."
            )
        return freeze_layers

    def _draw_mask(self, batch: int, num_frames: int) -> Tensor:
        """True where a frame is masked, (batch, frames): as many spans in every utterance, as `transformers` draws."""
        length = self.mask_time_length
        num_starts = num_frames - length + 1
        mask_bt = torch.zeros(batch, num_frames, dtype=torch.bool)
        if num_starts < 1:
            return mask_bt
        wanted = int(self.mask_time_prob * num_frames / length + float(torch.rand((), device="cpu")))
        num_spans = min(max(wanted, _MASK_MIN_SPANS), num_frames // length)
        starts = torch.rand(batch, num_starts, device="cpu").topk(num_spans).indices
        return mask_bt.scatter_(1, (starts.unsqueeze(-1) + torch.arange(length)).flatten(1), True)


def _used_states(layers: Sequence[int] | str, num_layers: int) -> list[int]:
    """The numbers of the states to use, in order."""
    if layers == "all":
        return list(range(num_layers + 1))
    numbers = list(layers)
    if isinstance(layers, str) or not numbers or numbers != sorted(set(numbers) & set(range(num_layers + 1))):
        raise InputError(
            f"layers={layers}, but the encoder has hidden states 0 to {num_layers}; give all or an ascending list of "
            "them."
        )
    return numbers


def _receptive_field(config: Any) -> int:
    """Samples under one frame."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
