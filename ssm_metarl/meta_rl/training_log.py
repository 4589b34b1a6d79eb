"""A training's log as it can be read: one JSON object an epoch, and whatever else is in there.

Place in the flow: stage 5, beside `training_run`, which writes it; the report and the app read it,
too, some of them while it is being written. The checkpoint is what a training goes on from, the log
a by-product. So a power cut's zeros or half a line cost that line and nothing else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG_NAME = "training_log.jsonl"


@dataclass(frozen=True)
class TrainingLog:
    """What a log's file holds."""

    rows: list[dict[str, Any]]
    """An object a line, with ``env_steps``."""
    lines: list[bytes]
    """The same as they stand in the file, without the line's end."""
    damaged: int
    """Lines that are none."""


def read_log(path: Path) -> TrainingLog:
    """Read a log; lines that cannot be read are left out and counted.

    Raises:
        OSError: The file cannot be opened.
    """
    rows, lines, damaged = [], [], 0
    *whole, last = Path(path).read_bytes().split(b"\n")
    for line in [*whole, *([last] if last else [])]:
        row = _row(line)
        if row is None:
            damaged += 1
        else:
            rows.append(row)
            lines.append(line)
    return TrainingLog(rows, lines, damaged)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    # `epoch` cuts the log where a training goes on, `env_steps` is the axis of every picture
    numbers = (row.get("env_steps"), row.get("epoch", 0))
    finite = all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
        for x in numbers
    )
    return row if finite else None
