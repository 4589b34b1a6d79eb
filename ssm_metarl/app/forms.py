"""What a visitor may enter into a field, and what is said of everything else.

Place in the flow: stage 10, under the handlers and the page's fields. A form is its fields by name.
The trap: what is entered may have come over the network, and be of any type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class FieldError(ValueError):
    """A field holds what it may not.

    Args:
        name: Of the field.
        message: What was expected.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message


@dataclass(frozen=True)
class Between:
    """A number."""

    low: float
    high: float
    whole: bool = False

    def read(self, value: Any) -> float:
        """The number that was entered."""
        span = f"{_plain(self.low)} to {_plain(self.high)}"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"expected a number from {span}")
        if not self.low <= value <= self.high:
            raise ValueError(f"expected {span}, received {_plain(value)}")
        return int(value) if self.whole else float(value)

    @property
    def decimals(self) -> int:
        """Of a slider that has some hundreds of steps."""
        return 0 if self.whole else max(0, math.ceil(math.log10(95 / (self.high - self.low))))

    def nearest(self, value: float) -> float:
        """To the slider's own steps, so that what is shown is what is run."""
        return min(self.high, max(self.low, round(value, self.decimals)))


@dataclass(frozen=True)
class OneOf:
    """A choice from a list."""

    values: tuple[Any, ...]

    def read(self, value: Any) -> Any:
        """What was chosen."""
        if isinstance(value, bool) or value not in self.values:
            raise ValueError(f"expected one of {', '.join(map(_plain, self.values))}")
        return value

    def nearest(self, value: Any) -> Any:
        """Nothing lies between two choices."""
        return value


Form = Mapping[str, Between | OneOf]


def problems(form: Form, entered: Mapping[str, object]) -> dict[str, str]:
    """What is wrong, by field; empty where nothing is."""
    found = {}
    for name, field in form.items():
        try:
            field.read(entered.get(name))
        except ValueError as error:
            found[name] = str(error)
    return found


def read(form: Form, entered: Mapping[str, object]) -> dict[str, Any]:
    """The values of a form's fields."""
    for name, message in problems(form, entered).items():
        raise FieldError(name, message)
    return {name: field.read(entered.get(name)) for name, field in form.items()}


def _plain(value: Any) -> str:
    """As one writes it: 3,000,000 and 0.02."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
