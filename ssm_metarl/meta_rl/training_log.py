"""A training's log as it can be read: one JSON object an epoch, and whatever else is in there.

Place in the flow: stage 5, beside `training_run`, which writes it; the report and the app read it,
too, some of them while it is being written. The checkpoint is what a training goes on from, the log
a by-product. So a power cut's zeros or half a line cost that line and nothing else.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

LOG_NAME = "training_log.jsonl"


class TrainingLog(NamedTuple):
    """What a log's file holds."""

    rows: list[dict[str, Any]]
    """An object a line, with ``env_steps``."""
    damaged: int
    """Lines that are none."""


def read_log(path: Path) -> TrainingLog:
    """Read a log; lines that cannot be read are left out and counted.

    Raises:
        OSError: The file cannot be opened.
    """
    *whole, last = Path(path).read_bytes().split(b"\n")
    lines = [*whole, last] if last else whole
    rows = [row for line in lines if (row := _row(line)) is not None]
    return TrainingLog(rows, damaged=len(lines) - len(rows))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
        # `epoch` cuts the log where a training goes on, `env_steps` is the axis of every picture
        numbers = (row["env_steps"], row.get("epoch", 0))
        sound = all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
            for x in numbers
        )
    except (ValueError, RecursionError, TypeError, KeyError, OverflowError):
        return None
    return row if sound else None
