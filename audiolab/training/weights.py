"""Weights alone: as safetensors, which cannot carry code, to the bit; loaded strictly, or as far as is allowed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audiolab.errors import InputError, RunError
from audiolab.training.checkpoints import read_checkpoint
from audiolab.training.sharding import load_state

_SHARED = "shared"  # metadata: {name: the name under which the same tensor is stored}
_SHOWN = 3  # names of a list
_MOST_PATTERNS = 8  # of a proposal for allow_missing


def write_weights(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write weights with `facts` as metadata, completely or not at all; the same weights and facts give the same bytes.

    A tensor that several names share (tied weights) is stored once. Raises RunError where the disk does not take it.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, tied = Path(folder) / "model.safetensors", torch.ones(2)
    ...     write_weights(path, {"embed": tied, "out": tied}, {"task": "asvspoof"})
    ...     sorted(read_weights(path)), read_facts(path)
    (['embed', 'out'], {'task': 'asvspoof'})
    """
    stored, shared = _without_shared(weights)
    metadata = {**facts, "format": "pt", **({_SHARED: json.dumps(shared)} if shared else {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as for any file here; safetensors alone would make it ours only
        save_file(stored, temporary, metadata)
        temporary.chmod(mode)
        _sort_header(temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} cannot be written ({str(error).splitlines()[0]}): is the disk full or read-only? Make room and "
            "start the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a .safetensors file or a checkpoint, on the CPU, shared ones under all their names.

    Raises InputError for a file that is damaged, that would run code, or that holds no weights.
    """
    if path.suffix != ".safetensors":
        weights = read_checkpoint(path)["state_dict"]
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise InputError(f"{path} holds no weights: its state_dict is not one of tensors alone")
        return weights
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a .safetensors file of weights")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
            shared = json.loads((file.metadata() or {}).get(_SHARED, "{}"))
        return weights | {name: weights[stored] for name, stored in shared.items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({type(error).__name__}: {str(error)[:150]}): it is damaged or not "
            "complete; copy it again from its source"
        ) from error


def read_facts(path: Path) -> dict[str, str]:
    """Return what `write_weights` was told about the weights: task, recipe, name, version, digest of the config."""
    with safe_open(path, framework="pt") as file:
        return {name: value for name, value in (file.metadata() or {}).items() if name not in (_SHARED, "format")}


def load_weights(module: nn.Module, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Load a file's weights (or `weights`, read from it before) into a module, every name and shape alike.

    Raises InputError that names what differs, as it does when the file belongs to another model.
    """
    weights = read_weights(path) if weights is None else weights
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or unexpected or reshaped:
        facts = []
        for label, names in (("missing", missing), ("unknown", unexpected), ("of another shape", reshaped)):
            if names:
                facts.append(f"{len(names)} {label} (first: {names[0]})")
        raise InputError(
            f"{path} holds weights of another model: {', '.join(facts)} among {len(own)} names; "
            "give the checkpoint that belongs to this run's config.yaml"
        )
    load_state(module, weights)


def start_from(
    module: nn.Module,
    path: Path,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    weights: Mapping[str, Tensor] | None = None,
) -> str:
    """Load what a module has in common with a file's weights, and return a sentence on what was left out.

    `weights` are those of the file where they were read, and renamed, before.

    Patterns are the beginnings of names, `*` in them stands for anything. Names that `allow_missing` matches may be
    missing from the file or have another shape there, and keep the module's own values; names that `allow_unexpected`
    matches may be in the file only. The base layer of an adapter (peft's `x.base_layer.weight`) is filled from
    `x.weight`. Raises InputError for a difference that is not allowed, and for a pattern that allows nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "w.safetensors"
    ...     write_weights(path, {"0.weight": nn.Linear(2, 2).weight}, {})
    ...     start_from(nn.Sequential(nn.Linear(2, 2)), path, allow_missing=["0.b"]).replace(folder, "")
    '1 of 2 names start from /w.safetensors; 1 keep their own start: 0.bias'
    """
    weights, own = read_weights(path) if weights is None else weights, module.state_dict()
    source = {name: name if name in weights else name.replace(".base_layer.", ".") for name in own}
    missing = [name for name in own if source[name] not in weights]
    found = [name for name in own if source[name] in weights]
    reshaped = [name for name in found if own[name].shape != weights[source[name]].shape]
    unexpected = sorted(set(weights) - set(source.values()))
    shapes = {name: f" {_shape(weights[source[name]])}, here {_shape(own[name])}" for name in reshaped}
    problems = []
    for option, patterns, everything, kinds in (
        ("allow_missing", allow_missing, own, {"missing there": missing, "of another shape there": reshaped}),
        ("allow_unexpected", allow_unexpected, weights, {"without a place in this model": unexpected}),
    ):
        refused = {what: [name for name in names if not _matching(name, patterns)] for what, names in kinds.items()}
        told = [
            f"{len(names)} {what} (first: {names[0]}{shapes.get(names[0], '')})"
            for what, names in refused.items()
            if names
        ]
        if told:
            differing = [name for names in kinds.values() for name in names]
            needed = beginnings([name for names in refused.values() for name in names], differing, everything)
            others = [pattern for pattern in patterns if not pattern.startswith(tuple(needed))]
            problems.append(f"{' and '.join(told)}, which init.{option}=[{','.join([*others, *needed])}] allows")
    if problems:
        raise InputError(f"init.weights={path} does not fit this model of {len(own)} names: {'; '.join(problems)}")
    without = {*missing, *reshaped}
    kept = [name for name in own if name in without]
    _refuse_idle("allow_missing", allow_missing, kept, f"missing from {path}")
    _refuse_idle("allow_unexpected", allow_unexpected, unexpected, f"only in {path}")
    if len(kept) == len(own):
        raise InputError(f"init.weights={path} has nothing in common with this model: give weights of such a model")
    module.load_state_dict({name: own[name] if name in without else weights[source[name]] for name in own})
    told = [f"{len(own) - len(kept)} of {len(own)} names start from {path}"]
    told += [f"{len(kept)} keep their own start: {_some(kept)}"] if kept else []
    told += [f"{len(unexpected)} of the file are left out: {_some(unexpected)}"] if unexpected else []
    return "; ".join(told)


def beginnings(wanted: Sequence[str], differing: Sequence[str], everything: Iterable[str]) -> list[str]:
    """Return few and short beginnings of names for all that are wanted, and for none that does not differ.

    Where they would be many, shorter ones stand for them that also fit names which do not differ.

    >>> beginnings(["model.a.x", "model.a.y", "model.b.x"], ["model.a.x", "model.a.y", "model.b.x"], ["model.b.y"])
    ['model.a.', 'model.b.x']
    """
    different = set(differing)
    same = {start for name in everything if name not in different for start in _starts(name)}
    found = list(dict.fromkeys(next((s for s in _starts(name) if s not in same), name) for name in wanted))
    for depth in range(max(name.count(".") for name in found), 1, -1):
        if len(found) > _MOST_PATTERNS:
            found = list(dict.fromkeys(name if name.count(".") < depth else _starts(name)[depth - 1] for name in found))
    return found


def _starts(name: str) -> list[str]:
    """Return the beginnings of a name that end with a dot, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[:number]) + "." for number in range(1, len(parts))]


def _refuse_idle(option: str, patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """Raise InputError for a pattern that allows nothing: it is misspelt, or hides what a later file lacks."""
    for pattern in patterns:
        if not any(_matching(name, [pattern]) for name in names):
            there = f"which {'is' if len(names) == 1 else 'are'} {_some(names)}" if names else "as nothing is"
            raise InputError(f"init.{option}: {pattern!r} matches nothing that is {what}, {there}: leave it out")


def _matching(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"{pattern}*") for pattern in patterns)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _without_shared(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, none sharing memory with another, and the names that stand for one of them."""
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in weights.items():
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and same in first:
            shared[name] = first[same]
        else:
            first[same] = name
            storage = tensor.untyped_storage()
            alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
            storages.add(storage.data_ptr())
            stored[name] = (tensor if alone else tensor.clone()).detach().contiguous()  # else a view
    return stored, shared


def _sort_header(path: Path) -> None:
    """Bring the header's entries, whose order safetensors draws anew in each process, into that of their names."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise SafetensorError(f"the header of {length} bytes became one of {len(text)}")
        file.seek(8)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
