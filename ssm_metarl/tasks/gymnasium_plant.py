"""How a Gymnasium environment is made for a task, and where its parameters stand.

Place in the flow: stage 1, under `gymnasium_family` (what is declared) and `gymnasium_world`.

Set on an environment that is built, parameters leave what was derived from them stale: CartPole's
``total_mass``, the bounds of Pendulum's action space. So while one is built, its class has a data
descriptor in the attribute's place, which gives the task's value to the first assignment inside
``__init__``. ``model.body_mass[1]`` is set as soon as ``model`` is assigned, a function
``(env, value)`` is called once everything is built.

The trap: an entry point may be any function, so the class is known only once it was built; the
first environment of a plant is built twice.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.tasks.task_parameter import Choice, Uniform

if TYPE_CHECKING:
    import gymnasium

Place = str | Callable[[Any, Any], None]
"""A path from ``env.unwrapped``, or a function that sets a value on it."""
Step = tuple[bool, Any]
"""Of a path: an attribute's name (True), or what stands in brackets (False)."""
STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(-?\d+)\]|\[(['\"])(.*?)\3\]")
_KINDS: dict[Any, type] = {}
"""Class of the environment that an id or a factory makes, as far as it is known."""
_BUILDING = threading.RLock()


@dataclass(frozen=True)
class Setting:
    """A parameter of a Gymnasium environment that does not stand under its own name."""

    at: Place
    """A path from ``env.unwrapped``, such as ``model.body_mass[1]``; or a function that sets a
    value on ``env.unwrapped``, which is called once the environment is built."""
    values: Uniform | Choice
    """Its ID range."""
    default: float | None = None
    """The value of the unmodified environment; None for what stands at the path."""


@dataclass(frozen=True)
class GymnasiumPlant:
    """Environments that differ in declared parameters."""

    make: str | Callable[..., gymnasium.Env[Any, Any]]
    """A registered id, or a callable that returns an environment."""
    kwargs: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments of both."""
    places: tuple[tuple[str, Place], ...] = ()
    """Where each parameter stands; one that is not listed is an attribute of its name."""
    limit: int | None = None
    """Time limit, in place of the environments' own; None for that."""
    spaces: tuple[int, ActionSpace] | None = None
    """Size of the observations and the actions of its tasks, once they are declared."""
    horizon: int = 0
    """Most steps of an episode of its tasks, likewise."""

    @property
    def name(self) -> str:
        """What it is called in errors, and by default a family of it."""
        if isinstance(self.make, str):
            return self.make
        name = str(getattr(self.make, "__qualname__", type(self.make).__qualname__))
        return name.rpartition("<locals>.")[2]

    def place(self, parameter: str) -> Place:
        """Where a parameter stands."""
        return dict(self.places).get(parameter, parameter)

    def build(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        check: bool = False,
        expected: str = "a Gymnasium id such as 'Pendulum-v1'",
    ) -> gymnasium.Env[Any, Any]:
        """One environment, whose parameters took effect while it was built.

        Args:
            values: Of the parameters.
            check: Keep Gymnasium's checks of every action and observation (slow).
            expected: What the error message says an id should have been.

        Raises:
            ValueError: Gymnasium does not know the id, it cannot be made, or a value cannot be set.
        """
        values = values or {}
        places = [(self.place(name), value) for name, value in values.items()]
        given = [(parse_path(at), value) for at, value in places if isinstance(at, str)]
        with _BUILDING:
            kind = _KINDS.get(self.make)
            with _given(kind, given):
                env = self._make(check, expected)
            if given and type(env.unwrapped) is not kind:
                env.close()
                kind = _KINDS[self.make] = type(env.unwrapped)
                with _given(kind, given):
                    env = self._make(check, expected)
        try:
            self.set(env, values)
        except BaseException:
            env.close()
            raise
        return env

    def set(self, env: gymnasium.Env[Any, Any], values: Mapping[str, Any]) -> None:
        """Set parameters on an environment that is built; what it derived from them may not follow.

        Raises:
            ValueError: A value cannot be set.
        """
        plant = env.unwrapped
        for name, value in values.items():
            place = self.place(name)
            try:
                if isinstance(place, str):
                    steps = parse_path(place)
                    _own(plant, steps)
                    placed(plant, steps, value)
                else:
                    place(plant, value)
            except Exception as error:
                raise ValueError(
                    f"parameter {name!r} of {self.name}: expected that it can be set to {value:g}, "
                    f"received {type(error).__name__}: {_line(error)}"
                ) from error
        if values:
            _follow_in_mujoco(plant)

    def _make(self, check: bool, expected: str) -> gymnasium.Env[Any, Any]:
        import gymnasium

        make = self.make
        if isinstance(make, str):
            make = partial(gymnasium.make, make, max_episode_steps=self.limit,
                           disable_env_checker=None if check else True)  # fmt: skip
        try:
            env = make(**dict(self.kwargs))
        except gymnasium.error.DependencyNotInstalled:
            raise  # the id is right, and the message says what to install
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            raise ValueError(
                f"environment: expected {expected}, received {self.make!r} ({_line(error)})"
            ) from None
        except Exception as error:
            raise ValueError(
                f"environment {self.name}: expected one that can be made, received "
                f"{type(error).__name__}: {_line(error)}"
            ) from error
        if not isinstance(env, gymnasium.Env):
            raise ValueError(
                f"environment {self.name}: expected a gymnasium.Env, received {type(env).__name__}"
            )
        if self.limit is None or isinstance(self.make, str):
            return env
        return gymnasium.wrappers.TimeLimit(env, self.limit)


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


def _own(plant: Any, steps: tuple[Step, ...]) -> None:
    """Copy an object of the class, in which a path goes on, for this environment alone."""
    name = steps[0][1]
    shared = _class_attribute(type(plant), name)
    nested = len(steps) > 1 and name not in getattr(plant, "__dict__", {name})
    if nested and shared is not _Given and not hasattr(type(shared), "__get__"):
        setattr(plant, name, copy.deepcopy(shared))


Changes = list[tuple[tuple[Step, ...], Any]]
"""Paths, and the value at the end of each."""


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
def _given(kind: type | None, values: Changes) -> Iterator[None]:
    """Give the first assignment of these attributes of a class the values of a task."""
    changes: dict[str, Changes] = {}
    for steps, value in values if kind is not None else ():
        changes.setdefault(steps[0][1], []).append((steps[1:], value))
    with contextlib.ExitStack() as restored:
        for name, rest in changes.items():
            default = _class_attribute(kind, name)
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


def _class_attribute(kind: type | None, name: str) -> Any:
    """What a class or one of its bases has under a name, `_Given` for nothing."""
    for base in getattr(kind, "__mro__", ()):
        if name in vars(base):
            return vars(base)[name]
    return _Given


def _follow_in_mujoco(plant: Any) -> None:
    """Let a MuJoCo model's constants follow what was changed in it."""
    mujoco: Any = sys.modules.get("mujoco")
    model, data = getattr(plant, "model", None), getattr(plant, "data", None)
    if mujoco is not None and isinstance(model, mujoco.MjModel):
        mujoco.mj_setConst(model, data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no message"
