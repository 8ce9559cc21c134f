"""How every verb ends: errors for users are one sentence and exit code 2, failed runs 1, an interrupt is 130."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from audiolab.cluster import rank
from audiolab.errors import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_PREEMPTED, InputError, Preempted, RunError
from audiolab.training.signals import stop_before_training


def run_command(main: Callable[[Sequence[str]], int | None], *, trains: bool = False) -> None:
    """Call a verb's main with the command line and exit with its code; one that trains is stopped with a sentence."""
    if trains:
        stop_before_training()
    if rank() == 0:
        warn_on_terminal()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"audiolab: {error}", file=sys.stderr)
        code = EXIT_INPUT
    except RunError as error:
        print(f"audiolab: {error}", file=sys.stderr)
        code = EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)


def warn_on_terminal() -> None:
    """Show our warnings, which are for the user; a run's log file has everything."""
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    console.setFormatter(logging.Formatter("audiolab: %(message)s"))
    logging.getLogger("audiolab").addHandler(console)
