"""Low-rank adapters (Hu et al. 2022) on the projections of a self-supervised encoder, by peft."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from audiolab.errors import InputError

_OPTIONS = ("r", "alpha", "dropout", "targets")


def add_lora(encoder: nn.Module, lora: Mapping[str, Any]) -> list[nn.Module]:
    """Put adapters W x + (alpha / r) B A dropout(x) on the `targets` of every layer; return their dropouts.

    `lora` holds r, alpha, dropout and targets: names of linear maps inside a layer of `encoder.encoder.layers`. B
    starts at zero, so nothing changes at first. Everything but A and B is frozen, biases stay as they are.

    Raises InputError for an unknown option or target, values that cannot work, and an encoder that has adapters.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    if any(isinstance(module, LoraLayer) for module in encoder.modules()):
        raise InputError("The encoder has LoRA adapters already: a second set would train on top of the first.")
    _check(encoder, lora)
    encoder.requires_grad_(False)
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=rf".*encoder\.layers\.\d+\..*\b({'|'.join(lora['targets'])})",
        bias="none",
    )
    inject_adapter_in_model(config, encoder)
    return [module.lora_dropout for module in encoder.modules() if isinstance(module, LoraLayer)]


def _check(encoder: nn.Module, lora: Mapping[str, Any]) -> None:
    for key in lora:
        if key not in _OPTIONS:
            near = difflib.get_close_matches(key, _OPTIONS, n=1)
            raise InputError(f"lora has no option {key!r}: {f'did you mean {near[0]!r}?' if near else _OPTIONS}")
    missing = [key for key in _OPTIONS if key not in lora]
    if missing:
        raise InputError(f"lora.{missing[0]} is missing: give {', '.join(_OPTIONS)}, or lora: null for no adapters")
    if lora["r"] < 1 or lora["alpha"] <= 0 or not 0 <= lora["dropout"] < 1:
        raise InputError(
            f"lora got r={lora['r']}, alpha={lora['alpha']}, dropout={lora['dropout']}; give a rank from 1 up, a "
            "positive alpha and a dropout from 0 to below 1."
        )
    linear = {name.split(".")[-1] for name, m in encoder.encoder.layers.named_modules() if isinstance(m, nn.Linear)}
    unknown = [name for name in lora["targets"] if name not in linear]
    if unknown or not lora["targets"]:
        raise InputError(f"lora.targets={list(lora['targets'])} are not all there; choose from {sorted(linear)}")
