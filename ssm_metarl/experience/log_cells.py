"""A log's cells as numbers, and as they stand in messages.

Place in the flow: the bottom of `plant_log`; every format converts the cells of its columns here.

Every cell becomes one float64, so that a block of a log is one array: NaN where the cell is empty,
an infinity where it is not understood. Both are refused where a number is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["number", "flag", "moment", "key"]
"""What a column holds: numbers, 0/1/true/false, seconds or ISO dates, or names of episodes."""

LARGEST = float(np.finfo(np.float32).max)
"""Beyond it a number is infinite to a policy, whose parameters are float32."""
LONGEST = 60
"""Characters of a cell that a message shows."""
MOST_NAMES = 20
"""Columns that a message names."""
DECIMAL_COMMA = str.maketrans({",": ".", ".": "_"})
"""Makes a decimal comma a point, and a point, which then marks thousands, what no number has."""
WORDS = {"true": 1.0, "false": 0.0}


def convert(cells: Sequence[str], kind: Kind, *, decimal_comma: bool = False) -> Floats:
    """A column's cells as float64, shape (n,); NaN for an empty one, inf for no such thing.

    Args:
        cells: Their text.
        kind: What they hold. A date becomes seconds; a name of an episode that is no number
            becomes a number that is another one for another name.
        decimal_comma: Whether 0,5 is a half.
    """
    points = [cell.translate(DECIMAL_COMMA) for cell in cells] if decimal_comma else cells
    try:
        if not _is_plain("".join(points)):
            raise ValueError
        values = np.array(list(map(float, points)), dtype=np.float64)
    except ValueError:  # one by one, then
        values = np.array([_number(cell) for cell in points], dtype=np.float64)
    if kind != "number":
        for i in np.flatnonzero(np.isinf(values)).tolist():
            values[i] = _word(cells[i].strip(), kind)
    return values


def is_number(text: str) -> bool:
    """Whether a cell is written as a number, a finite one or not."""
    return not np.isinf(_number(text)) or "inf" in text.casefold()


def shown(text: str) -> str:
    """A cell for a message, in quotes: on one line, and no longer than one can read."""
    return repr(_short(text or "nothing"))


def plain(text: str) -> str:
    """A name, or another program's words, for a message: on one line, and not too long."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in _short(text))


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message: on one line, the first twenty of them."""
    more = len(names) - MOST_NAMES
    return ", ".join([*map(plain, names[:MOST_NAMES]), *[f"and {more} more"] * (more > 0)])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _is_plain(text: str) -> bool:
    """Whether a float is what it seems: Python reads 1_0 as 10, and the digits of every script."""
    return text.isascii() and "_" not in text


def _number(text: str) -> float:
    text = text.strip()
    if not text:
        return np.nan
    if _is_plain(text):
        with suppress(ValueError):
            return float(text)
    return np.inf


def _word(text: str, kind: Kind) -> float:
    """What is no number, as one."""
    if kind == "flag":
        return WORDS.get(text.casefold(), np.inf)
    if kind == "key":
        digest = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).digest()
        return -1.5 - int.from_bytes(digest, "big")
    try:
        moment = datetime.fromisoformat(text)
        # one without a zone is taken for UTC, which has no jumps
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return np.inf
