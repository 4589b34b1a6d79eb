"""Does a parameter of a Gymnasium environment change anything? Drive it, and compare.

Place in the flow: stage 1, behind `TaskFamily.verify`. Tasks that differ in one parameter are
driven alike until something differs: by random actions, by extreme ones held for some steps, and by
extreme ones that go along with, or against, the last change of an observation. These swing a plant
up, and hold others in balance for long, so that limits far from the initial states are met.

Where nothing changes, steps may still read the attribute (a limit that is never reached), or none
does (it is inert). Where something does, it may be another plant when the parameter is set after it
was built (half-cached: tasks build it in, `gymnasium_plant`), or given to its constructor.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.tasks.attribute_path import parse_path
from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
from ssm_metarl.tasks.task_parameter import TaskParameter
from ssm_metarl.tasks.verify import judge

RANDOM_STEPS, DRIVEN_STEPS = 100, 300
HOLDS = (1, 6, 20, 60)
"""Steps for which an extreme action is held before the opposite one follows."""
MAX_DIMS = 8
"""Observations along whose motion it is driven, at most."""
NUMBERS = (int, float, np.number, np.ndarray)

Values = Mapping[str, float]
Numbers = NDArray[np.float64]
Trace = dict[str, Numbers]
"""What a drive met: "obs" (S, O), the first ones of episodes too; "reward" (S,), 0 at an episode's
start; "end" (S,), 1 where it ended an episode for good, 2 where by a time limit."""


@dataclass(frozen=True)
class Drive:
    """A way to drive an environment."""

    seed: int
    """Of the first episode."""
    steps: int
    act: Callable[[int, Numbers, Numbers], Any]
    """The action at step t, from the observation and the one before; see `native`."""


def drives(space: ActionSpace, dims: int) -> Iterator[Drive]:
    """Ways to drive an environment, the cheap ones first, the last along so many observations."""
    for seed in (0, 1):
        rng = seeding.generator(seed, "verify")
        actions = space.random(rng, RANDOM_STEPS).numpy()
        yield Drive(seed, RANDOM_STEPS, lambda t, obs, before, a=actions: a[t])  # type: ignore[misc]
    extremes: list[Any] = (
        [0, space.n - 1] if isinstance(space, Discrete) else [*np.array(space.bounds).T]
    )
    for hold in HOLDS:
        yield Drive(2, DRIVEN_STEPS, lambda t, obs, before, h=hold: extremes[1 - t // h % 2])  # type: ignore[misc]
    for dim in range(dims):
        for way in (0, 1):

            def along(t: int, obs: Numbers, before: Numbers, dim: int = dim, way: int = way) -> Any:
                return extremes[int(obs[dim] >= before[dim]) ^ way]

            yield Drive(3 + way, DRIVEN_STEPS, along)


def run(world: GymnasiumWorld, drive: Drive) -> Trace:
    """Drive an environment, from one episode into the next.

    Raises:
        ValueError: It raises, or returns something else than a step.
    """
    obs = before = world.reset(drive.seed).astype(np.float64)
    rows = [(obs, 0.0, 0.0)]
    for t in range(drive.steps):
        after, reward, terminated, truncated = world.step(world.native(drive.act(t, obs, before)))
        world.check(after, reward)
        obs, before = after.astype(np.float64), obs
        rows.append((obs, reward, 1.0 if terminated else 2.0 * truncated))
        if terminated or truncated:
            obs = before = world.reset().astype(np.float64)
            rows.append((obs, 0.0, 0.0))
    return dict(zip(("obs", "reward", "end"), map(np.array, zip(*rows, strict=True)), strict=True))


def first_difference(one: Trace, other: Trace) -> set[str]:
    """What differs where two traces part: of "obs", "reward" and "end"; empty if they never do."""
    steps = min(len(one["obs"]), len(other["obs"]))
    differs = {}
    for name in one:
        a, b = (trace[name][:steps].reshape(steps, -1) for trace in (one, other))
        differs[name] = np.asarray(~np.isclose(a, b, 1e-6, 1e-9, equal_nan=True).all(axis=1))
    parted = np.flatnonzero(np.any(list(differs.values()), axis=0))
    return {name for name, rows in differs.items() if len(parted) > 0 and rows[parted[0]]}


def verify(
    plant: GymnasiumPlant, parameter: TaskParameter, values: Sequence[Values], family: str
) -> None:
    """Check one parameter on the tasks that are `probed`, see `TaskFamily.verify`."""
    name, steps = parameter.name, 0

    def differences() -> Generator[list[set[str]], None, None]:
        nonlocal steps
        with ExitStack() as opened:
            worlds = [opened.enter_context(closing(GymnasiumWorld(plant, v))) for v in values]
            for drive in _drives_of(worlds[0]):
                first, *others = (run(world, drive) for world in worlds)
                steps += drive.steps
                yield [first_difference(first, other) for other in others]

    def unmoved() -> str:
        return {
            True: f" (never reached: steps read it, but nothing in {steps} of them depended on it; "
            "a limit out of reach of the actions?)",
            False: " (inert: no step reads it, it is unused)",
            None: f" (inert, or never reached in {steps} steps)",
        }[_is_read(plant, values[-1], name)]

    with closing(differences()) as differing:  # and the environments with it
        if not judge(parameter, family, differing, unmoved):
            return
    if _is_made_otherwise(plant, values[-1], name):
        found = (
            "set as an attribute it does not do what it does given to the constructor (a value is "
            "derived from the constructor's argument)"
        )
    elif stale := half_cached(plant, values[-1], name):
        found = (
            f"set on an environment that is built it does not do what it does in one that is built "
            f"with it, as tasks are ({stale})"
        )
    else:
        return
    warnings.warn(f"parameter {name!r} of {family}: half-cached: {found}", stacklevel=4)


def half_cached(plant: GymnasiumPlant, values: Values, name: str) -> str:
    """What does not follow where a task's parameter is set on an environment that is built.

    Returns:
        Names of attributes, or "the motion"; empty where the two are the same.
    """
    if callable(plant.place(name)):
        return ""  # a function is called on what is built
    others = {n: v for n, v in values.items() if n != name}
    stale, parted = _set_afterwards(plant, others, {name: values[name]}, values)
    return (", ".join(stale) or "the motion") if parted else ""


def follows_afterwards(plant: GymnasiumPlant, parameters: Sequence[TaskParameter]) -> bool:
    """Whether a task's parameters, set on another task's environment, make it that task's.

    Asked once, before environments are kept: the attributes are compared, and what drives meet.
    """
    if not parameters:
        return True
    here, there = (
        {p.name: p.of_kind(p.id.at(quantile)) for p in parameters} for quantile in (0.3, 0.8)
    )
    stale, parted = _set_afterwards(plant, there, here, here)
    return not (stale or parted)


def _set_afterwards(
    plant: GymnasiumPlant, made: Values, given: Values, task: Values
) -> tuple[list[str], bool]:
    """Compare an environment that is made, and then given values, with one built with a task's.

    Returns:
        Attributes that are numbers and differ, before any reset; whether the two part.
    """
    with (
        closing(GymnasiumWorld(plant, task)) as built,
        closing(GymnasiumWorld(plant, made)) as other,
    ):
        other.set(given)
        a, b = _numbers(built), _numbers(other)
        stale = [n for n in a.keys() & b.keys() if not np.array_equal(a[n], b[n], equal_nan=True)]
        return sorted(stale), _part(built, other)


def _part(one: GymnasiumWorld, other: GymnasiumWorld) -> bool:
    """Whether two environments of a plant part, driven alike."""
    return any(first_difference(run(one, d), run(other, d)) for d in _drives_of(one, 0))


def _drives_of(world: GymnasiumWorld, dims: int = MAX_DIMS) -> Iterator[Drive]:
    """Drives to the ends of what any task of the plant takes, along so many observations."""
    obs_dim, space = world.plant.spaces or (world.obs_dim, world.action_space)
    return drives(space, min(obs_dim, dims))


def _numbers(world: GymnasiumWorld) -> dict[str, NDArray[Any]]:
    plant = world.env.unwrapped
    held = {n: v for n, v in getattr(plant, "__dict__", {}).items() if isinstance(v, NUMBERS)}
    numbers = {n: np.asarray(v) for n, v in held.items()}
    if world.box is not None:
        numbers["action_space"] = np.stack([world.box.low, world.box.high])
    return {n: v for n, v in numbers.items() if np.issubdtype(v.dtype, np.number)}


def _is_read(plant: GymnasiumPlant, values: Values, name: str) -> bool | None:
    """Whether a reset or a step reads an attribute; None where that cannot be watched."""
    place = plant.place(name)
    if callable(place) or len(parse_path(place)) > 1:
        return None
    attribute, reads = parse_path(place)[0][1], 0
    with closing(GymnasiumWorld(plant, values)) as world:
        watched: Any = world.env.unwrapped
        kind: Any = type(watched)

        class Watched(kind):  # type: ignore[misc]
            def __getattribute__(self, asked: str) -> Any:
                nonlocal reads
                reads += asked == attribute
                return super().__getattribute__(asked)

        try:
            watched.__class__ = Watched
        except TypeError:  # a class of C, whose objects keep theirs
            return None
        for drive in _drives_of(world):
            run(world, drive)
            if reads > 0:
                break
    return reads > 0


def _is_made_otherwise(plant: GymnasiumPlant, values: Values, name: str) -> bool:
    """Whether an environment that is made with the value is another one than that it is set in.

    Asked only where the constructor takes the name, and keeps what it takes under it.
    """
    if plant.place(name) != name:
        return False
    with closing(plant.build()) as env:
        taken = inspect.signature(type(env.unwrapped)).parameters.get(name)
        known = {**(env.spec.kwargs if env.spec else {}), **dict(plant.kwargs)}
        default = known.get(name, taken.default if taken else None)
        if taken is None or default != getattr(env.unwrapped, name):
            return False
    kwargs = {**dict(plant.kwargs), name: values[name]}
    others = {n: v for n, v in values.items() if n != name}
    try:
        made = GymnasiumWorld(replace(plant, kwargs=tuple(kwargs.items())), others)
    except ValueError:  # its maker passes no such argument on
        return False
    with closing(made), closing(GymnasiumWorld(plant, values)) as was_built:
        return _part(was_built, made)
