"""Conv-TasNet weights of other libraries: torchaudio, asteroid, the paper's authors (naplab), the seed project.

Names become the neutral ones of `ConvTasNet`; what follows from the library (framing, order, bias) is known with them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.torch_version import TorchVersion

from audiolab.errors import InputError
from audiolab.nn.layer_norm import EPS

_USUAL_BLOCKS, _USUAL_REPEATS = 8, 3


class Library(NamedTuple):
    """A library: patterns of its names, ours (`{i}` is the block), and the options that hold for all its models."""

    names: list[tuple[str, str]]
    options: dict[str, Any]


_LAYERS = {"0": "expand", "1": "act1", "2": "norm1", "3": "depthwise", "4": "act2", "5": "norm2"}
_CHOMPED = "shared_block.3.0"  # asteroid's causal depthwise convolution, with a step after it that drops the future
_SEED_LAYERS = {"conv1x1_1": "expand", "prelu1": "act1", "dw_conv": "depthwise", "prelu2": "act2"}
_SEED_LAYERS |= {"norm1": "norm1", "norm2": "norm2", "conv1x1_2": "residual", "skip_conv": "skip"}
_NAPLAB_LAYERS = {"conv1d": "expand", "nonlinearity1": "act1", "reg1": "norm1", "dconv1d": "depthwise"}
_NAPLAB_LAYERS |= {"nonlinearity2": "act2", "reg2": "norm2", "res_out": "residual", "skip_out": "skip"}
_LEAVES = {"gamma": "weight", "beta": "bias", "gain": "weight", "_filters": "weight"}


def _layers(pattern: str, layers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(pattern.format(re.escape(theirs)), f"blocks.{{i}}.{ours}") for theirs, ours in layers.items()]


LIBRARIES = {
    "torchaudio": Library(
        [
            (r"encoder", "encoder"),
            (r"decoder", "decoder"),
            (r"mask_generator\.input_norm", "input_norm"),
            (r"mask_generator\.input_conv", "bottleneck"),
            (r"mask_generator\.output_prelu", "mask_act"),
            (r"mask_generator\.output_conv", "mask"),
            *_layers(r"mask_generator\.conv_layers\.(?P<i>\d+)\.conv_layers\.{}", _LAYERS),
            *_layers(r"mask_generator\.conv_layers\.(?P<i>\d+)\.{}", {"res_out": "residual", "skip_out": "skip"}),
        ],
        {"last_residual": False, "mask": "sigmoid"},
    ),
    "asteroid": Library(
        [
            (r"encoder\.filterbank", "encoder"),
            (r"decoder\.filterbank", "decoder"),
            (r"masker\.bottleneck\.0", "input_norm"),
            (r"masker\.bottleneck\.1", "bottleneck"),
            (r"masker\.mask_net\.0", "mask_act"),
            (r"masker\.mask_net\.1", "mask"),
            *_layers(r"masker\.TCN\.(?P<i>\d+)\.shared_block\.{}", _LAYERS),
            *_layers(r"masker\.TCN\.(?P<i>\d+)\.{}", {_CHOMPED: "depthwise"}),
            *_layers(r"masker\.TCN\.(?P<i>\d+)\.{}", {"res_conv": "residual", "skip_conv": "skip"}),
        ],
        {"padding": "none", "mask": "relu"},
    ),
    "naplab": Library(
        [
            (r"encoder", "encoder"),
            (r"decoder", "decoder"),
            (r"TCN\.LN", "input_norm"),
            (r"TCN\.BN", "bottleneck"),
            (r"TCN\.output\.0", "mask_act"),
            (r"TCN\.output\.1", "mask"),
            *_layers(r"TCN\.TCN\.(?P<i>\d+)\.{}", _NAPLAB_LAYERS),
        ],
        {"padding": "windows", "mask": "sigmoid"},
    ),
    "seed": Library(
        [
            (r"encoder\.conv1d", "encoder"),
            (r"decoder\.conv_transpose1d", "decoder"),
            (r"separation\.layer_norm", "input_norm"),
            (r"separation\.bottleneck", "bottleneck"),
            (r"separation\.mask_conv\.0", "mask_act"),
            (r"separation\.mask_conv\.1", "mask"),
            *_layers(r"separation\.tcn_blocks\.(?P<r>\d+)\.blocks\.(?P<i>\d+)\.{}", _SEED_LAYERS),
        ],
        {"padding": "none", "norm_first": True},
    ),
}


def library_of(weights: Mapping[str, Any]) -> str | None:
    """Return the library whose ConvTasNet has these names, None where it is none of them.

    >>> library_of({"masker.bottleneck.0.gamma": 0}), library_of({"bottleneck.weight": 0})
    ('asteroid', None)
    """
    marks = {"mask_generator": "torchaudio", "masker": "asteroid", "TCN": "naplab", "separation": "seed"}
    found = {marks[start] for start in (name.partition(".")[0] for name in weights) if start in marks}
    return found.pop() if len(found) == 1 else None


def neutral_names(weights: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Rename a library's state dict to the names and shapes of `ConvTasNet`. Raises InputError for an unknown name.

    >>> list(neutral_names({"TCN.TCN.4.reg2.gain": torch.ones(1, 20, 1)}, "naplab"))
    ['blocks.4.norm2.weight']
    """
    patterns = [(re.compile(theirs), ours) for theirs, ours in LIBRARIES[library].names]
    inner = [int(found[1]) for name in weights if (found := re.search(r"tcn_blocks\.\d+\.blocks\.(\d+)\.", name))]
    renamed = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        found, ours = next(
            ((match, ours) for pattern, ours in patterns if (match := pattern.fullmatch(module))), (None, "")
        )
        if found is None:
            raise InputError(
                f"{name!r} is not a weight of {library}'s ConvTasNet: give the state dict of that model alone"
            )
        numbers = {key: int(number) for key, number in found.groupdict().items()}
        block = numbers.get("i", 0) + numbers.get("r", 0) * (max(inner, default=0) + 1)
        ours = f"{ours.format(i=block)}.{_LEAVES.get(leaf, leaf)}"
        renamed[ours] = value.flatten() if value.ndim == 3 and "norm" in ours else value
    return renamed


