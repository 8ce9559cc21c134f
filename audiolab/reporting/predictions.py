"""Predictions on disk: one row a file, written at once, so that a killed command goes on where it stopped."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from audiolab.errors import InputError
from audiolab.reporting.scores import write_text

Row = dict[str, Any]
_KEY = ("file", "size_bytes", "mtime_ns")
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name


class PredictionFile:
    """`predictions.csv` or `predictions.jsonl` in a folder, and `predictions.settings.json`: what the rows depend on.

    Columns: `file`, `status` (ok or error), those given, `error`, `files` (what was written for it in the same folder,
    joined by `;`), `size_bytes` and `mtime_ns`, by which a changed file is noticed. Rows of other files stay. Raises
    InputError where the rows there were made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, type],
        settings: Mapping[str, Any],
        form: Literal["csv", "jsonl"] = "csv",
        *,
        overwrite: bool = False,
    ) -> None:
        self.path, self.form = folder / f"predictions.{form}", form
        own = {"size_bytes": int, "mtime_ns": int}
        self.columns = {"file": str, "status": str, **columns, "error": str, "files": str, **own}
        self.settings = json.loads(json.dumps(settings))
        self._settings_path = folder / "predictions.settings.json"
        self.rows: dict[str, Row] = {} if overwrite else self._read()
        self._overwrite = overwrite

    def without_own(self, files: Iterable[Path]) -> list[Path]:
        """Return the files without those that were written here for others: they are no recordings to be judged."""
        own = {path.resolve() for row in self.rows.values() for path in self._written(row)}
        return [path for path in files if path.resolve() not in own]

    def begin(self, files: Iterable[Path]) -> list[Path]:
        """Return the files still to be judged: new, changed, or unusable last time; make the output ready for them.

        A row also counts for nothing where a file that belongs to it is gone.
        """
        self.files = [str(path) for path in files]
        todo = []
        for path in map(Path, self.files):
            row = self.rows.get(str(path))
            same = row is not None and row["status"] == "ok" and _stamp(path) == {key: row[key] for key in _KEY}
            if not same or not all(written.is_file() for written in self._written(row)):
                self.rows.pop(str(path), None)
                todo.append(path)
        try:
            if self._overwrite:
                for form in ("csv", "jsonl"):  # they share their settings
                    self.path.with_suffix(f".{form}").unlink(missing_ok=True)
            if todo or not self.path.is_file():
                self._write_all()
            write_text(self._settings_path, json.dumps(self.settings, indent=1))
            self._file = self.path.open("a", **_ENCODING)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): choose another folder with -o"
            ) from error
        return todo

    def add(self, path: Path, values: Mapping[str, Any], error: str | None = None, files: Sequence[str] = ()) -> None:
        """Append the row of a file; it is on its way to the disk when this returns."""
        found = {"status": "ok" if error is None else "error", **values, "error": error}
        found["files"] = ";".join(files) or None
        row = dict.fromkeys(self.columns) | _stamp(path) | found
        self.rows[str(path)] = row
        try:
            self._file.write(self._line(row))
            self._file.flush()
        except OSError as failure:
            raise InputError(f"{self.path} cannot be written ({failure.strerror}): the same command goes on") from None

    def finish(self) -> list[Row]:
        """Bring the rows into the order of the files, as if never interrupted, and return those of this command."""
        self._file.close()
        ordered = {name: self.rows[name] for name in self.rows if name not in set(self.files)}
        ordered |= {name: self.rows[name] for name in self.files if name in self.rows}
        if list(ordered) != list(self.rows):
            self.rows = ordered
            self._write_all()
        return [self.rows[name] for name in self.files if name in self.rows]

    def _written(self, row: Row) -> list[Path]:
        return [self.path.parent / name for name in (row["files"] or "").split(";") if name]

    def _write_all(self) -> None:
        header = self._csv_line(self.columns) if self.form == "csv" else ""
        text = header + "".join(map(self._line, self.rows.values()))
        write_text(self.path, text)

    def _read(self) -> dict[str, Row]:
        there = [path for path in (self.path, self.path.with_suffix(self._other)) if path.is_file()]
        if there and not self._settings_path.is_file():
            raise InputError(
                f"{there[0]} is not from this version of predict: choose another folder with -o, or give --overwrite"
            )
        if there:
            before = json.loads(self._settings_path.read_text(encoding="utf-8"))
            if before != self.settings:
                keys = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
                differing = ", ".join(f"{key}: {before.get(key)} there, {self.settings.get(key)} now" for key in keys)
                raise InputError(
                    f"{there[0]} was made with other settings ({differing}): "
                    "choose another folder with -o, or give --overwrite"
                )
        if self.path not in there:
            return {}
        with self.path.open(**_ENCODING) as file:
            text = file.read()
        rows = self._csv_rows(text) if self.form == "csv" else self._json_rows(text)
        return {row["file"]: row for row in rows}

    @property
    def _other(self) -> str:
        return ".jsonl" if self.form == "csv" else ".csv"

    def _json_rows(self, text: str) -> list[Row]:
        return [json.loads(line) for line in text.split("\n")[:-1]]  # a line cut off by a kill has no end

    def _csv_rows(self, text: str) -> list[Row]:
        complete = text[: text.rfind("\n") + 1]
        records = list(csv.reader(io.StringIO(complete, newline="")))
        if not records or records[0] != list(self.columns):
            raise InputError(f"{self.path} has other columns than predict writes: choose another folder with -o")
        kinds = self.columns.items()
        return [
            {key: kind(value) if value else None for (key, kind), value in zip(kinds, record, strict=True)}
            for record in records[1:]
            if len(record) == len(self.columns)
        ]

    def _line(self, row: Row) -> str:
        if self.form == "jsonl":
            return json.dumps(row, allow_nan=False) + "\n"
        return self._csv_line("" if value is None else value for value in row.values())

    @staticmethod
    def _csv_line(values: Iterable[Any]) -> str:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(values)
        return line.getvalue()


def _stamp(path: Path) -> Row:
    try:
        facts = path.stat()
    except OSError:
        return {"file": str(path), "size_bytes": None, "mtime_ns": None}
    return {"file": str(path), "size_bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
