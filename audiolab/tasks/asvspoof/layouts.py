"""Tables in text files told apart by their columns: score files of the field, and keys with a header.

Lines are split at white space, or at the commas or tabs of a header. A header names the columns; without one their
number decides.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiolab.errors import InputError

_ALIASES = {
    "id": "id file filename file_name utterance utt_id trial trial_id trial_anon path",
    "score": "score cm-score cm_score",
    "label": "label cm-label cm_label key",
    "attack": "attack attack_anon",
    "codec": "codec",
    "speaker": "speaker spk speaker_id",
    "asv_label": "asv-label asv_label",
    "asv_score": "asv-score asv_score",
    "sasv_score": "sasv-score sasv_score",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


@dataclass(frozen=True)
class Layout:
    """What a file was recognised as: `columns` by position, `-` for one that nothing is read from."""

    title: str
    columns: tuple[str, ...]

    def __contains__(self, column: str) -> bool:
        return column in self.columns


TWO_COLUMNS = Layout("two-column scores", ("id", "score"))
FOUR_COLUMNS = Layout("four-column scores", ("id", "attack", "label", "score"))


@dataclass(frozen=True)
class Lines:
    """The fields of a file's lines with their line numbers, and the file's layout."""

    path: Path
    layout: Layout
    numbers: list[int]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Return the fields of one column."""
        index = self.layout.columns.index(name)
        return [row[index] for row in self.rows]

    def where(self, row: int, column: str) -> str:
        """Say where a field stands, for an error message."""
        return f"{self.path}, line {self.numbers[row]}, column {self.layout.columns.index(column) + 1}"

    def described(self) -> str:
        """Say what the file was read as."""
        return f"{self.layout.title}, {len(self.rows):,} lines"


def first_line(path: Path, what: str) -> str:
    """Return the first line that is not blank.

    Raises InputError for a file that is missing, empty or not text.
    """
    return _numbered_lines(path, what)[0][1]


def header_of(line: str) -> tuple[str | None, Layout] | None:
    """Return separator (None: white space) and columns of a header, which names the trial and another known column.

    >>> header_of("filename\\tcm-score")[1].columns
    ('id', 'score')
    >>> header_of("LA_E_9332001 -4.72")
    """
    separator = next((mark for mark in (",", "\t") if mark in line), None)
    words = [word.strip().lower() for word in _fields(line, separator)]
    columns: list[str] = []
    for word in words:
        name = _CANONICAL.get(word, "-")
        columns.append("-" if name in columns else name)
    named = [name for name in columns if name != "-"]
    if "id" not in named or len(named) < 2:
        return None
    return separator, Layout(f"table with the columns {', '.join(named)}", tuple(columns))


def read_table(path: Path, what: str, needs: Sequence[str], layouts: Sequence[Layout] = ()) -> Lines:
    """Read a table with a header that names the columns `needs`, or without a header in one of `layouts`.

    `what` says what the file should hold, in the plural. Raises InputError for a file that is missing, empty, not
    text, in none of these layouts, or has a line with another number of columns.
    """
    lines = _numbered_lines(path, what)
    number, first = lines[0]
    header = header_of(first)
    separator: str | None = None
    if header is not None and set(needs) <= set(header[1].columns):
        separator, layout = header
        lines = lines[1:]
    else:
        fitting = [layout for layout in layouts if len(layout.columns) == len(first.split())]
        if not fitting or header is not None:
            known = [f"'{' '.join(layout.columns)}'" for layout in layouts] + [
                f"a header that names {' and '.join(needs)}"
            ]
            shown = first.strip() if len(first) < 80 else first.strip()[:77] + "..."
            raise InputError(f"{path}, line {number}: {shown!r} does not begin {what}: expected {' or '.join(known)}")
        layout = fitting[0]
    if not lines:
        raise InputError(f"{path} has a header and nothing below it: give {what}")
    rows = [_fields(line, separator) for _, line in lines]
    for (number, _), fields in zip(lines, rows, strict=True):
        if len(fields) != len(layout.columns):
            raise InputError(
                f"{path}, line {number}: {len(fields)} columns, expected {len(layout.columns)} "
                f"({' '.join(layout.columns)}) as above it"
            )
    return Lines(path, layout, [number for number, _ in lines], rows)


def numbers(lines: Lines, column: str = "score", absent: str | None = None) -> list[float]:
    """Return a column as finite numbers, NaN where a field is `absent`.

    Raises InputError for the first field that is no number, nan or infinite, with its line.
    """
    values = []
    for row, field in enumerate(lines.column(column)):
        if field == absent:
            values.append(math.nan)
            continue
        try:
            value = float(field)
        except ValueError:
            raise InputError(f"{lines.where(row, column)}: {field!r} is not a number, and a score is one") from None
        if not math.isfinite(value):
            raise InputError(
                f"{lines.where(row, column)}: the score is {field}: look for a diverged model or an overflow, a trial "
                "without a finite score cannot be judged"
            )
        values.append(value)
    return values


def refuse_duplicates(lines: Lines, ids: Sequence[str]) -> None:
    """Raise InputError for a trial that is listed twice, with both lines."""
    line_of: dict[str, int] = {}
    for number, name in zip(lines.numbers, ids, strict=True):
        before = line_of.setdefault(name, number)
        if before != number:
            raise InputError(
                f"{lines.path}, line {number}: trial {name} is listed before, in line {before}: remove one of them"
            )


def _numbered_lines(path: Path, what: str) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the file with {what}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file: give the file with {what}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the file with {what}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty: give the file with {what}")
    return lines


def _fields(line: str, separator: str | None) -> list[str]:
    if separator == ",":
        return [field.strip() for field in next(csv.reader([line]))]
    return [field.strip() for field in line.split(separator)]
