"""Seeded nonsense: values as JSON knows them, values as Python knows them, and damaged bytes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np

ODD_NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 2**31, -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "None", "nan", "1e999", "cartpole", "CartPole-v1", "prediction", "\0", "\ud7ff", "😀",
    "../../x", "%s%n", "{}", "a" * 3000, "line\nline",
)  # fmt: skip


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The numbers of one case."""
    return np.random.default_rng([seed, index])


def pick(rng: np.random.Generator, values: Any) -> Any:
    """One of them."""
    return values[int(rng.integers(len(values)))]


def json_value(rng: np.random.Generator, depth: int = 3) -> Any:
    """Anything that JSON can hold."""
    kind = int(rng.integers(8 if depth else 5))
    if kind == 0:
        return None
    if kind in (1, 2):
        return pick(rng, ODD_NUMBERS)
    if kind == 3:
        return pick(rng, ODD_TEXTS)
    if kind == 4:
        return "".join(pick(rng, string.printable) for _ in range(int(rng.integers(6))))
    items = [json_value(rng, depth - 1) for _ in range(int(rng.integers(4)))]
    if kind == 5:
        return items
    return {str(json_value(rng, 0)): item for item in items}


def python_value(rng: np.random.Generator) -> Any:
    """Anything that somebody may pass for a setting."""
    kind = int(rng.integers(12))
    if kind < 6:
        return json_value(rng)
    if kind == 6:
        made = pick(rng, (np.int8, np.int64, np.uint16, np.float16, np.float32, np.longdouble))
        return made(pick(rng, (0, 1, 3, 100)))
    if kind == 7:
        return np.full(pick(rng, ((), (1,), (2,), (0,), (2, 2))), pick(rng, (0, 1, 0.5, np.nan)))
    if kind == 8:
        return tuple(json_value(rng, 1) for _ in range(int(rng.integers(4))))
    return pick(rng, (object(), int, b"bytes", 1j, {1, 2}, Path("x"), np.bool_(True), range(3), len,
                      np.str_("id"), np.datetime64("2020-01-01"), np.complex64(1)))  # fmt: skip


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled or strewn in."""
    data = bytearray(content)
    kind = int(rng.integers(6))
    if kind == 0:
        return bytes(data[: int(rng.integers(len(data) + 1))])
    if kind == 1:  # where a header is
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(min(64, len(data))))] = int(rng.integers(256))
    elif kind == 2:
        start, stop = sorted(rng.integers(len(data) + 1, size=2).tolist())
        data[start:stop] = bytes(stop - start)
    elif kind == 3:
        at = int(rng.integers(len(data) + 1))
        data[at:at] = rng.integers(256, size=int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
    elif kind == 4:
        start, stop = sorted(rng.integers(len(data) + 1, size=2).tolist())
        data[start:start] = data[start:stop]
    else:
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)
