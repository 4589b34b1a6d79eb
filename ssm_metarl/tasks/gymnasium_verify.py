"""Does a parameter of a Gymnasium environment change anything? Drive it, and compare.

Place in the flow: stage 1, behind `TaskFamily.verify`. Tasks that differ in one parameter are
driven alike until something differs: by random actions, by extreme ones held for some steps, and by
extreme ones that go along with, or against, the last change of an observation. These swing a plant
up, and hold others in balance for long, so that limits far from the initial states are met.

What is found is told apart: nothing changed, though steps read the attribute (a limit that is never
reached), or no step reads it (it is inert); rewards alone; a plant that is another one when the
parameter is set after it was built (half-cached: tasks build it in, `gymnasium_plant`), or whose
constructor makes something else of the same value; and one that does not repeat itself, of which
nothing can be told.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.tasks.gymnasium_family import plant_of
from ssm_metarl.tasks.gymnasium_plant import parse_path
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
from ssm_metarl.tasks.task_family import (
    TaskFamily,
    TaskParameter,
    Tasks,
    not_repeated,
    rewards_alone,
    unchanged,
)

RANDOM_STEPS, DRIVEN_STEPS = 100, 300
HOLDS = (1, 6, 20, 60)
"""Steps for which an extreme action is held before the opposite one follows."""
MAX_DIMS = 8
"""Observations along whose motion it is driven, at most."""
NUMBERS = (int, float, np.number, np.ndarray)

Observation = NDArray[np.float64]
Act = Callable[[int, Observation, Observation], Any]
"""The action at step t, from the observation and the one before."""


@dataclass(frozen=True)
class Trace:
    """What a drive met."""

    obs: Observation
    """Each observation, the first ones of episodes too, shape (S, O)."""
    reward: NDArray[np.float64]
    """What led to it, shape (S,); 0 at an episode's start."""
    end: NDArray[np.float64]
    """1 where it ended an episode for good, 2 where by a time limit, shape (S,)."""


@dataclass(frozen=True)
class Drive:
    """A way to drive an environment."""

    seed: int
    """Of the first episode."""
    steps: int
    act: Act


