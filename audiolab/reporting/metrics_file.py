"""metrics.csv: one row a step, appended to as training goes, in order of the steps."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

STEP = "step"


class MetricsFile:
    """Adds values at steps to a CSV file: `step` first, then the names in alphabetical order.

    A row is on disk when `save` returns and only the last one is ever written again, so a killed process loses nothing
    and a row of a long run costs no more than one of a short run. The whole file is copied, and replaced at once, only
    where a new name asks for a column or a step comes late. What a file holds after the first step that is added to it
    was logged by a killed run after its checkpoint, and leaves: the resumed run will log it again. A last line that was
    cut off in the middle leaves too.

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
        self._row: dict[str, str] = {}  # the last one
        self._row_start = self._step = 0
        self._changed, self._goes_on = False, path.is_file()
        if self._goes_on:
            self._take_stock(math.inf)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Set values at a step; a later value of the same step and name replaces the earlier one."""
        row = {STEP: str(step), **{name: repr(float(value)) for name, value in values.items()}}
        if self._goes_on and step < self._step:
            self._take_stock(step)
        self._goes_on = False
        if self._row and step < self._step:
            self.save()
            self._rewrite(row)
            return
        if self._row and step > self._step:
            self.save()
            self._row_start, self._row = self.path.stat().st_size, {}
        self._step = step
        self._row |= row
        self._changed = True

    def save(self) -> None:
        """Write what was added since."""
        if not self._changed:
            return
        if not set(self._row) <= set(self._columns) or not self.path.is_file():
            self._rewrite(self._row)
        else:
            with self.path.open("r+b") as file:
                file.seek(self._row_start)
                file.write(_line([self._row.get(name, "") for name in self._columns]))
                file.truncate()
        self._changed = False

    def _rewrite(self, row: Mapping[str, str]) -> None:
        """Replace the file by one that has the values of `row` too, at its step."""
        columns = [STEP, *sorted({*self._columns, *row} - {STEP})]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(_line(columns))
            for cells in _with(row, columns, self._rows(columns)):
                start = file.tell()
                file.write(_line(cells))
        temporary.replace(self.path)
        self._columns, self._row_start = columns, start

    def _rows(self, columns: Sequence[str]) -> Iterator[list[str]]:
        """Read the cells of every row in the order of other columns, which are these and more."""
        if not self.path.is_file():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            there = {name: number for number, name in enumerate(next(reader))}
            places = [there.get(name, -1) for name in columns]
            for cells in reader:
                yield [cells[place] if place >= 0 else "" for place in places]

    def _take_stock(self, last_step: float) -> None:
        """Find columns and last row of the file, and cut off what comes after a step or is no whole line."""
        position, header, last = 0, b"", b""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or (header and int(line.split(b",", 1)[0]) > last_step):
                    break
                if header:
                    self._row_start, last = position, line
                header = header or line
                position += len(line)
        if not header:
            self.path.unlink()
            return
        with self.path.open("r+b") as file:
            file.truncate(position)
        self._columns, *rows = csv.reader([header.decode(), *([last.decode()] if last else [])])
        self._row = {name: cell for row in rows for name, cell in zip(self._columns, row, strict=True) if cell}
        self._row_start = self._row_start if last else position
        self._step = int(self._row.get(STEP, 0))


def _with(row: Mapping[str, str], columns: Sequence[str], rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Put the values of a row over those of the same step, or between its neighbours."""
    step, cells = int(row[STEP]), [row.get(name, "") for name in columns]
    placed = False
    for there in rows:
        if not placed and int(there[0]) >= step:
            placed = True
            if int(there[0]) == step:
                yield [new or old for new, old in zip(cells, there, strict=True)]
                continue
            yield cells
        yield there
    if not placed:
        yield cells


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def read_metrics(path: Path) -> pd.DataFrame:
    """Return metrics.csv, one row a step: NaN where nothing was logged, infinity where a value was not finite.

    A last line that was cut off is left out.
    """
    text = path.read_bytes()
    header, _, rows = text[: text.rfind(b"\n") + 1].partition(b"\n")
    return pd.read_csv(io.BytesIO(header + b"\n" + re.sub(rb"(?<=,)nan(?=[,\r\n])", b"inf", rows)))
