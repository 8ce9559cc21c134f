"""Go on with a run that was stopped: python -m audiolab.resume outputs/<task>/<name> [on_out_of_memory=halve_batch]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from audiolab.command import run_command


def main(argv: Sequence[str]) -> None:
    """Train and evaluate what is left of a run."""
    parser = argparse.ArgumentParser(prog="python -m audiolab.resume", description=__doc__)
    parser.add_argument("run", metavar="outputs/<task>/<name>", help="the run folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="option=value",
        help="on_out_of_memory=stop|halve_batch; all else stays as it was",
    )
    arguments = parser.parse_intermixed_args(argv)
    from audiolab import config as conf
    from audiolab.folder import RunFolder
    from audiolab.launch import resume

    run = RunFolder.open(arguments.run)
    changed = {override.key_or_group: override.value() for override in conf.parse(arguments.overrides)}
    run.change(changed)
    resume(run)


if __name__ == "__main__":
    run_command(main, trains=True)