def drives(space: ActionSpace, obs_dim: int) -> Iterator[Drive]:
    """Ways to drive an environment, the cheap ones first; actions as `GymnasiumWorld.native`."""
    for seed in (0, 1):
        rng = seeding.generator(seed, "verify")
        actions: NDArray[Any]
        if isinstance(space, Discrete):
            actions = rng.integers(space.n, size=RANDOM_STEPS)
        else:
            low, high = np.array(space.bounds).T
            actions = rng.uniform(low, high, (RANDOM_STEPS, space.dim))
        yield Drive(seed, RANDOM_STEPS, lambda t, obs, before, a=actions: a[t])  # type: ignore[misc]
    extremes: list[Any] = [space.n - 1, 0] if isinstance(space, Discrete) else [high, low]
    for hold in HOLDS:
        yield Drive(2, DRIVEN_STEPS, lambda t, obs, before, h=hold: extremes[t // h % 2])  # type: ignore[misc]
    for dim in range(min(obs_dim, MAX_DIMS)):
        for way in (0, 1):

            def along(
                t: int, obs: Observation, before: Observation, dim: int = dim, way: int = way
            ) -> Any:
                return extremes[(way + int(obs[dim] < before[dim])) % 2]

            yield Drive(3 + way, DRIVEN_STEPS, along)


def run(world: GymnasiumWorld, drive: Drive) -> Trace:
    """Drive an environment, from one episode into the next.

    Raises:
        ValueError: It raises, or returns something else than a step.
    """
    obs = before = world.reset(drive.seed).astype(np.float64)
    seen, rewards, ends = [obs], [0.0], [0.0]
    for t in range(drive.steps):
        action = world.native(drive.act(t, obs, before))
        after, reward, terminated, truncated = world.step(action)
        world.check(after, reward)
        obs, before = after.astype(np.float64), obs
        seen.append(obs)
        rewards.append(reward)
        ends.append(1.0 if terminated else 2.0 * truncated)
        if terminated or truncated:
            obs = before = world.reset().astype(np.float64)
            seen.append(obs)
            rewards.append(0.0)
            ends.append(0.0)
    return Trace(np.stack(seen), np.array(rewards), np.array(ends))


def first_difference(one: Trace, other: Trace) -> set[str]:
    """What differs where two traces part: of "obs", "reward" and "end"; empty if they never do."""
    steps = min(len(one.obs), len(other.obs))
    differs = {}
    for name in ("obs", "reward", "end"):
        a, b = (getattr(trace, name)[:steps].reshape(steps, -1) for trace in (one, other))
        differs[name] = ~np.isclose(a, b, 1e-6, 1e-9, equal_nan=True).all(axis=1)
    parted = np.flatnonzero(np.any(list(differs.values()), axis=0))
    return {name for name, rows in differs.items() if len(parted) > 0 and rows[parted[0]]}


def verify(tasks: Tasks, parameter: TaskParameter) -> None:
    """Check one parameter; errors and warnings are those of `TaskFamily.verify`.

    Args:
        tasks: That differ in this parameter alone; the first two not at all.
        parameter: Which one.
    """
    family, values = tasks.family, tasks.as_dicts()
    about = f"parameter {parameter.name!r} of {family.name}"
    steps, changed = 0, set[str]()
    with ExitStack() as opened:
        worlds = [opened.enter_context(closing(GymnasiumWorld(family, v))) for v in values]
        obs_dim, space = plant_of(family).spaces or (worlds[0].obs_dim, worlds[0].action_space)
        for drive in drives(space, obs_dim):
            first, *others = (run(world, drive) for world in worlds)
            steps += drive.steps
            if first_difference(first, others[0]):
                raise ValueError(not_repeated(parameter, family.name))
            changed |= set[str]().union(*(first_difference(first, other) for other in others))
            if changed - {"reward"}:
                break
    if not changed:
        read = _is_read(family, values[-1], parameter.name)
        found = {
            True: f" (never reached: steps read it, but nothing in {steps} of them depended on it; "
            "a limit out of reach of the actions?)",
            False: " (inert: no step reads it, it is unused)",
            None: f" (inert, or never reached in {steps} steps)",
        }[read]
        raise ValueError(unchanged(parameter, family.name) + found)
    if changed == {"reward"}:
        warnings.warn(rewards_alone(parameter, family.name), stacklevel=4)
    elif _is_made_otherwise(family, values, parameter.name):
        warnings.warn(
            f"{about}: half-cached: set as an attribute it does not do what it does given to the "
            f"constructor (a value is derived from the constructor's argument)",
            stacklevel=4,
        )
    elif stale := half_cached(family, values[-1], parameter.name):
        warnings.warn(
            f"{about}: half-cached: set on an environment that is built it does not do what it "
            f"does in one that is built with it, as tasks are ({stale})",
            stacklevel=4,
        )


def half_cached(family: TaskFamily, values: dict[str, float], name: str) -> str:
    """What does not follow where a parameter is set on an environment that is built.

    Args:
        family: Whose parameter it is.
        values: Of a task.
        name: Of the parameter.

    Returns:
        Names of attributes, or "the motion"; empty where the two are the same.
    """
    if callable(plant_of(family).place(name)):
        return ""  # a function is called on what is built
    others = {n: v for n, v in values.items() if n != name}
    with (
        closing(GymnasiumWorld(family, values)) as built,
        closing(GymnasiumWorld(family, others)) as was_set,
    ):
        was_set.set({name: values[name]})
        stale = _stale(built, was_set)
        if not _differ(family, built, was_set):
            return ""
    return ", ".join(stale) or "the motion"


def follows_afterwards(family: TaskFamily) -> bool:
    """Whether a task's parameters, set on another task's environment, make it that task's.

    Asked once, before environments are kept: the attributes are compared, and what drives meet.
    """
    if not family.parameters:
        return True
    here, there = (
        {p.name: p.of_kind(p.id.at(quantile)) for p in family.parameters} for quantile in (0.3, 0.8)
    )
    with (
        closing(GymnasiumWorld(family, here)) as built,
        closing(GymnasiumWorld(family, there)) as was_set,
    ):
        was_set.set(here)
        return not _stale(built, was_set) and not _differ(family, built, was_set)


def _differ(family: TaskFamily, one: GymnasiumWorld, other: GymnasiumWorld) -> bool:
    """Whether two environments part, driven alike."""
    _, space = plant_of(family).spaces or (0, one.action_space)
    return any(first_difference(run(one, d), run(other, d)) for d in drives(space, 0))


def _stale(built: GymnasiumWorld, was_set: GymnasiumWorld) -> list[str]:
    """Attributes of two environments, both not yet reset, that are numbers and differ."""
    one, other = (_numbers(world) for world in (built, was_set))
    return sorted(
        name
        for name in one.keys() & other.keys()
        if not np.array_equal(one[name], other[name], equal_nan=True)
    )


def _numbers(world: GymnasiumWorld) -> dict[str, NDArray[Any]]:
    plant = world.env.unwrapped
    held = {n: v for n, v in getattr(plant, "__dict__", {}).items() if isinstance(v, NUMBERS)}
    numbers = {n: np.asarray(v) for n, v in held.items()}
    if world.box is not None:
        numbers["action_space"] = np.stack([world.box.low, world.box.high])
    return {n: v for n, v in numbers.items() if np.issubdtype(v.dtype, np.number)}


def _is_read(family: TaskFamily, values: dict[str, float], name: str) -> bool | None:
    """Whether a reset or a step reads an attribute; None where that cannot be watched."""
    place = plant_of(family).place(name)
    if callable(place) or len(parse_path(place)) > 1:
        return None
    attribute, reads = parse_path(place)[0][1], 0
    with closing(GymnasiumWorld(family, values)) as world:
        plant: Any = world.env.unwrapped
        kind: Any = type(plant)

        class Watched(kind):  # type: ignore[misc]
            def __getattribute__(self, asked: str) -> Any:
                nonlocal reads
                reads += asked == attribute
                return super().__getattribute__(asked)

        try:
            plant.__class__ = Watched
        except TypeError:  # a class of C, whose objects keep theirs
            return None
        for drive in drives(world.action_space, world.obs_dim):
            run(world, drive)
            if reads > 0:
                break
    return reads > 0


def _is_made_otherwise(family: TaskFamily, values: list[dict[str, float]], name: str) -> bool:
    """Whether an environment that is made with the value is another one than that it is set in.

    Asked only where the constructor takes the name, and keeps what it takes under it.
    """
    plant = plant_of(family)
    if plant.place(name) != name:
        return False
    with closing(plant.build()) as env:
        taken = inspect.signature(type(env.unwrapped)).parameters.get(name)
        known = {**(env.spec.kwargs if env.spec else {}), **dict(plant.kwargs)}
        default = known.get(name, taken.default if taken else None)
        if taken is None or default != getattr(env.unwrapped, name):
            return False
    given = (*(item for item in plant.kwargs if item[0] != name), (name, values[-1][name]))
    others = {n: v for n, v in values[-1].items() if n != name}
    made_so = replace(family, plant=replace(plant, kwargs=given))
    try:
        made = GymnasiumWorld(made_so, others)
    except ValueError:  # its maker passes no such argument on
        return False
    with closing(made), closing(GymnasiumWorld(family, values[-1])) as was_built:
        return _differ(family, was_built, made)
