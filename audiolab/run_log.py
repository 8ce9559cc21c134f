"""run.log of a run folder."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from audiolab.cluster import rank
from audiolab.errors import Preempted


class _File(logging.FileHandler):
    """A log file that says nothing of its own troubles: on a full disk the run has a sentence for it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Let a line go that the disk does not take."""


class KeptWarnings(logging.Handler):
    """Context: keeps the warnings that are given before there is a run folder, for its run.log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._records.append(record)

    def __enter__(self) -> KeptWarnings:
        logging.getLogger("audiolab").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("audiolab").removeHandler(self)

    @property
    def sentences(self) -> list[str]:
        """What was kept, each once."""
        return list(dict.fromkeys(record.getMessage() for record in self._records))

    def write_to(self, path: Path) -> None:
        """Write what was kept to the end of a log file; where it cannot be written, the run has a sentence for it."""
        with suppress(OSError), log_to(path) as file:
            for record in self._records:
                file.handle(record)


class log_to:  # noqa: N801 - reads as a verb where it is used
    """Context: log messages and warnings also go to a file; of several processes the first speaks for all.

    What stops a process is written by each.
    """

    def __init__(self, path: Path) -> None:
        self.file = _File(path, encoding="utf-8", errors="backslashreplace")
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.handler = self.file if rank() == 0 else logging.NullHandler()
        self.loggers = [logging.getLogger(name) for name in ("audiolab", "lightning", "py.warnings")]

    def __enter__(self) -> logging.Handler:
        logging.captureWarnings(True)
        for logger in self.loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(self.handler)
        return self.handler

    def __exit__(self, *exception: object) -> None:
        if exception[1] is not None:
            message = "stopped" if rank() == 0 else f"stopped (process {rank()})"
            facts = {"name": "audiolab", "levelname": "ERROR", "msg": message, "exc_info": exception}
            if isinstance(exception[1], KeyboardInterrupt | Preempted):  # on purpose: where it was does not matter
                facts |= {"levelname": "INFO", "msg": f"{message}: {exception[1] or 'Ctrl-C'}", "exc_info": None}
            self.file.handle(logging.makeLogRecord(facts))  # to the file only: the terminal gets it anyway
        for logger in self.loggers:
            logger.removeHandler(self.handler)
        with suppress(OSError):  # what it still holds does not fit on a full disk
            self.file.close()
        logging.captureWarnings(False)
