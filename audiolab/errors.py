"""The one error that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave (an option, a file, a folder) cannot be used.

    The message is one or two plain sentences: the fact with the file, line or option it is about, the cause, and
    what to do. Every verb prints it without a stack trace and exits with code 2.
    """


class UndefinedMetricError(InputError):
    """The estimates leave a metric undefined, as those of a model that has learned nothing yet may.

    While a model is trained such an evaluation counts as not measured; anywhere else it is an error like any other.
    """
