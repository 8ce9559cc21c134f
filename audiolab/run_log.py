"""run.log of a run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from audiolab.cluster import rank


class log_to:  # noqa: N801 - reads as a verb where it is used
    """Context: log messages and warnings also go to a file; of several processes the first speaks for all.

    What stops a process is written by each.
    """

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.handler = self.file if rank() == 0 else logging.NullHandler()
        self.loggers = [logging.getLogger(name) for name in ("audiolab", "lightning", "py.warnings")]

    def __enter__(self) -> None:
        logging.captureWarnings(True)
        for logger in self.loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(self.handler)

    def __exit__(self, *exception: object) -> None:
        if exception[1] is not None:
            message = "stopped" if rank() == 0 else f"stopped (process {rank()})"
            facts = {"name": "audiolab", "levelname": "ERROR", "msg": message, "exc_info": exception}
            self.file.handle(logging.makeLogRecord(facts))  # to the file only: the terminal gets it anyway
        for logger in self.loggers:
            logger.removeHandler(self.handler)
        self.file.close()
        logging.captureWarnings(False)
