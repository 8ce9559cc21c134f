"""A run folder: everything that is needed to resume, test, apply or judge a run, and nothing from outside it."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from audiolab import __version__
from audiolab import config as conf
from audiolab.build import locate
from audiolab.errors import InputError
from audiolab.lock import locked
from audiolab.nearby import runs_near
from audiolab.reporting.scores import write_text
from audiolab.training.checkpoint_files import LAST, newest_intact, remove_damaged, step_files

_PACKAGES = ("torch", "lightning", "hydra-core", "transformers", "numpy", "scipy", "soundfile")
WEIGHTS = "model.safetensors"  # in checkpoints/, the best weights alone
_NOT_SAVED = ("plan", "outputs")  # options of the command, not of the run
_MAY_CHANGE = ("on_out_of_memory",)  # options that a run may go on with otherwise than it was begun
_NEEDED = ("task", "name", "seed", "module", "model", "data", "augment", "loss")
_NEEDED += ("optimizer", "schedule", "trainer", "monitor")
_BEFORE_CONFIG = {"command.txt", "code.json"}  # what is there when a command was killed at its very start


class RunFolder:
    """`config.yaml`, `command.txt`, `code.json`, `run.log`, `checkpoints/`, `scores/`, `plots/`, `metrics.{csv,json}`.

    `config.yaml` is the only configuration ever read again; `metrics.json` is written last: it means finished.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder.

        Raises InputError when it is none, naming run folders nearby.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            near = [folder.as_posix() for folder in runs_near(path)]
            what = "is not a run folder: it has no config.yaml" if path.is_dir() else "does not exist"
            hint = f"; run folders nearby: {', '.join(near)}" if near else "; run folders are outputs/<task>/<name>"
            raise InputError(f"{path} {what}{hint}")
        try:
            config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        except Exception as error:
            raise InputError(
                f"{path / 'config.yaml'} cannot be read ({str(error).splitlines()[0]}): is it a run folder of audiolab?"
            ) from error
        if not isinstance(config, dict) or not {"task", "module", "model", "data"} <= set(config):
            raise InputError(
                f"{path / 'config.yaml'} is not the configuration of a run: give a folder made by audiolab.run"
            )
        return cls(path, config)

    def require_whole_config(self) -> None:
        """Raise InputError where config.yaml lacks a section that building the run needs: it was cut off or edited."""
        if "schedule" not in self.config and "warmup" in self.config.get("optimizer", {}):
            raise InputError(
                f"{self.path / 'config.yaml'} is of an older audiolab, which had the schedule under optimizer: move "
                "warmup, warmup_start and floor_lr from there to a section schedule, with "
                "_target_: audiolab.training.schedules.Cosine and no other change"
            )
        if missing := [name for name in _NEEDED if name not in self.config]:
            raise InputError(
                f"{self.path / 'config.yaml'} is not the whole configuration of a run, it lacks {', '.join(missing)}: "
                "copy it again from its source"
            )

    @staticmethod
    def path_of(config: dict[str, Any]) -> Path:
        """Return where a run with these options belongs: outputs/<task>/<name>."""
        return Path(config["outputs"]) / config["task"] / config["name"]

    @classmethod
    def create(cls, config: dict[str, Any]) -> RunFolder:
        """Make outputs/<task>/<name>, or open it when the same run was begun there before.

        Raises InputError when the folder belongs to a run with other options.
        """
        path = cls.path_of(config)
        saved = {key: value for key, value in config.items() if key not in _NOT_SAVED}
        try:
            path.mkdir(parents=True, exist_ok=True)
            with locked(path):
                if {file.name for file in path.iterdir() if not file.name.startswith(".")} - _BEFORE_CONFIG:
                    run = cls.open(path)
                    if run._goes_on_as(saved):
                        return run
                write_text(path / "command.txt", " ".join(sys.orig_argv) + "\n")
                write_text(path / "code.json", json.dumps(code_facts(), indent=1))
                write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)))
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): choose another folder with outputs="
            ) from error
        return cls(path, saved)

    def _is_same_as(self, saved: dict[str, Any]) -> bool:
        """Whether this is the run of a config, or False where it may be begun again as nothing was trained.

        Raises InputError where it was begun with other options, those aside that change no number.
        """
        differences = _differences(self.config, saved)
        of_data: Sequence[str] = ()
        if all(name in _MAY_CHANGE or name.startswith("data.") for name in differences) and differences:
            of_data = getattr(locate(saved["data"]["_target_"]), "options_without_effect", ())  # imports torch
        free = {*_MAY_CHANGE, *(f"data.{name}" for name in of_data)}
        differing = {name: text for name, text in differences.items() if name not in free}
        if differing and (self.path / "checkpoints").exists():
            first = sorted(differing, key=lambda name: name.startswith("data."))[:3]
            raise InputError(
                f"{self.path} holds a run with other options ({', '.join(differing[name] for name in first)}): "
                f"choose another name=, or delete the folder to start again"
            )
        return not differing

    def _goes_on_as(self, saved: dict[str, Any]) -> bool:
        """Whether this is the run of a config, which takes over options that change no number."""
        if not self._is_same_as(saved):
            return False
        if self.results is None and self.config != saved:
            self.config = saved
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)))
        return True

    @classmethod
    def begun(cls, config: dict[str, Any]) -> RunFolder | None:
        """Open the run of a config where it was begun before: quick, and nothing is written.

        Raises InputError when the folder belongs to a run with other options.
        """
        path = cls.path_of(config)
        if not (path / "config.yaml").is_file():
            return None
        run = cls.open(path)
        return run if run._is_same_as({key: value for key, value in config.items() if key not in _NOT_SAVED}) else None

    @classmethod
    def join(cls, config: dict[str, Any], patience_s: float = 60.0) -> RunFolder:
        """Open the folder that rank 0 of the same torchrun or srun job is making."""
        path = cls.path_of(config)
        deadline_s = time.monotonic() + patience_s
        saved = {key: value for key, value in config.items() if key not in _NOT_SAVED}
        while not (path / "config.yaml").is_file() or _differences(cls.open(path).config, saved):
            if time.monotonic() > deadline_s:  # options that differ may be of a run that rank 0 is about to replace
                raise InputError(
                    f"{path} did not appear with these options within {patience_s:.0f} s: did rank 0 fail, or see "
                    "another disk?"
                )
            time.sleep(0.1)
        return cls.open(path)

    def change(self, options: dict[str, Any]) -> None:
        """Go on with other values of the few options that a run may change, which its config.yaml then has.

        Raises InputError for any other option.
        """
        for name in options:
            if name not in _MAY_CHANGE:
                raise InputError(
                    f"{name} cannot be changed in a run that has begun, only {', '.join(_MAY_CHANGE)} can: "
                    "start a run of another name"
                )
        conf.check_words({**self.config, **options})
        if any(self.config.get(name) != value for name, value in options.items()):
            with locked(self.path):
                self.config = {**self.config, **options}
                write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))

    @property
    def results(self) -> dict[str, dict[str, float]] | None:
        """The final metrics by set, or None while the run is not finished."""
        return _read_json(self.path / "metrics.json", "delete it and resume the run, which evaluates it again")

    def finish(self, results: dict[str, dict[str, float]]) -> None:
        """Write the final metrics; the run counts as finished from here on."""
        write_text(self.path / "metrics.json", json.dumps(results, indent=1))
        remove_damaged(self.path / "checkpoints")

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What the task fitted on the development rows of the final evaluation, or None where there is nothing."""
        remedy = "delete it and metrics.json and resume the run, which evaluates it again"
        return _read_json(self.path / "checkpoints" / "calibration.json", remedy)

    @property
    def standalone_config(self) -> dict[str, Any]:
        """The config with a model that needs no pretrained weights, as the run's checkpoints hold them all."""
        remedy = "copy it again from its source, or delete it if the pretrained weights that config.yaml names are here"
        model = _read_json(self.path / "model.json", remedy)
        return {**self.config, **({} if model is None else {"model": model})}

    def keep_model(self, section: dict[str, Any]) -> None:
        """Store the model section of `standalone_config`."""
        write_text(self.path / "model.json", json.dumps(section, indent=1))

    def calibrate(self, calibration: dict[str, Any]) -> None:
        """Store a calibration beside the checkpoint it belongs to."""
        write_text(self.path / "checkpoints" / "calibration.json", json.dumps(calibration, indent=1))

    @property
    def best_checkpoint(self) -> Path:
        """What to evaluate and apply: `average.ckpt`, `best.ckpt`, the weights alone of one of them, else `last.ckpt`.

        Raises InputError when there is none.
        """
        if (path := self._best()) is None:
            raise InputError(
                f"{self.path} has no checkpoint yet: finish its training with python -m audiolab.resume {self.path}"
            )
        return path

    @property
    def has_weights(self) -> bool:
        """Whether there is a `best_checkpoint`."""
        return self._best() is not None

    def _best(self) -> Path | None:
        paths = (self.path / "checkpoints" / name for name in ("average.ckpt", "best.ckpt", WEIGHTS, "last.ckpt"))
        return next((path for path in paths if path.is_file()), None)

    @property
    def weights_path(self) -> Path:
        """Where the weights of the best checkpoint are kept alone."""
        return self.path / "checkpoints" / WEIGHTS

    @property
    def is_handed_over(self) -> bool:
        """Whether there are weights to apply but no state of the training: what `audiolab.export` makes."""
        damaged_too = (self.path / "checkpoints").glob("*.ckpt*")
        return self.weights_path.is_file() and not any(damaged_too)

    @property
    def portable_config(self) -> dict[str, Any]:
        """The config without folders of this machine: of an absolute path its last name is left."""
        return _without_folders(self.config)

    def facts_of(self, checkpoint: Path) -> dict[str, str]:
        """Return what goes with weights as text: task, recipe, name, version, digest of the portable config, origin."""
        config = self.portable_config
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        own = {key: str(config.get(key)) for key in ("task", "recipe", "name")}
        return {**own, "audiolab": __version__, "config_sha256": digest, "checkpoint": checkpoint.name}

    @property
    def has_checkpoint(self) -> bool:
        """Whether there are checkpoints to go on from; nothing is read or said."""
        folder = self.path / "checkpoints"
        return (folder / LAST).is_file() or bool(step_files(folder))

    @property
    def latest_checkpoint(self) -> Path | None:
        """The newest intact checkpoint to go on from, if any; damaged ones are set aside, said in a warning."""
        from audiolab.training.checkpoints import holds_objects  # needs torch

        return newest_intact(self.path / "checkpoints", refused=holds_objects)


def code_facts() -> dict[str, Any]:
    """Return commit, uncommitted changes, versions and host."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                encoding="utf-8",  # whatever the terminal's is
                errors="replace",
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    inside = git("rev-parse", "--show-toplevel") == str(root)
    return {
        "commit": git("rev-parse", "HEAD") if inside else None,
        "diff": git("diff", "HEAD") if inside else None,
        "python": platform.python_version(),
        "versions": {"audiolab": metadata.version("audiolab"), **{name: metadata.version(name) for name in _PACKAGES}},
        "host": socket.gethostname(),
        "platform": platform.platform(),
    }


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def _read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """Return what a file of the folder holds, None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = "it holds no object"
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        reason = str(error)
    raise InputError(f"{path} is damaged ({reason}): {remedy}")


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    def leaves(config: dict[str, Any]) -> dict[str, Any]:
        flat = {}
        for name in conf.option_names(config):
            value: Any = config
            for part in name.split("."):
                value = value[part] if isinstance(value, dict) and part in value else None
            if not isinstance(value, dict):
                flat[name] = value
        return flat

    before, after = leaves(old), leaves(new)
    return {
        name: f"{name}: {before.get(name)} there, {after.get(name)} now"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }
