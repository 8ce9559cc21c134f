"""From the command line to one plain dict, with Hydra; a wrong option is answered with the nearest right one.

Only the standard library and Hydra are imported here, so that `--help` is quick.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors reach our own handler instead of being printed by Hydra

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiolab.errors import InputError

WORDS = {"on_out_of_memory": ("stop", "halve_batch")}
"""Options of run.yaml that take one of a few words."""
_NONE = {
    "logger": "give logger=[] for a run without loggers",
    "callbacks": "give callbacks=[] for a run without callbacks, or ~callbacks.<name> to leave out one",
    "experiment": "leave it out",
}
GROUPS = ("task", "experiment", "model", "data", "augment", "loss", "schedule", "trainer", "logger", "callbacks")


def config_folder() -> Path:
    """Return the folder of our YAML files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def choices(group: str, folders: Iterable[Path]) -> list[str]:
    """Return the names that `group=` accepts, in the given config folders."""
    names = set()
    for folder in folders:
        for path in (folder / group).rglob("*.yaml"):
            names.add(path.relative_to(folder / group).with_suffix("").as_posix())
    return sorted(names)


def describe(group: str, name: str, folder: Path | None = None) -> str:
    """Return the first comment of a config file: what it is, in a line."""
    lines = ((folder or config_folder()) / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ").strip() for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "")


def nearest(word: str, known: Iterable[str], num: int = 2) -> list[str]:
    """Return known names that `word` may be a slip for, the likeliest first.

    >>> nearest("asvspof", ["asvspoof", "emotion"])
    ['asvspoof']
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=num, cutoff=0.6)
    tails = [name for name in known if name.rpartition("/")[2] == word.rpartition("/")[2]]
    tails += [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
    return list(dict.fromkeys([*tails, *close]))[:num]


def quoted(overrides: Sequence[str]) -> list[str]:
    """Quote the values that Hydra's grammar has no place for and that can only be meant as they are: unusual paths.

    >>> quoted(["data.root=/corpora/Müller [1]", "seed=0,1"])
    ["data.root='/corpora/Müller [1]'", 'seed=0,1']
    """
    return [_quoted(text) for text in overrides]


def _quoted(text: str) -> str:
    key, _, value = text.partition("=")
    if "${" in value or value.startswith(tuple("[{'\"")) or ("/" not in value and value.isascii()):
        return text
    try:
        OverridesParser.create().parse_override(text)
        return text
    except HydraException:
        return f"{key}={quote(value)}"


def quote(value: str) -> str:
    """Write a text in Hydra's grammar so that it is taken as it is.

    >>> quote("O'Neil")
    "'O\\\\'Neil'"
    """
    backslashes = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{backslashes}'"


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse `key=value` arguments with Hydra's grammar."""
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise InputError(f"{text!r} is not an option: options have the form key=value, as in task=asvspoof seed=1")
    parsed = []
    for text in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            key = text.partition("=")[0]
            raise InputError(
                f"the value of {key} in {text!r} cannot be read ({_first_line(error)}): quote it, as in '{key}=\"...\"'"
            ) from error
    return parsed


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """Return the last value given for `key`, as text."""
    given = [override for override in parse(overrides) if override.key_or_group == key]
    if not given:
        return None
    value = None if given[-1].is_delete() else given[-1].value()
    return value if isinstance(value, str) else given[-1].get_value_element_as_str()


def expand(overrides: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Expand a sweep into the overrides of its jobs, and name the swept keys.

    >>> expand(["task=a", "seed=1,2"])
    ([['task=a', 'seed=1'], ['task=a', 'seed=2']], ['seed'])
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = parse(overrides)
    swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
    try:
        return BasicSweeper.split_arguments(parsed, None)[0], swept
    except HydraException as error:
        raise InputError(f"this sweep cannot be expanded: {error}") from error


def compose(overrides: Sequence[str], config_dir: str | None = None, *, gaps: bool = False) -> dict[str, Any]:
    """Compose conf/run.yaml with overrides into a resolved plain dict; with `gaps`, missing values stay `???`.

    Raises InputError, one sentence with the nearest valid name, for an unknown group, name or option, for a value that
    cannot be read and for a mandatory value that is missing.
    """
    folders = [config_folder()]
    if config_dir is not None:
        folders.append(Path(config_dir).resolve())
        if not folders[-1].is_dir():
            raise InputError(
                f"--config-dir {config_dir} is not a folder: give the one that holds your task/, model/ ..."
            )
    parsed = parse(overrides)
    if not {"task", "experiment"} & {override.key_or_group for override in parsed}:
        close = [o.key_or_group for o in parsed if nearest(o.key_or_group, ("task", "experiment"))]
        hint = f"did you mean {nearest(close[0], ('task', 'experiment'))[0]}= instead of {close[0]}=?" if close else ""
        raise InputError(
            f"no task is chosen; {hint or 'give task= with one of ' + ', '.join(choices('task', folders))}"
        )
    for override in parsed:
        if override.is_sweep_override():
            raise InputError(
                f"{override.input_line} lists several values: add -m to run them all as a sweep, or quote "
                f"a comma that belongs to the value: {override.key_or_group}='\"...\"'"
            )
        _check_choice(override, folders)
    try:
        config = _hydra(overrides, folders)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing and not gaps:
            raise InputError(f"{missing[0]} has no value: give {missing[0]}=...")
        return OmegaConf.to_container(config, resolve=not missing)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, parsed, overrides, folders) from error


def compose_run(
    overrides: Sequence[str], name: str, config_dir: str | None = None, *, gaps: bool = False
) -> dict[str, Any]:
    """Compose the plain dict of one run named `name`; a job of a sweep is named `<sweep>/<job>`."""
    config = compose(
        [text for text in overrides if not text.startswith(("name=", "hydra.", "hydra/"))], config_dir, gaps=gaps
    )
    config = {"logger": None, "callbacks": None, **config}  # logger=[] leaves nothing behind
    check_words(config)
    return {**config, "name": name, "recipe": config["recipe"] or default_recipe(overrides)}


def check_words(config: Mapping[str, Any]) -> None:
    """Raise InputError where an option of `WORDS` has another value; runs from before there was one lack it.

    >>> check_words({"on_out_of_memory": "halve"})
    Traceback (most recent call last):
    audiolab.errors.InputError: on_out_of_memory=halve is unknown: give stop or halve_batch
    """
    for option, words in WORDS.items():
        if config.get(option, words[0]) not in words:
            raise InputError(f"{option}={config[option]} is unknown: give {' or '.join(words)}")


def _hydra(overrides: Sequence[str], folders: Sequence[Path]) -> Any:
    search = (
        [f"hydra.searchpath=[{','.join(quote(f'file://{folder}') for folder in folders[1:])}]"] if folders[1:] else []
    )
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        return hydra_compose("run", [*overrides, *search])


def _check_choice(override: Override, folders: Sequence[Path]) -> None:
    group = override.key_or_group
    if group not in GROUPS or override.is_delete():
        return
    value = override.value()
    if value is None or (value == [] and group not in _NONE):
        instead = _NONE.get(group, f"give one of {', '.join(choices(group, folders))}")
        raise InputError(f"{override.input_line} does not fit: {instead}")
    for name in value if isinstance(value, list) else [value]:
        names = choices(group, folders)
        if name is not None and str(name) not in names:
            close = nearest(str(name), names)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
            raise InputError(f"{group}={name}: no {group} has this name; {hint}")


def _explained(
    error: Exception, parsed: Sequence[Override], texts: Sequence[str], folders: Sequence[Path]
) -> InputError:
    """Say which option is wrong: try the overrides without each one in turn, and look its key up in the rest."""
    order = sorted(
        range(len(parsed)), key=lambda i: parsed[i].key_or_group in GROUPS
    )  # a config that is there is right
    for number in order:
        override = parsed[number]
        rest = [text for i, text in enumerate(texts) if i != number]
        try:
            config = OmegaConf.to_container(_hydra(rest, folders), resolve=False)
        except (HydraException, OmegaConfBaseException):
            continue
        key = override.key_or_group
        known = [*option_names(config), *GROUPS]
        if key in known or override.is_add():
            return InputError(f"{override.input_line} does not fit: {_first_line(error)}")
        close = nearest(key, known)
        section = key.rpartition(".")[0]
        inside = [name for name in known if name.rpartition(".")[0] == section]
        hint = (
            f"did you mean {' or '.join(close)}?" if close else f"{section or 'the top level'} has {', '.join(inside)}"
        )
        if section in known and not inside:
            hint = f"{section} has no options with this choice of configs"
        elif section and not inside and not close:
            hint = f"the sections are {', '.join(name for name in known if '.' not in name)}"
        return InputError(f"{key} is not an option of this run; {hint}")
    return InputError(f"the configuration does not fit together: {_first_line(error)}")


def _first_line(error: BaseException | None) -> str:
    """Return the first words that an error, or the one it comes from, has to say."""
    while error is not None and not str(error).strip():
        error = error.__cause__
    return str(error).strip().splitlines()[0] if error is not None else "no reason given"


def option_names(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all options and sections of a composed config.

    >>> option_names({"data": {"root": "x"}, "seed": 0})
    ['data', 'data.root', 'seed']
    """
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names += option_names(value, f"{prefix}{key}.")
    return names


def default_recipe(overrides: Sequence[str]) -> str:
    """Return what the run is called in tables: its experiment, else its model or task, without the task's folder."""
    for key in ("experiment", "model", "task"):
        value = value_of(overrides, key)
        if value and value != "null":
            return value.rpartition("/")[2]
    return "run"


def check_name(name: str) -> str:
    """Return `name` if it can name a run folder, else raise InputError."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise InputError(f"name={name!r} cannot name a folder: use letters, digits, '.', '_', '+' and '-'")
    return name


def job_name(job: Sequence[str], swept: Sequence[str]) -> str:
    """Name a job of a sweep after its swept options, fit for a folder.

    >>> job_name(["task=a", "data.fold=1", "seed=2"], ["data.fold", "seed"])
    'data.fold-1_seed-2'
    """
    options = job_options(job, swept)
    name = "_".join(re.sub(r"[^\w.+-]+", "-", f"{key}-{value}") for key, value in options.items())
    return name or "job"


def job_options(job: Sequence[str], swept: Sequence[str]) -> dict[str, str]:
    """Return the swept options of a job with their values."""
    pairs = (text.partition("=")[::2] for text in job)
    return {key.lstrip("+"): value for key, value in pairs if key.lstrip("+") in swept}
