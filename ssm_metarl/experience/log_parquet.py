"""A log in a Parquet file.

Place in the flow: a `log_table.Table` of `plant_log`; needs pyarrow (the extra ``logs``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssm_metarl.experience.log_cells import Floats, convert, listed, plain
from ssm_metarl.experience.log_columns import Column, Wanted
from ssm_metarl.experience.log_table import Block

if TYPE_CHECKING:
    import pyarrow

ROWS = 1 << 14
"""Rows that are read at once."""
PAGES = 1 << 20
"""Bytes of a column that are read at once: row groups may be as large as the file."""


class ParquetTable:
    """A log in a Parquet file; its rows are counted from 1.

    Args:
        path: The file.
        wanted: What is to be read.

    Raises:
        ValueError: pyarrow is not installed, it is no such file, or a column is missing or of a
            type that holds no numbers.
    """

    place = "row"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(
                f"{path}: expected pyarrow, which reads Parquet, received none: "
                "pip install 'ssm-metarl[logs]'"
            ) from None
        self.path, self.notes = path, list[str]()
        with self._one_line():
            self._file = parquet.ParquetFile(path, buffer_size=PAGES, pre_buffer=False)
            header = self._file.schema_arrow.names
        try:
            columns = wanted.find(header)
            if columns is None:
                names = listed(header) or "no columns"
                raise ValueError(f"expected columns {wanted}, received {names}")
            for column in columns.read:
                _check_type(column, self._file.schema_arrow.field(column.index).type)
        except ValueError as error:
            self.close()
            raise ValueError(f"{path}: {error}") from None
        if columns.time is not None:
            kind = self._file.schema_arrow.field(columns.read[columns.time].index).type
            if _is_moment(kind):  # the type tells more than the name
                columns = replace(columns, seconds=1.0)
        self.columns = columns

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)

    def blocks(self) -> Iterator[Block]:
        """All rows, in order."""
        header = self._file.schema_arrow.names
        # Two columns may share a name, which stands for both of them here, in their order.
        names = list(dict.fromkeys(header[column.index] for column in self.columns.read))
        batches = self._file.iter_batches(ROWS, columns=names, use_threads=False)
        places = [i for name in names for i, other in enumerate(header) if other == name]
        row = 1
        while True:
            with self._one_line():
                batch = next(batches, None)
                if batch is None:
                    return
                arrays = [batch.column(places.index(column.index)) for column in self.columns.read]
                values = [
                    _values(column, array)
                    for column, array in zip(self.columns.read, arrays, strict=True)
                ]
            n = len(batch)
            if n:
                yield Block(
                    np.stack(values, axis=1),
                    np.arange(row, row + n),
                    np.zeros(n, dtype=bool),
                    partial(_text, arrays),
                )
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


def _check_type(column: Column, kind: pyarrow.DataType) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or (_is_moment(kind) and column.kind in ("moment", "key"))
    )
    if not known:
        raise ValueError(
            f"{column.name}: expected a column of numbers, received one of {plain(str(kind))}"
        )


def _is_moment(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_timestamp(kind) or types.is_duration(kind))


def _values(column: Column, array: pyarrow.Array) -> Floats:
    """A column of a batch as float64: NaN for null, inf for what is not understood."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_string(array.type) or types.is_large_string(array.type):
        return convert([text or "" for text in array.to_pylist()], column.kind)
    scale = 1.0
    if _is_moment(array.type):
        scale = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[array.type.unit]
        array = array.cast(pyarrow.int64())
    elif types.is_boolean(array.type):
        array = array.cast(pyarrow.int8())
    values: Floats = array.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values * scale


def _text(arrays: Sequence[pyarrow.Array], row: int, column: int) -> str:
    value = arrays[column][row].as_py()
    return "" if value is None else str(value)
