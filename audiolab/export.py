"""Write what others need to use a run, a tenth of its size: python -m audiolab.export outputs/<task>/<name> -o folder/

The folder works as a run folder for predict, test and audiolab.load, on a machine without the corpus, and starts other
runs with init.weights=<folder>. Of folders of this machine only the last name is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiolab.command import run_command
from audiolab.errors import InputError, RunError
from audiolab.reporting.scores import check_writable

if TYPE_CHECKING:
    from audiolab.folder import RunFolder

_CHECKSUMS = "SHA256SUMS"


def main(argv: Sequence[str]) -> int:
    """Write the folder and print what is in it; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m audiolab.export", description=__doc__, formatter_class=raw)
    parser.add_argument("run", metavar="outputs/<task>/<name>", help="the run folder")
    parser.add_argument("-o", "--out", help="the folder to make (default: <run>/export/<name>)")
    arguments = parser.parse_args(argv)
    export(arguments.run, out=arguments.out)
    return 0


def export(run_folder: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the weights of a run's best checkpoint and what describes them to a folder, and return it.

    Files: config.yaml, model.json, code.json, metrics.json, README.md, SHA256SUMS, checkpoints/model.safetensors and
    checkpoints/calibration.json, as far as the run has them. The folder appears complete or not at all. One that holds
    exactly this already stays as it is; any other content raises InputError.
    """
    from audiolab.folder import RunFolder

    run = RunFolder.open(run_folder)
    checkpoint = run.best_checkpoint
    folder = Path(out) if out else run.path / "export" / run.path.resolve().name
    check_writable(folder)
    if run.results is None:
        print(f"{run.path} is not finished: this is {checkpoint.name} as it is now, without metrics of a final test")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    try:
        _write(run, checkpoint, temporary)
        (temporary / _CHECKSUMS).write_text(_checksums(temporary), encoding="utf-8")
        there = folder.is_dir() and any(folder.iterdir())
        if there and _checksums(folder) != _checksums(temporary):
            raise InputError(
                f"{folder} holds something else ({_first_other(folder, temporary)}): give another folder with -o, or "
                "delete it"
            )
        if not there:
            temporary.replace(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _tell(run, checkpoint, folder, there)
    return folder


def _write(run: RunFolder, checkpoint: Path, folder: Path) -> None:
    from omegaconf import OmegaConf

    from audiolab.build import locate
    from audiolab.folder import RunFolder
    from audiolab.reporting.model_card import model_card
    from audiolab.reporting.scores import write_text
    from audiolab.training.weights import read_facts, read_weights, write_weights

    weights = read_weights(checkpoint)
    config = run.portable_config
    copy = RunFolder(folder, config)
    facts = read_facts(checkpoint) if checkpoint == run.weights_path else run.facts_of(checkpoint)
    write_weights(copy.weights_path, weights, facts)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    copy.keep_model(run.standalone_config["model"])
    if run.calibration is not None:
        copy.calibrate(run.calibration)
    if run.results is not None:
        copy.finish(run.results)
    code = run.path / "code.json"
    if code.is_file():
        made_with = json.loads(code.read_text(encoding="utf-8"))
        write_text(folder / "code.json", json.dumps({k: v for k, v in made_with.items() if k != "host"}, indent=1))
    num_values = sum(value.numel() for value in weights.values())
    headline = locate(config["module"]["_target_"]).headline
    write_text(folder / "README.md", model_card(config, facts, run.results, headline, num_values))


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def _checksums(folder: Path) -> str:
    """Return the lines that `sha256sum --check` reads."""
    lines = []
    for name in _files(folder):
        if name.as_posix() != _CHECKSUMS:
            with (folder / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name.as_posix()}\n")
    return "".join(lines)


def _first_other(folder: Path, wanted: Path) -> str:
    """Name a file that is in one of two folders only, or differs."""
    differing = set(_checksums(folder).splitlines()) ^ set(_checksums(wanted).splitlines())
    return sorted(line.partition("  ")[2] for line in differing)[0]


def _tell(run: RunFolder, checkpoint: Path, folder: Path, there: bool) -> None:
    files = _files(folder)
    sizes = [(folder / name).stat().st_size for name in files]
    print("".join(f"{_size(size):>10}  {name}\n" for name, size in zip(files, sizes, strict=True)), end="")
    full = sum(path.stat().st_size for path in (run.path / "checkpoints").glob("*.ckpt"))
    print(f"{_size(sum(sizes)):>10}  in all, of {checkpoint.name}; the run's checkpoints have {_size(full)}")
    shortened = sorted(_changed(run.config, run.portable_config))
    if shortened:
        print(f"folders of this machine are left out of config.yaml: {', '.join(shortened)}")
    print(f"{'unchanged since an earlier export' if there else 'written'}: {folder}")
    print(f"next       python -m audiolab.predict {folder} my.wav")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _changed(before: object, after: object, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [found for key in before for found in _changed(before[key], after[key], f"{name}.{key}".lstrip("."))]
    return [name] if before != after else []


if __name__ == "__main__":
    run_command(main)
