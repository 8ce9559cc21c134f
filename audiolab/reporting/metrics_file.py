"""metrics.csv: one row a step, appended to as training goes, in order of the steps."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

STEP = "step"


class MetricsFile:
    """Adds values at steps to a CSV file: `step` first, then the names in alphabetical order.

    A row is on disk when `save` returns and only the last one is ever written again, so a killed process loses nothing
    and a long run costs no more a row than a short one. The whole file is copied, and replaced at once, only where a
    new name asks for a column or a step comes late. What a file holds after the first step that is added to it was
    logged by a killed run after its checkpoint, and leaves: the resumed run will log it again. A last line that was cut
    off in the middle leaves too.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> for step, loss in ((1, 0.5), (2, 0.25)):
    ...     file = MetricsFile(path)
    ...     file.add(step, {"loss": loss})
    ...     file.save()
    >>> path.read_text().split()
    ['step,loss', '1,0.5', '2,0.25']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = [STEP]
        self._row: dict[str, str] = {}  # the last one of the file
        self._row_start = self._step = 0
        self._changed = self._goes_on = False
        if path.is_file():
            self._take_stock()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Set values at a step; a later value of the same step and name replaces the earlier one."""
        texts = {name: repr(float(value)) for name, value in values.items()}
        if self._goes_on and step < self._step:
            self._copy(row for row in self._rows() if int(row[STEP]) <= step)
        self._goes_on = False
        if self._row and step < self._step:
            self._add_late(step, texts)
            return
        if self._row and step > self._step:
            self.save()
            self._row_start = self.path.stat().st_size
            self._row = {}
        self._step = step
        self._row |= {STEP: str(step), **texts}
        self._changed = True

    def save(self) -> None:
        """Write what was added since."""
        if not self._changed:
            return
        if not set(self._row) <= set(self._columns) or not self.path.is_file():
            done = [row for row in self._rows() if int(row[STEP]) != self._step] if self.path.is_file() else []
            self._copy([*done, self._row])
        else:
            with self.path.open("r+b") as file:
                file.seek(self._row_start)
                file.write(self._line(self._row))
                file.truncate()
        self._changed = False

    def _add_late(self, step: int, texts: dict[str, str]) -> None:
        self.save()
        rows = {int(row[STEP]): row for row in self._rows()}
        rows[step] = {**rows.get(step, {STEP: str(step)}), **texts}
        self._copy(rows[number] for number in sorted(rows))

    def _copy(self, rows: Iterable[dict[str, str]]) -> None:
        """Replace the file by one with these rows."""
        kept = list(rows)
        names = {name for row in kept for name in row} - {STEP}
        self._columns = [STEP, *sorted(names)]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(self._line({name: name for name in self._columns}))
            self._row_start = file.tell()
            for row in kept:
                self._row_start = file.tell()
                file.write(self._line(row))
        temporary.replace(self.path)
        self._row = dict(kept[-1]) if kept else {}
        self._step = int(self._row.get(STEP, 0))

    def _take_stock(self) -> None:
        """Find columns and last row of a file that is there; a line that was cut off is left to be overwritten."""
        with self.path.open("rb") as file:
            position, header = 0, True
            for line in file:
                if not line.endswith(b"\n"):
                    break
                cells = next(csv.reader([line.decode("utf-8")]))
                if header:
                    self._columns, header = cells, False
                else:
                    self._row_start, last = position, cells
                    self._row = {name: cell for name, cell in zip(self._columns, last, strict=False) if cell}
                position += len(line)
        if position < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(position)
        if header:  # nothing in it
            self.path.unlink()
        self._step = int(self._row.get(STEP, 0))
        self._goes_on = True

    def _rows(self) -> Iterator[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {name: cell for name, cell in row.items() if cell}

    def _line(self, row: Mapping[str, str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        return text.getvalue().encode()


def read_metrics(path: Path) -> pd.DataFrame:
    """Return metrics.csv, one row a step: NaN where nothing was logged, infinity where a value was not finite.

    A last line that was cut off is left out.
    """
    text = path.read_bytes()
    header, _, rows = text[: text.rfind(b"\n") + 1].partition(b"\n")
    return pd.read_csv(io.BytesIO(header + b"\n" + re.sub(rb"(?<=,)nan(?=[,\r\n])", b"inf", rows)))
