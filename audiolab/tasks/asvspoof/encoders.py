"""Self-supervised encoders of `transformers`: WavLM (Chen et al. 2022), wav2vec 2.0 and XLS-R (Baevski et al. 2020)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from audiolab.errors import InputError
from audiolab.hub import why_unreachable
from audiolab.preflight.pretrained import is_path
from audiolab.tasks.asvspoof.wavlm_attention import GatedAttention

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_NAMES = {"wavlm": "WavLM", "wav2vec2": "wav2vec 2.0"}
_RANDOM = "pretrained=null for random weights"


def load_encoder(
    pretrained: str | None, config: Mapping[str, Any] | None, needs_mask_embedding: bool
) -> PreTrainedModel:
    """Build an encoder in float32, on the CPU or the default device.

    `pretrained` is a local folder (config.json and weights) or a hub name, None for random weights; `config` holds
    options of `transformers.WavLMConfig` or `Wav2Vec2Config`. Its `model_type`, "wavlm" or "wav2vec2", says which, or
    that of the pretrained model's own config.json. One of the two is enough; given both, they must agree.

    Raises InputError for options that do not exist or do not agree, and for weights that are missing or cannot be read.
    """
    if pretrained is None and config is None:
        raise InputError("The encoder got neither pretrained weights nor a config; give one of them.")
    if pretrained is not None and is_path(pretrained) and not Path(pretrained).expanduser().exists():
        raise InputError(
            f"The folder pretrained={pretrained!r} of the encoder does not exist. Give a local folder with config.json "
            f"and model.safetensors, a name on the Hugging Face hub, or {_RANDOM}."
        )
    offline = None if pretrained is None or Path(pretrained).is_dir() else why_unreachable(pretrained)
    if pretrained is None:
        options = _checked(dict(config or {}))
    else:
        options = _read_config(pretrained, offline)
        _compare(pretrained, options, config)
    model_type = options.pop("model_type")
    config_class, model_class = _classes(model_type)
    # the mask embedding exists only where the probability is not 0; the masking itself is `SSLStream`'s
    options["mask_time_prob"] = options.get("mask_time_prob") or 0.05
    try:
        full_config = config_class(**options)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"The {_NAMES[model_type]} config is not valid: {' '.join(str(error).split())}") from error
    if pretrained is None:
        model = model_class(full_config)
    else:
        model = _load_weights(pretrained, model_class, full_config, needs_mask_embedding, offline)
    if model_type == "wavlm":
        for layer in model.encoder.layers:
            layer.attention = GatedAttention(layer.attention)
    return model


def config_of(encoder: PreTrainedModel) -> dict[str, Any]:
    """Return the options in which an encoder differs from its class' defaults, as `load_encoder` takes them."""
    default = type(encoder.config)().to_dict()
    config = {name: value for name, value in encoder.config.to_dict().items() if name in default}
    return {name: value for name, value in config.items() if name == "model_type" or value != default[name]}


def _classes(model_type: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    import transformers  # seconds to import, and the other front ends do not need it

    names = {"wavlm": "WavLM", "wav2vec2": "Wav2Vec2"}
    return getattr(transformers, f"{names[model_type]}Config"), getattr(transformers, f"{names[model_type]}Model")


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The config, if its model type and every option are known."""
    model_type = config.get("model_type")
    if model_type not in _NAMES:
        raise InputError(f"The encoder's config has model_type={model_type!r}; give {' or '.join(_NAMES)}.")
    known = _classes(model_type)[0]().to_dict()
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"see the config class of {_NAMES[model_type]}."
            raise InputError(f"The {_NAMES[model_type]} config has no option {key!r}; {hint}")
    return config


def _read_config(pretrained: str, offline: str | None) -> dict[str, Any]:
    """The options stored with the weights; `offline` says why the hub is not to be asked."""
    from transformers import PretrainedConfig

    try:
        stored, _ = PretrainedConfig.get_config_dict(pretrained, local_files_only=offline is not None)
    except OSError as error:
        raise _unreadable(pretrained, error, offline) from error
    if stored.get("model_type") not in _NAMES:
        found = f"a {stored['model_type']} model" if "model_type" in stored else "no config.json of a model"
        raise InputError(
            f"{pretrained} has {found}, neither WavLM nor wav2vec 2.0. Give a folder with the config.json and the "
            f"weights of one of them, or {_RANDOM}."
        )
    return stored


def _compare(pretrained: str, stored: dict[str, Any], config: Mapping[str, Any] | None) -> None:
    """Refuse a config that asks for another encoder than the stored one."""
    asked = _checked({"model_type": stored["model_type"]} | dict(config or {}))
    complete = _classes(stored["model_type"])[0](**{k: v for k, v in stored.items() if k != "model_type"}).to_dict()
    for key, value in asked.items():
        found = complete.get(key)
        if _plain(found) != _plain(value):
            raise InputError(
                f"The encoder's config asks for {key}={value!r}, but {pretrained} has {found!r}. Set the config "
                "to null to take the weights' own (model.front_end.config=null, in the dual stream "
                "model.front_end.ssl.config=null), or give other weights."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _load_weights(
    pretrained: str,
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    needs_mask_embedding: bool,
    offline: str | None,
) -> PreTrainedModel:
    reading = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": offline is not None}
    try:
        loaded: Any = model_class.from_pretrained(pretrained, config=config, weights_only=True, **reading)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise _unreadable(pretrained, error, offline) from error
    model, info = loaded
    missing = sorted(key for key in info["missing_keys"] if needs_mask_embedding or key != "masked_spec_embed")
    if missing:
        raise InputError(
            f"{pretrained} lacks {len(missing)} of the weights of a {_NAMES[config.model_type]} model, the first is "
            f"{missing[0]}: it is another or an incomplete model. Give a complete one, or {_RANDOM}."
        )
    return model


def _unreadable(pretrained: str, error: Exception, offline: str | None) -> InputError:
    detail = " ".join(str(error).split())[:200]
    if Path(pretrained).is_dir():
        return InputError(
            f"The folder {pretrained} has no encoder weights that can be read ({type(error).__name__}: {detail}). Give "
            f"a folder with config.json and model.safetensors, or {_RANDOM}."
        )
    return InputError(
        f"The encoder {pretrained!r} is neither a folder here nor complete in the local Hugging Face cache, and the "
        f"hub did not deliver it over the network ({offline or type(error).__name__}). Give a local folder with "
        "config.json and model.safetensors as pretrained=, or copy the cache of a machine that has it (HF_HOME, by "
        f"default ~/.cache/huggingface), or give {_RANDOM}."
    )
