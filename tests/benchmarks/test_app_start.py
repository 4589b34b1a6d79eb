"""The app's first page: what is made of the figures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import app_start


def test_the_first_page_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, bares = iter([(4.0, 400.0), (6.0, 420.0)]), iter([(3.0, 320.0), (3.5, 330.0)])
    monkeypatch.setattr(app_start, "first_page", lambda: next(pages))
    monkeypatch.setattr(app_start, "bare_import", lambda: next(bares))
    result: dict[str, Any] = app_start.measure(2)
    assert result["first_page_seconds"] == 5.0 and result["first_page_range"] == [4.0, 6.0]
    assert result["memory_above_mb"] == pytest.approx(410 - 325)
