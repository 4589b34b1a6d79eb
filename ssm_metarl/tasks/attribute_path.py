"""Paths to a number inside a stranger's object, and how it gets there while the object is built.

Place in the flow: stage 1, under `gymnasium_plant`. Set on an environment that is built, parameters
leave what was derived from them stale: CartPole's ``total_mass``, the bounds of Pendulum's action
space. So while one is built, its class has a data descriptor in the attribute's place, which gives
the task's value to the first assignment inside ``__init__``; ``model.body_mass[1]`` is set as soon
as ``model`` is assigned.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

Step = tuple[bool, Any]
"""Of a path: an attribute's name (True), or what stands in brackets (False)."""
Changes = list[tuple[tuple[Step, ...], Any]]
"""Paths, and the value at the end of each."""
STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(-?\d+)\]|\[(['\"])(.*?)\3\]")


def parse_path(path: str) -> tuple[Step, ...]:
    """The steps of a path such as ``model.body_mass[1]``; ValueError where it is none."""
    steps: list[Step] = []
    rest = f".{path}"
    while match := STEP.match(rest):
        attribute, index, _, key = match.groups()
        item = int(index) if index is not None else key
        steps.append((True, attribute) if attribute is not None else (False, item))
        rest = rest[match.end() :]
    if rest or not steps:
        raise ValueError(
            f"parameter: expected an attribute or a path such as 'model.body_mass[1]', received "
            f"{path!r}"
        )
    return tuple(steps[1:] if steps[0] == (True, "unwrapped") and len(steps) > 1 else steps)


def part(holder: Any, step: Step) -> Any:
    """What stands at a step of a path."""
    attribute, key = step
    return getattr(holder, key) if attribute else holder[key]


def placed(holder: Any, steps: tuple[Step, ...], value: Any) -> Any:
    """An object in which ``value`` stands at the end of a path.

    It is the object itself, changed, or a copy of it where it is a frozen dataclass or a tuple.
    """
    if not steps:
        return value
    (attribute, key), rest = steps[0], steps[1:]
    old = part(holder, steps[0])
    new = placed(old, rest, value)
    if isinstance(holder, tuple):
        if attribute:
            return holder._replace(**{key: new})  # type: ignore[attr-defined]
        items = [new if i == range(len(holder))[key] else x for i, x in enumerate(holder)]
        return type(holder)(*items) if hasattr(holder, "_fields") else tuple(items)
    if getattr(getattr(holder, "__dataclass_params__", None), "frozen", False):
        return dataclasses.replace(holder, **{key: new})
    if rest and new is old:
        return holder
    if attribute:
        setattr(holder, key, new)
    else:
        holder[key] = new
    return holder


def make_own(plant: Any, steps: tuple[Step, ...]) -> None:
    """Copy an object of the class, in which a path goes on, for this environment alone."""
    name = steps[0][1]
    shared = inspect.getattr_static(type(plant), name, _Given)
    nested = len(steps) > 1 and name not in getattr(plant, "__dict__", {name})
    if nested and shared is not _Given and not hasattr(type(shared), "__get__"):
        setattr(plant, name, copy.deepcopy(shared))


class _Given:
    """Stands in an attribute's place while an environment is built.

    The default is what the class itself has under the name; `_Given` where it has nothing.
    """

    def __init__(self, name: str, changes: Changes, default: Any) -> None:
        self._name, self._changes, self._default = name, changes, default
        self._done: set[int] = set()

    def __get__(self, plant: Any, kind: type | None = None) -> Any:
        held = {} if plant is None else vars(plant)
        if self._name not in held:
            if self._default is _Given:
                raise AttributeError(self._name)
            if plant is None:
                return self._default
            held[self._name], _ = self._changed(copy.deepcopy(self._default))
        return held[self._name]

    def __set__(self, plant: Any, value: Any) -> None:
        if id(plant) not in self._done:
            value, done = self._changed(value)
            if done:
                self._done.add(id(plant))
        vars(plant)[self._name] = value

    def _changed(self, value: Any) -> tuple[Any, bool]:
        """A value in which the task's stand; False where it has no room for them yet."""
        try:
            for steps, given in self._changes:
                value = placed(value, steps, given)
        except (AttributeError, IndexError, KeyError, TypeError):
            return value, False
        return value, True


@contextlib.contextmanager
def given_to_first(kind: type | None, values: Changes) -> Iterator[None]:
    """Give the first assignment of these attributes of a class the values of a task."""
    changes: dict[str, Changes] = {}
    for steps, value in values if kind is not None else ():
        changes.setdefault(steps[0][1], []).append((steps[1:], value))
    with contextlib.ExitStack() as restored:
        for name, rest in changes.items():
            default = inspect.getattr_static(kind, name, _Given)
            if hasattr(type(default), "__set__"):
                continue  # a property or a slot, which knows what to do with a value
            own = vars(kind).get(name, _Given)
            try:
                setattr(kind, name, _Given(name, rest, default))
            except TypeError:  # a class of C
                continue
            restored.callback(
                *((delattr, kind, name) if own is _Given else (setattr, kind, name, own))
            )
        yield
