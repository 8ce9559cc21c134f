"""Go on with a run that was stopped: python -m audiolab.resume outputs/<task>/<name>"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from audiolab.command import run_command


def main(argv: Sequence[str]) -> None:
    """Train and evaluate what is left of a run."""
    parser = argparse.ArgumentParser(prog="python -m audiolab.resume", description=__doc__)
    parser.add_argument("run", help="the run folder")
    arguments = parser.parse_args(argv)
    from audiolab.folder import RunFolder
    from audiolab.launch import resume

    resume(RunFolder.open(arguments.run))


if __name__ == "__main__":
    run_command(main)
