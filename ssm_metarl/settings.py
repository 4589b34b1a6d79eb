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
    kinds, ranges = _declared(type(settings))  # type: ignore[arg-type]
    for name, kind in kinds.items():
        given = getattr(settings, name)
        value = _converted(given, kind, finite)
        require(value is not _UNFIT, name, _in_words(kind, finite), given)
        if value is not given:
            object.__setattr__(settings, name, value)
    for name, (allowed, none) in ranges.items():
        value = getattr(settings, name)
        words = f"None or {allowed.words}" if none else allowed.words
        require((none and value is None) or allowed.holds(value), name, words, value)


@cache
def _declared(cls: type[Any]) -> tuple[dict[str, Any], dict[str, tuple[Range, bool]]]:
    """The types of the fields, and the ranges of those that have one; may they be None, too?"""
    names = [field.name for field in fields(cls)]
    bare, annotated = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    ranges = {name: _range_of(annotated[name]) for name in names}
    return {name: bare[name] for name in names}, {n: r for n, r in ranges.items() if r is not None}


def _range_of(kind: Any) -> tuple[Range, bool] | None:
    if get_origin(kind) in (Union, UnionType):
        found = next(filter(None, map(_range_of, get_args(kind))), None)
        return found and (found[0], NoneType in get_args(kind))
    allowed = [x for x in getattr(kind, "__metadata__", ()) if isinstance(x, Range)]
    return (allowed[0], False) if allowed else None


_UNFIT = object()


def _converted(value: Any, kind: Any, finite: bool) -> Any:
    """The value in the type that was declared, or `_UNFIT`."""
    if get_origin(kind) in (Union, UnionType):
        every = (_converted(value, k, finite) for k in get_args(kind))
        return next((x for x in every if x is not _UNFIT), _UNFIT)
    value = plain(value)
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else _UNFIT
    if get_origin(kind) is tuple:
        return _converted_tuple(value, get_args(kind), finite)
    if kind is NoneType or kind is bool:
        return value if isinstance(value, kind) else _UNFIT
    if kind is str:
        return str(value) if isinstance(value, str) else _UNFIT
    if kind is Path:
        return Path(value) if isinstance(value, (str, Path)) else _UNFIT
    if kind in (int, float):
        return _converted_number(value, kind, finite)
    return value  # of no kind that a setting has here


def _converted_number(value: Any, kind: type, finite: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return _UNFIT
    if isinstance(value, Integral):
        value = int(value)  # a whole number for a float stays one
    try:
        number = float(value)
    except OverflowError:
        return _UNFIT
    if finite and math.isinf(number):  # NaN lies in no range, and their messages say which
        return _UNFIT
    return value if isinstance(value, int) else number


def _converted_tuple(value: Any, kinds: tuple[Any, ...], finite: bool) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, (tuple, list)):
        return _UNFIT
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _UNFIT
    items = [_converted(x, k, finite) for x, k in zip(value, kinds, strict=True)]
    if any(x is _UNFIT for x in items):
        return _UNFIT
    same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if same else tuple(items)


def _in_words(kind: Any, finite: bool) -> str:
    """A type as a reader calls it."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(
            "None" if k is NoneType else _in_words(k, finite)
            for k in sorted(get_args(kind), key=lambda k: k is not NoneType)
        )
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        count = "any number" if others == [...] else str(1 + len(others))
        return f"{count} of: {_in_words(first, finite)}"
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
