"""The WavLM stream: a self-supervised encoder (Chen et al. 2022) and a learned mix of its layers."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.model import FrontEnd

if TYPE_CHECKING:
    from transformers import WavLMConfig, WavLMModel

_MASK_MIN_SPANS = 2  # SpecAugment of WavLM: at least two masked spans an utterance


class SSLStream(FrontEnd):
    """Waveform (batch, time) -> the softmax-weighted sum of all hidden states (batch, frames, dim), 20 ms a frame.

    `pretrained` is a local folder (config.json and weights) or a hub name, None for random weights; `config` is a
    dict of `transformers.WavLMConfig` options. One of the two is enough; given both, they must agree. The hidden
    states are the encoder's input and each layer's output, the last one after the encoder's final norm where it has
    one. The config's own masking options have no effect, nor has its layer drop: that would leave hidden states missing
    and parameters without gradient.

    The convolutional feature extractor and the feature projection are frozen, so are the first `freeze_layers` layers;
    frozen parts stay in eval mode. `gradient_checkpointing` recomputes each layer in the backward pass.
    `mask_time_prob` > 0 masks spans of `mask_time_length` frames in training (SpecAugment, drawn from torch's default
    generator); at 0 the mask embedding is frozen.

    >>> tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    ...         "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    >>> stream = SSLStream(pretrained=None, config=tiny)
    >>> stream(torch.zeros(2, 8000)).shape, stream.layer_logits.shape
    (torch.Size([2, 24, 16]), torch.Size([3]))
    """

    def __init__(
        self,
        pretrained: str | None,
        config: dict[str, Any] | None = None,
        freeze_layers: int = 0,
        gradient_checkpointing: bool = False,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
    ) -> None:
        super().__init__()
        self.wavlm = _build(pretrained, config, needs_mask_embedding=mask_time_prob > 0)
        num_layers = len(self.wavlm.encoder.layers)
        if not 0 <= freeze_layers <= num_layers:
            raise InputError(
                f"freeze_layers={freeze_layers}, but this WavLM has {num_layers} layers; give 0 to {num_layers}."
            )
        self.dim = self.wavlm.config.hidden_size
        self.freeze_layers = freeze_layers
        self.gradient_checkpointing = gradient_checkpointing
        self.mask_time_prob, self.mask_time_length = mask_time_prob, mask_time_length
        self.layer_logits = nn.Parameter(torch.zeros(num_layers + 1))
        for module in self._frozen():
            module.requires_grad_(False)
        self.wavlm.masked_spec_embed.requires_grad_(mask_time_prob > 0)
        self.min_samples = _receptive_field(self.wavlm.config)
        self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        layers = self.wavlm.encoder.layers[: self.freeze_layers]
        return [self.wavlm.feature_extractor, self.wavlm.feature_projection, *layers]

    def train(self, mode: bool = True) -> SSLStream:
        """Set the mode, frozen parts always to eval: their dropout must not act."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Run the stream on `min_samples` samples or more."""
        weights = torch.softmax(self.layer_logits, dim=0)
        weights = weights.view(-1, 1, 1, 1)  # not 0-d, so that the sum stays float32 under autocast
        return sum(weight * state for weight, state in zip(weights, self.hidden_states(wave_bt), strict=True))

    def hidden_states(self, wave_bt: Tensor) -> list[Tensor]:
        """All num_layers + 1 hidden states, each (batch, frames, dim)."""
        features_bct = self.wavlm.feature_extractor(wave_bt)
        features_btd, _ = self.wavlm.feature_projection(features_bct.transpose(1, 2))
        if self.training and self.mask_time_prob > 0:
            masked_bt = self._draw_mask(*features_btd.shape[:2]).to(features_btd.device)
            embedding_d = self.wavlm.masked_spec_embed.to(features_btd.dtype)
            features_btd = torch.where(masked_bt.unsqueeze(-1), embedding_d, features_btd)
        encoder, norm_last = self.wavlm.encoder, self.wavlm.config.do_stable_layer_norm
        hidden_btd = features_btd + encoder.pos_conv_embed(features_btd)
        if not norm_last:
            hidden_btd = encoder.layer_norm(hidden_btd)
        states = [encoder.dropout(hidden_btd)]
        position_bias = None  # computed by the first layer, used by all
        for layer in encoder.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                output = checkpoint(layer, states[-1], position_bias=position_bias, use_reentrant=False)
            else:
                output = layer(states[-1], position_bias=position_bias)
            states.append(output[0])
            position_bias = output[1]
        if norm_last:
            states[-1] = encoder.layer_norm(states[-1])
        return states

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


