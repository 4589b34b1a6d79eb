"""A log in a Parquet file.

Place in the flow: a `log_table.Table` of `plant_log`; needs pyarrow (the extra ``logs``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssm_metarl.experience.log_cells import Floats, convert, listed, plain
from ssm_metarl.experience.log_columns import SECONDS, Column, Wanted
from ssm_metarl.experience.log_table import Block

if TYPE_CHECKING:
    import pyarrow

ROWS = 1 << 14
"""Rows that are read at once."""
PAGES = 1 << 20
"""Bytes of a column that are read at once: row groups may be as large as the file."""
NUMBERS = ("integer", "floating", "boolean", "decimal", "null", "string", "large_string")
MOMENTS = ("timestamp", "duration")
"""Types of columns that are read, as `pyarrow.types` names them."""


class ParquetTable:
    """A log in a Parquet file; its rows are counted from 1.

    Raises:
        ValueError: pyarrow is not installed, it is no such file, or a column is missing or of a
            type that holds no numbers.
    """

    place = "row"

    def __init__(self, path: Path, raw: io.BufferedReader, wanted: Wanted) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(
                f"{path}: expected pyarrow, which reads Parquet, received none: "
                "pip install 'ssm-metarl[logs]'"
            ) from None
        self.path, self.notes = path, list[str]()
        with self._one_line():
            self._file = parquet.ParquetFile(raw, buffer_size=PAGES, pre_buffer=False)
            schema = self._file.schema_arrow
        try:
            columns = wanted.find(schema.names)
            if columns is None:
                names = listed(schema.names) or "no columns"
                raise ValueError(f"expected columns {wanted}, received {names}")
            kinds = [schema.field(column.index).type for column in columns.read]
            for column, kind in zip(columns.read, kinds, strict=True):
                _check_type(column, kind)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if columns.time is not None and _is(kinds[columns.time], *MOMENTS):
            columns = replace(columns, seconds=1.0)  # the type tells more than the name
        self.columns = columns

    def blocks(self) -> Iterator[Block]:
        """All rows, in order."""
        header = self._file.schema_arrow.names
        # Two columns may share a name, which stands for both of them here, in their order.
        names = list(dict.fromkeys(header[column.index] for column in self.columns.read))
        places = [i for name in names for i, other in enumerate(header) if other == name]
        batches = self._file.iter_batches(ROWS, columns=names, use_threads=False)
        row = 1
        while True:
            with self._one_line():
                batch = next(batches, None)
                if batch is None:
                    return
                read = self.columns.read
                arrays = [batch.column(places.index(column.index)) for column in read]
                values = list(map(_values, read, arrays))
            if n := len(batch):
                lines, breaks = np.arange(row, row + n), np.zeros(n, dtype=bool)
                yield Block(np.stack(values, axis=1), lines, breaks, partial(_text, arrays))
                row += n

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """What pyarrow raises, as one line."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.path}: expected a Parquet file, received another one ({plain(first)})"
            ) from None


def _is(kind: pyarrow.DataType, *names: str) -> bool:
    from pyarrow import types

    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _check_type(column: Column, kind: pyarrow.DataType) -> None:
    kind = kind.value_type if _is(kind, "dictionary") else kind
    moments = MOMENTS if column.kind in ("moment", "key") else ()
    if not _is(kind, *NUMBERS, *moments):
        raise ValueError(
            f"{column.name}: expected a column of numbers, received one of {plain(str(kind))}"
        )


def _values(column: Column, array: pyarrow.Array) -> Floats:
    """A column of a batch as float64: NaN for null, inf for what is not understood."""
    if _is(array.type, "dictionary"):
        array = array.dictionary_decode()
    if _is(array.type, "string", "large_string"):
        return convert([text or "" for text in array.to_pylist()], column.kind)
    scale = 1.0
    if _is(array.type, *MOMENTS):
        scale = SECONDS[array.type.unit]
        array = array.cast("int64")
    elif _is(array.type, "boolean"):
        array = array.cast("int8")
    values: Floats = array.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return values * scale


def _text(arrays: Sequence[pyarrow.Array], row: int, column: int) -> str:
    value = arrays[column][row].as_py()
    return "" if value is None else str(value)
