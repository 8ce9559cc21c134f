"""The recorded Conv-TasNets of other libraries: weights, inputs, outputs, and the options that describe each here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from audiolab.tasks.separation.model import ConvTasNet

SIZES = {"num_filters": 24, "bottleneck": 12, "hidden": 20, "skip": 12, "blocks": 3, "repeats": 2}
_ASTEROID = {"padding": "none"}
_CAUSAL = {"causal": True, "input_eps": 1e-8}  # at the level of these signals the libraries' eps matters
# The index calls the seed's masks ReLU. What was recorded is sigmoid, which one version of its code has.
_SEED = {"padding": "none", "norm_first": True, "depthwise_bias": False, "mask": "sigmoid"}
OPTIONS: dict[str, dict[str, Any]] = {
    "torchaudio_sigmoid": {"last_residual": False},
    "torchaudio_relu_3spk": {"last_residual": False, "mask": "relu", "num_speakers": 3},
    "asteroid_relu_gln": _ASTEROID | {"mask": "relu"},
    "asteroid_sigmoid_causal_cumulative": _ASTEROID | _CAUSAL | {"norm": "cLN"},
    "asteroid_relu_causal_channelwise": _ASTEROID | _CAUSAL | {"mask": "relu", "norm": "channelwise"},
    "asteroid_relu_noskip_reluenc": _ASTEROID | {"mask": "relu", "encoder_relu": True, "skip": 0},
    "naplab_noncausal": {"padding": "windows"},
    "naplab_causal": _CAUSAL | {"padding": "windows", "norm": "cLN"},
    "seed_relu_gln": _SEED,
    "seed_relu_gln_L40_hop8": _SEED | {"kernel_size": 40},
}


def tensors(shared: Path, variant: str) -> dict[str, Tensor]:
    """Everything recorded of a variant."""
    return load_file(shared / "reference/separation" / f"convtasnet_{variant}.safetensors")


def facts(shared: Path, variant: str) -> dict[str, Any]:
    """What the index says of a variant."""
    index = json.loads((shared / "reference/separation/convtasnet_variants.json").read_text(encoding="utf-8"))
    return index["variants"][variant]


def library_state(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's own state dict."""
    return {name.removeprefix("param."): value for name, value in recorded.items() if name.startswith("param.")}


def reference_model(shared: Path, variant: str) -> ConvTasNet:
    """Our model with the library's weights, by the recorded map of names."""
    model = ConvTasNet(**{**SIZES, **OPTIONS[variant]})
    own, names = model.state_dict(), facts(shared, variant)["mapping_to_canonical"]
    state = {names[name]: value for name, value in library_state(tensors(shared, variant)).items()}
    model.load_state_dict({name: value.reshape(own[name].shape) for name, value in state.items()})
    return model


def small(**options: Any) -> ConvTasNet:
    """A small model with its own random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"num_filters": 32, "bottleneck": 16, "hidden": 32, "skip": 16, "blocks": 3, "repeats": 2}
        return ConvTasNet(**{**sizes, **options}).eval()
