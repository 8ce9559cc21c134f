"""What the user gave wrong, as findings, so that one fault does not keep the other checks from being made."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from audiolab.errors import InputError
from audiolab.preflight.findings import Finding


class Faults:
    """Context, used again and again: an InputError becomes a finding of the options, each sentence once.

    `known` are the sentences that are told of, here or elsewhere.

    >>> faults = Faults()
    >>> for _ in range(2):
    ...     with faults:
    ...         raise InputError("data.root=x does not exist")
    >>> [finding.found for finding in faults.findings]
    ['data.root=x does not exist']
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.known: set[str] = set()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, InputError):
            return False
        if str(error) not in self.known:
            self.known.add(str(error))
            self.findings.append(Finding("configuration", "options", "problem", str(error)))
        return True


@contextlib.contextmanager
def no_warnings_of(name: str) -> Iterator[None]:
    """Let a logger pass errors only."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
