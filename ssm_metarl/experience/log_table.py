"""A log as a table: blocks of rows, one after another, never the whole file.

Place in the flow: a format of log is one `Table`: it finds the columns of its header with
`log_columns`, and yields them in blocks. `plant_log` and `log_transitions` read these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.experience.log_cells import Floats, shown
from ssm_metarl.experience.log_columns import Columns

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Rows of a log, n of them."""

    values: Floats
    """The columns that are read, shape (n, C)."""
    lines: NDArray[np.int64]
    """Where each row stands in the file, shape (n,)."""
    breaks: Bools
    """True where a row does not go on from the row before, whatever its cells say, shape (n,)."""
    cell: Callable[[int, int], str]
    """The text of a row's cell, by its place in ``values``; for messages."""

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, places: NDArray[np.int64]) -> Block:
        """Some of the rows."""
        return Block(
            self.values[places],
            self.lines[places],
            self.breaks[places],
            lambda row, column: self.cell(int(places[row]), column),
        )

    def last(self) -> Block:
        """The last row alone, which keeps nothing of the others."""
        row = len(self) - 1
        texts = [self.cell(row, column) for column in range(self.values.shape[1])]
        alone = self.values[row:].copy(), self.lines[row:].copy(), self.breaks[row:].copy()
        return Block(*alone, lambda _, column: texts[column])

    def after(self, before: Block) -> Block:
        """The rows of another block, then these."""
        n = len(before)
        return Block(
            np.concatenate([before.values, self.values]),
            np.concatenate([before.lines, self.lines]),
            np.concatenate([before.breaks, self.breaks]),
            lambda row, column: before.cell(row, column) if row < n else self.cell(row - n, column),
        )


class Table(Protocol):
    """An open log, made of its path, its open file and what is `Wanted` of it."""

    path: Path
    place: str
    """What a row's number counts: "line" of a text, "row" of a Parquet file."""
    columns: Columns
    notes: list[str]
    """What was skipped; complete once all blocks have been read."""

    def blocks(self) -> Iterator[Block]:
        """All rows, in order.

        Raises:
            ValueError: A row is not one.
        """


def refusal(
    table: Table, block: Block, row: int, column: int, expected: str, received: str | None = None
) -> ValueError:
    """An error that names a row and a column; ``received`` is the cell unless given."""
    return ValueError(
        f"{table.path}, {table.place} {block.lines[row]}: {table.columns.read[column].name}: "
        f"expected {expected}, received {received or shown(block.cell(row, column))}"
    )
