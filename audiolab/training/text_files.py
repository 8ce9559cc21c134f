"""Lists in text files, line by line: an error names file, line, column and remedy."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from audiolab.errors import InputError


def read_lines(path: Path, columns: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every line that is not blank; each must have the columns named.

    Raises InputError for a missing or empty file and for a line with another number of columns.
    """
    num_columns, empty = len(columns.split()), True
    for number, line in enumerate(_text(path, columns).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != num_columns:
            raise InputError(f"{path}, line {number}: {len(fields)} columns, expected {num_columns} ({columns})")
        empty = False
        yield number, fields
    if empty:
        raise InputError(f"{path} has no lines: it should have one entry a line ({columns})")


def read_csv(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    other_names: Mapping[str, str] | None = None,
    example: str | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields by column of a CSV file with header; `required` fields may not be empty.

    `other_names` maps further spellings of columns to ours, `example` is a header to show in messages. Raises
    InputError for a missing column, a line with another number of fields, and a header that looks like a slip.
    """
    words = example or ",".join(required)
    lines = csv.reader(_text(path, words).splitlines())
    header = [(other_names or {}).get(name.strip(), name.strip()) for name in next(lines, [])]
    missing = [name for name in required if name not in header]
    if missing:
        found = f" and is {','.join(header)}" if header else ""
        raise InputError(f"{path}, line 1: there is no column {missing[0]!r}: the first line should be {words}{found}")
    for name in header:
        close = difflib.get_close_matches(name, (*required, *optional), n=1, cutoff=0.8)
        if header.count(name) > 1:
            raise InputError(f"{path}, line 1: the column {name!r} is there twice: rename one of them")
        if close and name not in (*required, *optional):
            raise InputError(f"{path}, line 1: the column {name!r} is not known: did you mean {close[0]!r}?")
    empty = True
    for fields in lines:
        if not fields:
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {lines.line_num}: {len(fields)} fields, the header has {len(header)} "
                '(a comma inside a field needs quotes: "a, b.wav")'
            )
        row = dict(zip(header, map(str.strip, fields), strict=True))
        for name in required:
            if not row[name]:
                fail(path, lines.line_num, header.index(name), f"{name} is empty")
        empty = False
        yield lines.line_num, row
    if empty:
        raise InputError(f"{path} has nothing below its header: it should have one entry a line")


def fail(path: Path, number: int, column: int, fault: str) -> NoReturn:
    """Raise InputError for a line and a column, counted from 0."""
    raise InputError(f"{path}, line {number}, column {column + 1}: {fault}")


def finite_number(path: Path, number: int, column: int, text: str, name: str = "") -> float:
    """Return a field as a number; InputError, with the `name` of the column, where it is none, NaN or infinite."""
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        fail(path, number, column, f"{name and name + '='}{text!r} is not a finite number")
    return float(text)


def _text(path: Path, columns: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: check data.root, or choose the data= of the corpus that lies there"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a text file with the columns {columns}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file ({error.reason}): it should have the columns {columns}") from error