def _build(pretrained: str | None, config: dict[str, Any] | None, needs_mask_embedding: bool) -> WavLMModel:
    from transformers import WavLMConfig, WavLMModel  # seconds to import, and the sinc-only model does not need it

    if pretrained is None and config is None:
        raise InputError("The WavLM stream got neither pretrained weights nor a config; give one of them.")
    if config is not None:
        known = WavLMConfig().to_dict()
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "see transformers.WavLMConfig."
                raise InputError(f"The WavLM config has no option {key!r}; {hint}")
    options = dict(config or {}) if pretrained is None else _read_config(pretrained, config)
    # the mask embedding exists only where the probability is not 0; the masking itself is ours
    options["mask_time_prob"] = options.get("mask_time_prob") or 0.05
    try:
        wavlm_config = WavLMConfig(**options)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"The WavLM config is not valid: {' '.join(str(error).split())}") from error
    if pretrained is None:
        return WavLMModel(wavlm_config)
    try:
        loaded: Any = WavLMModel.from_pretrained(
            pretrained, config=wavlm_config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(pretrained, error) from error
    model, info = loaded
    missing = sorted(key for key in info["missing_keys"] if needs_mask_embedding or key != "masked_spec_embed")
    if missing:
        raise InputError(
            f"{pretrained} lacks {len(missing)} of the weights of a WavLM model, the first is {missing[0]}: it is "
            "another or an incomplete model. Give a complete one, or model.pretrained=null for random weights."
        )
    return model


def _read_config(pretrained: str, config: dict[str, Any] | None) -> dict[str, Any]:
    """The options stored with the weights, checked against the ones that were asked for."""
    from transformers import WavLMConfig

    try:
        stored, _ = WavLMConfig.get_config_dict(pretrained)
    except OSError as error:
        raise _unreadable(pretrained, error) from error
    if stored.get("model_type") != "wavlm":
        found = f"a {stored['model_type']} model" if "model_type" in stored else "no config.json of a model"
        raise InputError(
            f"{pretrained} has {found}, not WavLM. Give a folder with the config.json and the weights of a WavLM "
            "model, or model.pretrained=null for random weights."
        )
    complete = WavLMConfig(**stored).to_dict()
    for key, value in (config or {}).items():
        if _plain(complete[key]) != _plain(value):
            raise InputError(
                f"The WavLM config asks for {key}={value!r}, but {pretrained} has {complete[key]!r}. Remove the option "
                "or give other weights."
            )
    return stored


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _unreadable(pretrained: str, error: Exception) -> InputError:
    detail = " ".join(str(error).split())[:200]
    if Path(pretrained).is_dir():
        return InputError(
            f"The folder {pretrained} has no WavLM weights that can be read ({type(error).__name__}: {detail}). Give a "
            "folder with config.json and model.safetensors, or model.pretrained=null for random weights."
        )
    return InputError(
        f"The WavLM model {pretrained!r} is neither a folder here nor in the local Hugging Face cache, and the network "
        f"did not deliver it ({type(error).__name__}). Give a local folder with config.json and "
        "model.safetensors, or model.pretrained=null for random weights."
    )


def _receptive_field(config: WavLMConfig) -> int:
    """Samples under one frame."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
