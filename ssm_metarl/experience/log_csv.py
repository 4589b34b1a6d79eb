"""A log in text: CSV as spreadsheets, pandas and loggers write it.

Place in the flow: a `log_table.Table` of `plant_log`.

A block of lines that are all numbers is parsed at once, in C. Where that fails (a word, quotes, a
comment, a mistake) the block is read again with Python's csv module, cell by cell.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TextIO

import numpy as np

from ssm_metarl.experience.log_cells import (
    Floats,
    Kind,
    convert,
    convert_one,
    is_number,
    listed,
    plain,
)
from ssm_metarl.experience.log_columns import Columns, Wanted, check_unit
from ssm_metarl.experience.log_table import Block

BLOCK = 1 << 20
"""Characters that are read at once, some 15,000 rows."""
LONGEST = 1 << 20
"""Characters that a line may have."""
DELIMITERS = (",", ";", "\t", "|")
COMMENT = ("#", "%")
SHEET_DELIMITER = re.compile(r'"?sep=."?')
"""First line of a CSV file for a spreadsheet."""


class CsvTable:
    """A log in text, perhaps compressed.

    Args:
        path: Its name, for messages.
        raw: The file: UTF-8, or UTF-16 with its byte order mark; gzip is seen by its first bytes.
        wanted: What is to be read.

    Raises:
        ValueError: It is no text, or its header lacks a column.
    """

    place = "line"
    columns: Columns

    def __init__(self, path: Path, raw: io.BufferedReader, wanted: Wanted) -> None:
        self.path, self.notes, self._raw = path, list[str](), raw
        self._line = 0  # lines read so far
        self._first: list[str] = []  # a line of numbers that was read in search of the header
        self._decimal: str | None = None
        self._headers = self._comments = 0
        self._fresh = True  # no row yet: units may stand here
        self._words = False  # columns of words were the last thing
        self._break = False  # a repeated header was the last thing
        with self._one_line():
            self._file = _text(raw)
            self._find_header(wanted)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()  # an archive leaves it open

    def blocks(self) -> Iterator[Block]:
        """All rows, in order."""
        while lines := self._lines():
            block = self._parsed(lines) or self._read_carefully(lines)
            self._line += len(lines)
            self._fresh = self._fresh and not len(block)
            if len(block):
                yield block
        if self._headers:
            self.notes.append(
                f"the header is repeated {self._headers:,} time(s): each starts an episode"
            )
        if self._comments:
            self.notes.append(f"{self._comments:,} comment line(s) between the rows are skipped")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """What damaged text or a damaged archive raises, as one kind of error."""
        try:
            yield
        except (UnicodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{self.path}: expected a CSV file, received another one ({plain(str(error))})"
            ) from None

    def _find_header(self, wanted: Wanted) -> None:
        """The first line, or a comment above it, that names what is wanted."""
        candidates: list[str] = []
        while line := self._file.readline(LONGEST):
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
                self._first = [line]
                break
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
                    if place == 0 or not self._first:
                        self._first = []
                    else:
                        self._line -= 1
                    return
                if place == 0 and len(header) > len(received):
                    received = header
        names = listed([name.strip() for name in received]) or "no header"
        raise ValueError(f"{self.path}: expected columns {wanted}, received {names}")

    def _split(self, line: str, delimiter: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {self._line}: expected a line of a CSV file, received another "
                f"one ({plain(str(error))})"
            ) from None

    def _lines(self) -> list[str]:
        """The next lines of the file, without their ends; none at its end."""
        with self._one_line():
            text = self._file.read(BLOCK)
            rest = "" if text.endswith("\n") else self._file.readline(LONGEST)
        if len(rest) == LONGEST:
            raise ValueError(
                f"{self.path}, line {self._line + 1 + text.count(chr(10))}: expected at most "
                f"{LONGEST:,} characters in a line, received more"
            )
        text += rest
        lines = text.split("\n")
        unfinished = lines.pop()  # empty where the last line is complete
        lines, self._first = [line.rstrip("\n") for line in self._first] + lines, []
        if unfinished:
            if self._is_whole(unfinished):
                lines.append(unfinished)
            else:
                self.notes.append(
                    f"line {self._line + 1 + len(lines):,}, the last one, is cut short and left out"
                )
        return lines

    def _is_whole(self, line: str) -> bool:
        try:
            return len(next(csv.reader([line], delimiter=self._delimiter, strict=True))) >= len(
                self._header
            )
        except csv.Error:
            return False

    def _parsed(self, lines: Sequence[str]) -> Block | None:
        """Lines that are all numbers, and whole; None for others."""
        text = "\n".join(lines)
        if any(mark in text for mark in ('"', "\n\n", *COMMENT)) or not (lines[0] and lines[-1]):
            return None
        delimiter = self._delimiter
        if "." in text and self._decimal == ",":
            return None
        if delimiter == ",":
            self._decimal = "." if "." in text else self._decimal
        elif self._decimal is None:
            return None
        elif self._decimal == ",":
            text = text.replace(",", ".")
        found = _delimiters(text, delimiter, len(lines), len(self._header))
        if found is None:
            return None
        if found:
            text = f"\n{text}\n"
            for _ in range(2):  # twice: ,,, has two empty cells that share a comma
                text = text.replace(delimiter * 2, f"{delimiter}nan{delimiter}")
            text = text.replace(f"\n{delimiter}", f"\nnan{delimiter}")
            text = text.replace(f"{delimiter}\n", f"{delimiter}nan\n")[1:-1]
        values = self._numbers(text.split("\n"))
        if values is None:
            return None
        numbers = np.arange(len(lines)) + self._line + 1
        breaks = np.zeros(len(lines), dtype=bool)
        breaks[0], self._break = self._break, False
        return Block(values, numbers, breaks, self._cell(lines))

    def _numbers(self, lines: Sequence[str]) -> Floats | None:
        """Lines of whole cells as numbers, shape (n, C); None if one of them is none."""
        words: dict[int | str, Callable[[str], float]]
        words = {c.index: partial(_word, c.kind) for c in self.columns.read if c.kind != "number"}
        for converters in [words] if self._words else [None, words]:
            with suppress(ValueError):
                values: Floats = np.loadtxt(
                    lines, delimiter=self._delimiter, comments=None, ndmin=2, converters=converters,
                    usecols=[column.index for column in self.columns.read],
                )  # fmt: skip
                self._words = converters is not None
                return values
        return None

    def _read_carefully(self, lines: Sequence[str]) -> Block:
        """Any lines: quotes, comments, repeated headers, words."""
        comments = [i for i, line in enumerate(lines) if line.lstrip().startswith(COMMENT)]
        if comments:
            lines = list(lines)
            for i in comments:
                lines[i] = ""
            self._comments += len(comments)
        rows = self._rows(lines)
        kept: list[int] = []
        breaks: list[bool] = []
        width = len(self._header)
        for i, row in enumerate(rows):
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != width:
                while len(row) > width and not row[-1].strip():
                    row.pop()
                if len(row) > width:  # decimal commas, perhaps
                    raise ValueError(
                        f"{self.path}, line {self._line + 1 + i}: expected {width} cells, received "
                        f"{len(row)}"
                    )
                row += [""] * (width - len(row))
            if row[-1].strip() == self._header[-1] and [c.strip() for c in row] == self._header:
                self._headers += 1
                self._break = not self._fresh or bool(kept)
                continue
            if self._fresh and not kept and self._is_units(row, self._line + 1 + i):
                continue
            kept.append(i)
            breaks.append(self._break)
            self._break = False
        cells = list(zip(*(rows[i] for i in kept), strict=True)) or [()] * width
        values = np.empty((len(kept), len(self.columns.read)))
        needed = [cells[column.index] for column in self.columns.read]
        if self._decimal is None:
            self._decimal = self._decimal_of(needed)
        for place, column in enumerate(self.columns.read):
            values[:, place] = convert(
                needed[place], column.kind, decimal_comma=self._decimal == ","
            )
        return Block(
            values,
            np.array(kept, dtype=np.int64) + self._line + 1,
            np.array(breaks, dtype=bool),
            self._cell([lines[i] for i in kept]),
        )

    def _rows(self, lines: Sequence[str]) -> list[list[str]]:
        """The cells of each line; a cell never goes on in the next line."""
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        rows: list[list[str]] = []
        try:
            for row in reader:
                if reader.line_num != len(rows) + 1:
                    raise csv.Error("a quote that is not closed")
                rows.append(row)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {self._line + len(rows) + 1}: expected a line of a CSV file, "
                f"received another one ({plain(str(error))})"
            ) from None
        return rows

    def _is_units(self, row: Sequence[str], line: int) -> bool:
        """Whether a row under the header holds units: none of its observations is a number."""
        observed = self.columns.read[self.columns.obs]
        units = [row[column.index].strip() for column in observed]
        if not any(units) or any(
            text and is_number(text.translate({ord(","): "."})) for text in units
        ):
            return False
        for column, text in zip(observed, units, strict=True):
            try:
                check_unit(column.name, text)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {line}: {error}") from None
        self.notes.append(f"line {line:,} is taken for units: {listed(units)}")
        return True

    def _decimal_of(self, needed: Sequence[Sequence[str]]) -> str | None:
        """How the first number that is not whole is written."""
        for column, cells in zip(self.columns.read, needed, strict=True):
            broken = (cell for cell in cells if "," in cell or "." in cell)
            if column.kind == "number" and (cell := next(broken, None)):
                return "." if "." in cell else ","
        return None

    def _cell(self, lines: Sequence[str]) -> Callable[[int, int], str]:
        def cell(row: int, column: int) -> str:
            cells = self._split(lines[row], self._delimiter)
            place = self.columns.read[column].index
            return cells[place].strip() if place < len(cells) else ""

        return cell


@lru_cache(maxsize=1024)
def _word(kind: Kind, text: str) -> float:
    return convert_one(text, kind)


def _delimiters(text: str, delimiter: str, lines: int, width: int) -> bool | None:
    """Whether a cell is empty, where each line has ``width`` cells; None where one has not."""
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
    ends = np.append(np.flatnonzero(data == ord("\n")), len(data))
    places = np.flatnonzero(data == ord(delimiter))
    if len(places) != lines * (width - 1):
        return None
    begins = np.append(-1, ends[:-1])
    edges = np.column_stack([begins, places.reshape(lines, width - 1), ends])
    if np.any(edges[:, 1] < begins) or np.any(edges[:, -2] > ends):
        return None
    return bool(np.any(np.diff(edges) == 1))


def _text(raw: io.BufferedReader) -> TextIO:
    """A text, perhaps compressed, whose lines all end in a newline.

    Bytes that are not UTF-8 become characters that no number has: they do not matter in columns
    that are ignored.
    """
    if raw.peek(2)[:2] == b"\x1f\x8b":
        raw = io.BufferedReader(gzip.GzipFile(fileobj=raw))
    utf16 = raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
    return io.TextIOWrapper(
        raw,
        encoding="utf-16" if utf16 else "utf-8-sig",
        errors="strict" if utf16 else "surrogateescape",
    )
