"""Weights of the public AASIST code (github.com/clovaai/aasist), renamed to the modules of this project."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from audiolab.errors import InputError

# pattern of a public name -> ours, applied in this order; {n} is a number that counts from 1 there and from 0 here
_PARTS = [
    (r"^pos_S$", "graphs.positions"),
    (r"^master(?P<n>\d)$", "graphs.branches.{n}.stack"),
    (r"^GAT_layer_S\.", "graphs.spectral."),
    (r"^GAT_layer_T\.", "graphs.temporal."),
    (r"^HtrgGAT_layer_ST(?P<n>\d)1\.", "graphs.branches.{n}.opening."),
    (r"^HtrgGAT_layer_ST(?P<n>\d)2\.", "graphs.branches.{n}.closing."),
    (r"^pool_S\.proj\.", "graphs.pool_spectral.score."),
    (r"^pool_T\.proj\.", "graphs.pool_temporal.score."),
    (r"^pool_hS(?P<n>\d)\.proj\.", "graphs.branches.{n}.pool_spectral.score."),
    (r"^pool_hT(?P<n>\d)\.proj\.", "graphs.branches.{n}.pool_temporal.score."),
    (r"^out_layer\.", "classifier."),
    (r"^LL\.", "project."),
    (r"^attention\.", "attention."),
    (r"^first_bn1\.", "norm_out.0."),
    (r"^first_bn\.", "{encoder}norm.0."),
    (r"^encoder\.(?P<i>\d)\.0\.bn(?P<k>\d)\.", "{encoder}blocks.{i}.norm{k}.0."),
    (r"^encoder\.(?P<i>\d)\.0\.conv_downsample\.", "{encoder}blocks.{i}.skip."),
    (r"^encoder\.(?P<i>\d)\.0\.conv(?P<k>\d)\.", "{encoder}blocks.{i}.conv{k}."),
]
_ATTENTION = {
    "att_proj": "compare",
    "att_projM": "compare_stack",
    "proj_type1": "first",
    "proj_type2": "second",
    "proj_with_att": "project.aggregate",
    "proj_without_att": "project.keep",
    "proj_with_attM": "aggregate_stack",
    "proj_without_attM": "keep_stack",
    "bn": "project.norm",
}
_SCORES = {  # the public code keeps each scoring vector as (dim, 1); ours are the rows of a linear layer
    "score": ["att_weight11", "att_weight22", "att_weight12"],
    "score_stack": ["att_weightM"],
}


def state_from_official(state: dict[str, Tensor], encoder: str = "sinc.") -> dict[str, Tensor]:
    """Rename a state dict of the public `models/AASIST.py` for `AASIST.load_state_dict(..., strict=True)`.

    With `encoder` "" the state of the public XLSR + AASIST back end (github.com/TakHemlata/SSL_Anti-spoofing, without
    its `ssl_model`) gets the names of `AASISTBackEnd`, and of a `classifier` beside it. Raises InputError for a name
    that neither has.

    >>> list(state_from_official({"GAT_layer_S.att_proj.bias": torch.zeros(64), "master2": torch.zeros(1, 1, 64)}))
    ['graphs.spectral.compare.bias', 'graphs.branches.1.stack']
    """
    renamed: dict[str, Tensor] = {}
    scores: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        ours = _rename(name, encoder)
        module, _, leaf = ours.rpartition(".")
        if leaf == "att_weight":
            renamed[f"{module}.score.weight"] = value.t()
        elif leaf.startswith("att_weight"):
            scores.setdefault(module, {})[leaf] = value.t()
        else:
            renamed[ours] = value
    for module, vectors in scores.items():
        for layer, leaves in _SCORES.items():
            if missing := [leaf for leaf in leaves if leaf not in vectors]:
                raise InputError(f"The AASIST weights lack {missing[0]} of {module}; give a complete file.")
            renamed[f"{module}.{layer}.weight"] = torch.cat([vectors[leaf] for leaf in leaves])
    return renamed


def _rename(name: str, encoder: str) -> str:
    for pattern, ours in _PARTS:
        if found := re.match(pattern, name):
            groups = {key: int(number) for key, number in found.groupdict().items()}
            if "n" in groups:
                groups["n"] -= 1
            rest = name[found.end() :]
            head, dot, leaf = rest.partition(".")
            return ours.format(encoder=encoder, **groups) + _ATTENTION.get(head, head) + dot + leaf
    raise InputError(f"{name!r} is not a weight of AASIST; give a file of the public AASIST code.")


def load_official(model: nn.Module, path: str) -> None:
    """Load a published file (`AASIST.pth`, `AASIST-L.pth`) into `AASIST`, every weight. Raises InputError."""
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"model.pretrained={path} is not a file. Give the AASIST.pth of github.com/clovaai/aasist, or null."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file} cannot be read as weights ({type(error).__name__}): it is damaged, or a pointer to a file that "
            "was not fetched. Download it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} is not a state dict of tensors; give the AASIST.pth of github.com/clovaai/aasist.")
    given = state_from_official(state)
    wanted = model.state_dict()
    if names := sorted(set(given) ^ set(wanted)):
        side = "lacks" if names[0] in wanted else "has more than the model:"
        raise InputError(f"{file} {side} {names[0]} ({len(names)} names differ): give the weights of this model.")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise InputError(
                f"{file} has {name} of shape {tuple(value.shape)}, the model {tuple(wanted[name].shape)}: choose "
                "model=asvspoof/aasist for AASIST.pth, model=asvspoof/aasist_l for AASIST-L.pth."
            )
    model.load_state_dict(given, strict=True)
