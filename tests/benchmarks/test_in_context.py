"""The row of in-context training."""

from __future__ import annotations

from benchmarks.in_context import in_context
from benchmarks.settings import Settings


def test_the_row_runs() -> None:
    rows = in_context(Settings(size="tiny"))
    assert [row.name for row in rows] == ["in_context/state32", "in_context/state128"]
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
