"""How a Gymnasium environment is made for a task, and where its parameters stand.

Place in the flow: stage 1, under `gymnasium_family` (what is declared) and `gymnasium_world`.

Parameters take effect while an environment is built (`attribute_path`); a function ``(env, value)``
is called once everything is.

The trap: an entry point may be any function, so the class is known only once it was built; the
first environment of a plant is built twice.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.tasks.attribute_path import given_to_first, make_own, parse_path, placed
from ssm_metarl.tasks.task_parameter import Choice, Uniform

if TYPE_CHECKING:
    import gymnasium

Place = str | Callable[[Any, Any], None]
"""A path from ``env.unwrapped``, or a function that sets a value on it."""
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
            with given_to_first(kind, given):
                env = self._make(check, expected)
            if given and type(env.unwrapped) is not kind:
                env.close()
                kind = _KINDS[self.make] = type(env.unwrapped)
                with given_to_first(kind, given):
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
                    make_own(plant, steps)
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


def _follow_in_mujoco(plant: Any) -> None:
    """Let a MuJoCo model's constants follow what was changed in it."""
    mujoco: Any = sys.modules.get("mujoco")
    model, data = getattr(plant, "model", None), getattr(plant, "data", None)
    if mujoco is not None and isinstance(model, mujoco.MjModel):
        mujoco.mj_setConst(model, data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no message"