class LibraryWeights(NamedTuple):
    """Weights under neutral names, their library, and the options of `ConvTasNet` that are known of them."""

    weights: dict[str, Tensor]
    library: str
    options: dict[str, Any]


def read_library(path: Path) -> LibraryWeights | None:
    """Read a file of another library: a state dict, alone or within a checkpoint or asteroid's serialised model.

    None for a file that holds none of their ConvTasNets. Raises InputError for one that is damaged or would run code.
    """
    state, arguments = _read(path)
    for start in ("", "module.", "model.", "model.module."):
        weights = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        library = library_of(weights)
        if library is not None:
            return LibraryWeights(neutral_names(weights, library), library, options_of(weights, library, arguments))
    return None


def options_of(weights: Mapping[str, Tensor], library: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `ConvTasNet` that a library's state dict and asteroid's `model_args` tell.

    Sizes are in the shapes. The activation of the masks is not in a state dict: the library's usual one is taken, for
    the seed none, which has used two. How many blocks make a repeat is told by the seed and by `model_args` only.
    """
    ours = neutral_names(weights, library)
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    try:
        num_blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        options: dict[str, Any] = {
            "num_filters": shapes["encoder.weight"][0],
            "kernel_size": shapes["encoder.weight"][2],
            "stride": shapes["encoder.weight"][2] // 2,
            "bottleneck": shapes["bottleneck.weight"][0],
            "hidden": shapes["blocks.0.depthwise.weight"][0],
            "skip": shapes["blocks.0.skip.weight"][0] if "blocks.0.skip.weight" in shapes else 0,
            "block_kernel": shapes["blocks.0.depthwise.weight"][2],
            "num_speakers": shapes["mask.weight"][0] // shapes["encoder.weight"][0],
            "depthwise_bias": "blocks.0.depthwise.bias" in shapes,
            "last_residual": f"blocks.{num_blocks - 1}.residual.weight" in shapes,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"these weights of {library}'s ConvTasNet are not complete ({error}): give all of them"
        ) from error
    if num_blocks == _USUAL_BLOCKS * _USUAL_REPEATS:
        options |= {"blocks": _USUAL_BLOCKS, "repeats": _USUAL_REPEATS}
    if repeats := {name.split(".")[2] for name in weights if name.startswith("separation.tcn_blocks.")}:
        options |= {"blocks": num_blocks // len(repeats), "repeats": len(repeats)}
    if library == "naplab" and "TCN.LN.gain" in weights:
        options |= {"norm": "cLN", "causal": True}
    if f"masker.TCN.0.{_CHOMPED}.weight" in weights:
        options["causal"] = True
    if "blocks.0.norm1.running_mean" in shapes:
        options["norm"] = "BN"
    options = options | LIBRARIES[library].options | _from_asteroid(arguments)
    if options.get("causal"):
        options["input_eps"] = EPS
    return options


def _from_asteroid(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what of asteroid's `model_args` is not in the shapes."""
    names = {"stride": "stride", "n_blocks": "blocks", "n_repeats": "repeats", "mask_act": "mask", "causal": "causal"}
    options = {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs) is not None}
    if "norm_type" in arguments:  # asteroid's cLN looks at one frame only
        kind = str(arguments["norm_type"])
        options["norm"] = {"cLN": "channelwise", "cgLN": "cLN"}.get(kind, kind)
    activation = arguments.get("encoder_activation")
    if activation not in (None, "linear", "relu"):
        raise InputError(f"the weights' encoder_activation={activation} is not one of ConvTasNet here: none or relu")
    return options | ({"encoder_relu": activation == "relu"} if arguments else {})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict of a file and asteroid's `model_args`, empty where there are none."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: give weights as .safetensors, or as torch.save wrote them")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        with torch.serialization.safe_globals([TorchVersion]):  # a string; asteroid writes down its torch
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds objects that could "
            "run code; copy it again from its source, or save its state dict alone"
        ) from error
    arguments: dict[str, Any] = {}
    if isinstance(held, dict):
        arguments = held.get("model_args", {})
        held = next((held[key] for key in ("state_dict", "model_state_dict") if key in held), held)
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError(f"{path} holds no state dict of tensors: give weights as a library's ConvTasNet saves them")
    return held, arguments
