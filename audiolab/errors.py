"""How a command fails in a sentence: by what was typed or given, or by what happened to a run."""

from __future__ import annotations

EXIT_FAILED, EXIT_INPUT, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 2, 75, 130  # 75: "try again later" of sysexits.h


class InputError(ValueError):
    """What the user gave (an option, a file, a folder) cannot be used.

    The message is one or two plain sentences: the fact with the file, line or option it is about, the cause, and
    what to do. Every verb prints it without a stack trace and exits with code 2.
    """


class UndefinedMetricError(InputError):
    """The estimates leave a metric undefined, as those of a model that has learned nothing yet may.

    While a model is trained such an evaluation counts as not measured; anywhere else it is an error like any other.
    """


class RunError(RuntimeError):
    """What stopped a run although nothing was typed wrong: a full disk, a loss that is not finite, a killed worker.

    One or two sentences: the fact, its likely cause, and how to go on. Verbs print it and exit with code 1;
    the trace is in run.log.
    """


class OutOfMemory(RunError):  # noqa: N818 - what happened, not a name for it
    """The memory of the device or machine did not suffice for a batch."""


class Preempted(RunError):  # noqa: N818
    """A signal asked the run to stop (SIGTERM, or a cluster's warning) and its state was written: exit code 75."""
