"""Whether pretrained weights are there: a local file or folder that is complete, or a hub that answers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolab.errors import InputError
from audiolab.preflight.findings import Finding

GROUP, CHECK = "pretrained", "weights"
TIMEOUT_S = 5.0
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_FOLDER = "a local folder with config.json and model.safetensors"


def pretrained_options(section: Any, where: str = "model") -> Iterator[tuple[str, str]]:
    """Yield every option `pretrained` that has a value, with its dotted name.

    >>> list(pretrained_options({"front_end": {"pretrained": "microsoft/wavlm-large"}, "pretrained": None}))
    [('model.front_end.pretrained', 'microsoft/wavlm-large')]
    """
    for key, value in section.items() if isinstance(section, Mapping) else ():
        if key == "pretrained" and isinstance(value, str):
            yield f"{where}.{key}", value
        yield from pretrained_options(value, f"{where}.{key}")


def is_path(name: str) -> bool:
    """Whether the name of a model can only be that of a local file or folder.

    >>> [is_path(name) for name in ("microsoft/wavlm-large", "/models/wavlm", "~/wavlm", "a/b/c", "AASIST.pth")]
    [False, True, True, True, True]
    """
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(_SUFFIXES)


def refuse_missing(section: Any) -> None:
    """Raise InputError where an option `pretrained` of a model section names a local path that does not exist."""
    for where, name in pretrained_options(section):
        if is_path(name) and not Path(name).expanduser().exists():
            raise InputError(f"{where}={name} does not exist: {_remedy(where, name)}")


def _remedy(where: str, name: str) -> str:
    what = "a file that is there" if name.endswith(_SUFFIXES) else _FOLDER
    return f"give {what} as {where}, or {where}=null for random weights"


def check_pretrained(where: str, name: str, *, ask_hub: bool = True) -> Finding:
    """Check what an option names without loading it: a file, a folder, or, with `ask_hub`, a name on the hub."""
    path = Path(name).expanduser()
    if path.is_file():
        empty = path.stat().st_size == 0
        remedy = "copy it again" if empty else ""
        return Finding(
            GROUP, CHECK, "problem" if empty else "ok", f"{where}: {name}{' is empty' if empty else ''}", remedy
        )
    if path.is_dir():
        return _folder(where, name, path)
    if is_path(name):
        return Finding(GROUP, CHECK, "problem", f"{where}: {name} does not exist", _remedy(where, name))
    if not ask_hub:
        return Finding(GROUP, CHECK, "untried", f"{where}: {name} was not asked for (--quick)")
    return _hub(where, name)


def _folder(where: str, name: str, folder: Path) -> Finding:
    found = missing_of(folder)
    if found:
        return Finding(GROUP, CHECK, "problem", f"{where}: the folder {name} {found}", _remedy(where, name))
    return Finding(GROUP, CHECK, "ok", f"{where}: the folder {name} has config.json and weights")


def missing_of(folder: Path) -> str | None:
    """Say what a folder of a pretrained model lacks, by its names and the lengths that its files declare."""
    if not (folder / "config.json").is_file():
        return "has no config.json"
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            lacking = [part for part in parts if not (folder / part).is_file()]
            return f"lacks {len(lacking)} of {len(parts)} parts, the first is {lacking[0]}" if lacking else None
        if (folder / name).is_file():
            cut = name.endswith(".safetensors") and not is_whole(folder / name)
            return f"has a {name} that is cut off or damaged" if cut else None
    return f"has no weights ({' or '.join(_WEIGHTS)})"


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > path.stat().st_size:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _hub(where: str, name: str) -> Finding:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        cached = [try_to_load_from_cache(name, file) for file in ("config.json", *_WEIGHTS)]
        if isinstance(cached[0], str) and any(isinstance(file, str) for file in cached[1:]):
            return Finding(GROUP, CHECK, "ok", f"{where}: {name} is in the local Hugging Face cache")
        files = HfApi().model_info(name, timeout=TIMEOUT_S, files_metadata=True).siblings or []
    except RepositoryNotFoundError:
        found = f"{where}: the hub has no model {name}, or it is private and no token is set"
        return Finding(GROUP, CHECK, "problem", found, _remedy(where, name))
    except Exception as error:  # offline, no route, a time-out: whose classes change with the client's HTTP library
        found = (
            f"{where}: {name} is neither a folder here nor in the local Hugging Face cache, and the hub cannot be "
            f"reached ({type(error).__name__})"
        )
        return Finding(GROUP, CHECK, "problem", found, _remedy(where, name))
    sizes = {file.rfilename: file.size or 0 for file in files}
    size = next((sizes[weights] for weights in _WEIGHTS if weights in sizes), 0)
    shown = f" ({size / 2**30:.1f} GiB, downloaded when the run starts)" if size else ""
    return Finding(GROUP, CHECK, "ok", f"{where}: the hub has {name}{shown}")
