"""What checks the settings: their types, their ranges, and values out of JSON.

Place in the flow: under `config` and every other dataclass of settings. A field says its range in
its annotation (`Count`, `Share`, ...), so that one ladder serves all. No torch here, nor NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LONGEST = 400  # characters of a value in an error


@dataclass(frozen=True)
class Range:
    """Which values of its type a field takes."""

    holds: Callable[[Any], bool]
    words: str
    """The same as a reader calls it."""


Count = Annotated[int, Range(lambda x: x >= 1, "at least 1")]
Natural = Annotated[int, Range(lambda x: x >= 0, "at least 0")]
Share = Annotated[float, Range(lambda x: 0 <= x <= 1, "0 to 1")]
Positive = Annotated[float, Range(lambda x: x > 0, "a number above 0")]
Weight = Annotated[float, Range(lambda x: x >= 0, "at least 0")]
Number = Annotated[float, Range(lambda x: not math.isnan(x), "a number")]


def require(condition: bool, name: str, expected: str, received: object) -> None:
    """Raise ValueError, naming the field, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, received {in_one_line(received)}")


def in_one_line(value: object) -> str:
    """A value as an error shows it: an array has lines of its own, a number thousands of digits."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever somebody's object, or a number too long to write, raises
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(value: Any) -> Any:
    """A NumPy scalar as the number that it is to Python; anything else as it is."""
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if scalar else value


def check_fields(settings: Any, *, finite: bool = True) -> None:
    """Put numbers that NumPy drew, and lists, into the types that are declared; check the ranges.

    Args:
        settings: A frozen dataclass, in its ``__post_init__``.
        finite: Whether its numbers must be finite.

    Raises:
        ValueError: A field holds another type, or a value out of its range.
    """
    for name, (kind, allowed) in _declared(type(settings)).items():  # type: ignore[arg-type]
        given = getattr(settings, name)
        value = converted(given, kind, finite)
        require(value is not UNFIT, name, in_words(kind, finite), given)
        if value is not given:
            object.__setattr__(settings, name, value)
        if allowed is not None:
            optional = NoneType in get_args(kind)
            words = f"None or {allowed.words}" if optional else allowed.words
            require((optional and value is None) or allowed.holds(value), name, words, value)


@cache
def _declared(cls: type[Any]) -> dict[str, tuple[Any, Range | None]]:
    """The type of each field, and the range of those that have one."""
    bare, annotated = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    return {f.name: (bare[f.name], _range_of(annotated[f.name])) for f in fields(cls)}


def _range_of(kind: Any) -> Range | None:
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    marks = [mark for option in options for mark in getattr(option, "__metadata__", ())]
    return next((mark for mark in marks if isinstance(mark, Range)), None)


UNFIT = object()


def converted(value: Any, kind: Any, finite: bool) -> Any:
    """The value in the type that is declared, or `UNFIT`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        every = (converted(value, part, finite) for part in parts)
        return next((x for x in every if x is not UNFIT), UNFIT)
    value = plain(value)
    if origin is tuple:
        return _converted_tuple(value, parts, finite)
    if origin is Literal:
        return value if isinstance(value, str) and value in parts else UNFIT
    if kind is NoneType or kind is bool:
        return value if isinstance(value, kind) else UNFIT
    if kind is str:
        return str(value) if isinstance(value, str) else UNFIT
    if kind is Path:
        return Path(value) if isinstance(value, (str, Path)) else UNFIT
    if kind in (int, float):
        return _converted_number(value, kind, finite)
    return value  # of no kind that a setting has here


def _converted_number(value: Any, kind: type, finite: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return UNFIT
    try:
        number = float(value)
    except OverflowError:
        return UNFIT
    if finite and math.isinf(number):  # NaN lies in no range, and their messages say which
        return UNFIT
    return int(value) if isinstance(value, Integral) else number  # a whole number stays one


def _converted_tuple(value: Any, kinds: tuple[Any, ...], finite: bool) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, (tuple, list)):
        return UNFIT
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return UNFIT
    items = [converted(x, k, finite) for x, k in zip(value, kinds, strict=True)]
    if any(x is UNFIT for x in items):
        return UNFIT
    same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if same else tuple(items)


def in_words(kind: Any, finite: bool) -> str:
    """A type as a reader calls it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        named = [in_words(part, finite) for part in parts if part is not NoneType]
        return " or ".join([*named, "None"] if NoneType in parts else named)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is tuple:
        count = "any number" if parts[1:] == (...,) else len(parts)
        return f"{count} of: {in_words(parts[0], finite)}"
    number = "a finite number" if finite else "a number"
    words = {int: "a whole number", float: number, bool: "True or False", str: "text"}
    return words.get(kind, f"a {kind}")


def rebuild(cls: type[T], values: dict[str, Any], what: str) -> T:
    """A configuration from its fields in JSON, whose lists become tuples again.

    Raises:
        ValueError: Unknown or missing fields, or values of another type.
    """
    known = sorted(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    require(isinstance(values, dict), what, f"fields among {known}", values)
    unknown = sorted(set(values) - set(known), key=str)
    require(not unknown, what, f"fields among {known}", unknown)
    try:
        return cls(**values)
    except TypeError as error:  # a field is missing
        raise ValueError(
            f"{what}: expected other values, received {in_one_line(values)} ({error})"
        ) from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
