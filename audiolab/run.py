"""Run an experiment: python -m audiolab.run task=asvspoof"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from audiolab import config as conf
from audiolab.cluster import started_by_launcher
from audiolab.command import run_command
from audiolab.errors import InputError

USAGE = """\
python -m audiolab.run task=<task> [option=value ...]       train and evaluate
python -m audiolab.run experiment=<task>/<recipe> ...       a full recipe
python -m audiolab.run -m task=<task> seed=0,1,2 ...        a sweep over every combination

options:
  model= data= augment= loss= trainer= logger= callbacks=   choose a file of conf/<group>/
  <section>.<option>=<value>                                change one value, e.g. data.root=/corpora/LA
  seed=<int>  name=<run folder's name>  outputs=<folder>    the same command with the same name= goes on or is skipped
  init.weights=<run folder, .ckpt, .safetensors>            start from trained weights (fine-tuning)
  plan=true                                                 print parameters, memory, steps and hours; train nothing
flags:
  -m, --multirun      expand comma lists into a sweep       --config-dir DIR    your own config files
  --cfg               print the composed configuration      -h, --help          this text
"""


def main(argv: Sequence[str]) -> int:
    """List the tasks, show help, or run what the options describe; returns the exit code."""
    flags, overrides, config_dir = _split(argv)
    if "help" in flags or not overrides:
        _print_overview(full="help" in flags)
        return 0
    swept = conf.expand(overrides)[1] if "multirun" in flags else []
    if "multirun" not in flags and conf.value_of(overrides, "hydra/launcher"):
        raise InputError("hydra/launcher= starts the jobs of a sweep: add -m, also for a single job")
    if conf.value_of(overrides, "name") is None and started_by_launcher():
        raise InputError("started by torchrun or srun: give name=, so that all processes share one run folder")
    recipe = conf.default_recipe(overrides)
    name = conf.value_of(overrides, "name") or f"{recipe.replace(',', '+')}-{datetime.now():%Y%m%d-%H%M%S}"
    conf.check_name(name)
    if "multirun" not in flags:
        config = conf.compose_run(overrides, name, config_dir, gaps="cfg" in flags)
        if "cfg" in flags:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
            return 0
        from audiolab.launch import launch

        launch(config)
        return 0
    from audiolab.sweep import run_sweep

    return run_sweep(overrides, swept, name, config_dir)


def _split(argv: Sequence[str]) -> tuple[set[str], list[str], str | None]:
    known = {"-m": "multirun", "--multirun": "multirun", "-h": "help", "--help": "help", "--cfg": "cfg"}
    flags, overrides, config_dir = set(), [], None
    words = iter(argv)
    for word in words:
        if word in known:
            flags.add(known[word])
        elif word in ("--config-dir", "-cd") or word.startswith("--config-dir="):
            config_dir = word.partition("=")[2] or next(words, None)
            if config_dir is None:
                raise InputError("--config-dir needs a folder")
        elif word.startswith("-"):
            close = conf.nearest(word, [*known, "--config-dir"], num=1)
            raise InputError(f"{word} is not a flag; " + (f"did you mean {close[0]}?" if close else "see --help"))
        else:
            overrides.append(word)
    return flags, conf.quoted(overrides), config_dir


def _print_overview(full: bool) -> None:
    folder = conf.config_folder()
    print("audiolab: speech experiments\n\ntasks:")
    for task in conf.choices("task", [folder]):
        print(f"  task={task:<18} {conf.describe('task', task)}")
    experiments = conf.choices("experiment", [folder])
    if experiments:
        print("recipes:")
        for name in experiments:
            print(f"  experiment={name:<24} {conf.describe('experiment', name)}")
    print(
        "\n" + USAGE if full else "\nTry: python -m audiolab.run task=asvspoof      (all options: --help)",
        end="" if full else "\n",
    )


if __name__ == "__main__":
    run_command(main, trains=True)
