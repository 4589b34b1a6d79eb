"""A log in text: CSV as spreadsheets, pandas and loggers write it.

Place in the flow: a `log_table.Table` of `plant_log`. Python's csv module splits the lines, and
`log_cells` converts the columns that are read, a block at a time.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import TextIO

import numpy as np

from ssm_metarl.experience.log_cells import convert, is_number, listed, plain
from ssm_metarl.experience.log_columns import Columns, Wanted, check_unit
from ssm_metarl.experience.log_table import Block

BLOCK = 1 << 16
"""Characters that are read at once, some 800 rows."""
LONGEST = 1 << 20
"""Characters that a line may have."""
DELIMITERS = (",", ";", "\t", "|")
COMMENT = ("#", "%")
SHEET_DELIMITER = re.compile(r'"?sep=."?')
"""First line of a CSV file for a spreadsheet."""
NO_LINE = "expected a line of a CSV file, received another one"


class CsvTable:
    """A log in UTF-8, or in UTF-16 with its byte order mark; gzip is seen by its first bytes.

    Raises:
        ValueError: It is no text, or its header lacks a column.
    """

    place = "line"
    columns: Columns

    def __init__(self, path: Path, raw: io.BufferedReader, wanted: Wanted) -> None:
        self.path, self.notes = path, list[str]()
        self._line = 0  # lines read so far
        self._first: list[str] = []  # a line of numbers that was read in search of the header
        self._decimal: str | None = None
        self._headers = self._comments = 0
        self._fresh = True  # no row yet: units may stand here
        self._break = False  # a repeated header was the last thing
        with self._one_line():
            self._file = _text(raw)
            self._find_header(wanted)

    def blocks(self) -> Iterator[Block]:
        """All rows, in order."""
        while lines := self._lines():
            if rows := list(self._rows(lines)):
                yield self._block(rows)
            self._line += len(lines)
        for times, what in (
            (self._headers, "the header is repeated {:,} time(s): each starts an episode"),
            (self._comments, "{:,} comment line(s) between the rows are skipped"),
        ):
            self.notes += [what.format(times)] * (times > 0)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """What damaged text or a damaged archive raises, as one kind of error."""
        try:
            yield
        except (UnicodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{self.path}: expected a CSV file, received another one ({plain(str(error))})"
            ) from None

    def _error(self, line: int, message: str) -> ValueError:
        return ValueError(f"{self.path}, line {line}: {message}")

    def _find_header(self, wanted: Wanted) -> None:
        """The first line, or a comment above it, that names what is wanted."""
        candidates: list[str] = []
        first = ""
        while not first and (line := self._file.readline(LONGEST)):
            self._line += 1
            if "\0" in line:
                raise ValueError(
                    f"{self.path}: expected a CSV file in UTF-8, or in UTF-16 with its byte order "
                    "mark, received another one (a NUL character)"
                )
            text = line.strip()
            if text.startswith(COMMENT):
                candidates.append(text.lstrip("".join(COMMENT)))
            elif text and not SHEET_DELIMITER.fullmatch(text):
                candidates.insert(0, text)
                first = line
        received: list[str] = []
        for place, text in enumerate(candidates):
            for delimiter in DELIMITERS:
                header = self._split(text, delimiter)
                try:
                    columns = wanted.find(header)
                except ValueError as error:
                    raise ValueError(f"{self.path}: {error}") from None
                if columns is not None:
                    self.columns, self._delimiter = columns, delimiter
                    self._header = [name.strip() for name in header]
                    if first and place > 0:
                        self._first, self._line = [first.rstrip("\n")], self._line - 1
                    return
                if place == 0 and len(header) > len(received):
                    received = header
        names = listed([name.strip() for name in received]) or "no header"
        raise ValueError(f"{self.path}: expected columns {wanted}, received {names}")

    def _split(self, line: str, delimiter: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error as error:
            raise self._error(self._line, f"{NO_LINE} ({plain(str(error))})") from None

    def _lines(self) -> list[str]:
        """The next lines of the file, without their ends; none at its end."""
        with self._one_line():
            text = self._file.read(BLOCK)
            rest = "" if text.endswith("\n") else self._file.readline(LONGEST)
        if len(rest) == LONGEST:
            raise self._error(
                self._line + 1 + text.count("\n"),
                f"expected at most {LONGEST:,} characters in a line, received more",
            )
        lines, self._first = self._first + (text + rest).split("\n"), []
        unfinished = lines.pop()  # empty where the last line is complete
        if unfinished:
            if self._is_whole(unfinished):
                lines.append(unfinished)
            else:
                self.notes.append(
                    f"line {self._line + 1 + len(lines):,}, the last one, is cut short and left out"
                )
        for i in [i for i, line in enumerate(lines) if line.lstrip()[:1] in COMMENT]:
            lines[i] = ""
            self._comments += 1
        return lines

    def _is_whole(self, line: str) -> bool:
        try:
            (row,) = csv.reader([line], delimiter=self._delimiter, strict=True)
            return len(row) >= len(self._header)
        except csv.Error:
            return False

    def _rows(self, lines: Iterable[str]) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
        """Each row's line, whether it starts an episode by where it stands, and what is read."""
        width, last, line = len(self._header), self._header[-1], self._line
        picked = itemgetter(*(column.index for column in self.columns.read))
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            for line in count(self._line + 1):
                row = next(reader, None)
                if row is None:
                    return
                if reader.line_num != line - self._line:
                    raise csv.Error("a quote that is not closed")
                if len(row) != width:
                    if len(row) < 2 and not "".join(row).strip():
                        continue  # a blank line
                    while len(row) > width and not row[-1].strip():
                        row.pop()
                    if len(row) > width:  # decimal commas, perhaps
                        raise self._error(line, f"expected {width} cells, received {len(row)}")
                    row += [""] * (width - len(row))
                if row[-1].strip() == last and [cell.strip() for cell in row] == self._header:
                    self._headers += 1
                    self._break = not self._fresh
                elif not self._fresh or not self._is_units(row, line):
                    yield line, self._break, picked(row)
                    self._break = self._fresh = False
        except csv.Error as error:
            raise self._error(line, f"{NO_LINE} ({plain(str(error))})") from None

    def _block(self, rows: list[tuple[int, bool, tuple[str, ...]]]) -> Block:
        lines, breaks, picked = zip(*rows, strict=True)
        cells, read = list(zip(*picked, strict=True)), self.columns.read
        if self._decimal is None:  # how the first number that is not whole is written
            numbers = (c for column, c in zip(read, cells, strict=True) if column.kind == "number")
            broken = (cell for column in numbers for cell in column if "," in cell or "." in cell)
            if cell := next(broken, ""):
                self._decimal = "." if "." in cell else ","
        comma = self._decimal == ","
        values = [
            convert(texts, column.kind, decimal_comma=comma)
            for column, texts in zip(read, cells, strict=True)
        ]
        return Block(
            np.stack(values, axis=1),
            np.array(lines),
            np.array(breaks),
            lambda row, column: cells[column][row].strip(),
        )

    def _is_units(self, row: Sequence[str], line: int) -> bool:
        """Whether a row under the header holds units: none of its observations is a number."""
        observed = self.columns.read[self.columns.obs]
        units = [row[column.index].strip() for column in observed]
        if not any(units) or any(text and is_number(text.replace(",", ".")) for text in units):
            return False
        for column, text in zip(observed, units, strict=True):
            try:
                check_unit(column.name, text)
            except ValueError as error:
                raise self._error(line, str(error)) from None
        # before what its block may have told already of a later line
        self.notes.insert(0, f"line {line:,} is taken for units: {listed(units)}")
        return True


def _text(raw: io.BufferedReader) -> TextIO:
    """A text, perhaps compressed, whose lines all end in a newline.

    Bytes that are not UTF-8 become characters that no number has: they do not matter in columns
    that are ignored.
    """
    if raw.peek(2)[:2] == b"\x1f\x8b":
        raw = io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(raw, encoding="utf-16")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")
