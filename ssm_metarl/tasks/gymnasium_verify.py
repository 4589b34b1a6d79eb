"""Does a parameter of a Gymnasium environment change anything? Drive it, and compare.

Place in the flow: stage 1, behind `TaskFamily.verify`. Tasks that differ in one parameter are
driven alike until something differs: by random actions, by extreme ones held for some steps, and by
extreme ones that go along with, or against, the last change of an observation. These swing a plant
up, and hold others in balance for long, so that limits far from the initial states are met.

What is found is told apart: nothing changed, though steps read the attribute (a limit out of
reach), or no step reads it (unused, or a value derived from it is cached); rewards alone; a plant
whose constructor makes something else of the same value (cached in part); and one that does not
repeat itself, of which nothing can be told.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.tasks.gymnasium_family import make_environment
from ssm_metarl.tasks.task_family import TaskParameter, Tasks, not_repeated, unchanged

if TYPE_CHECKING:
    import gymnasium

RANDOM_STEPS, DRIVEN_STEPS = 100, 300
HOLDS = (1, 6, 20, 60)
"""Steps for which an extreme action is held before the opposite one follows."""
MAX_DIMS = 8
"""Observations along whose motion it is driven, at most."""

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


def drives(env: gymnasium.Env[Any, Any], obs_dim: int) -> Iterator[Drive]:
    """Ways to drive an environment, the cheap ones first."""
    from gymnasium import spaces

    space = env.action_space
    for seed in (0, 1):
        space.seed(seed)
        actions = [space.sample() for _ in range(RANDOM_STEPS)]
        yield Drive(seed, RANDOM_STEPS, lambda t, obs, before, a=actions: a[t])  # type: ignore[misc]
    if isinstance(space, spaces.Discrete):
        extremes: list[Any] = [space.start + space.n - 1, space.start]
    else:
        assert isinstance(space, spaces.Box)
        extremes = [space.high, space.low]
    for hold in HOLDS:
        yield Drive(2, DRIVEN_STEPS, lambda t, obs, before, h=hold: extremes[t // h % 2])  # type: ignore[misc]
    for dim in range(min(obs_dim, MAX_DIMS)):
        for way in (0, 1):

            def along(
                t: int, obs: Observation, before: Observation, dim: int = dim, way: int = way
            ) -> Any:
                return extremes[(way + int(obs[dim] < before[dim])) % 2]

            yield Drive(3 + way, DRIVEN_STEPS, along)


def run(env: gymnasium.Env[Any, Any], drive: Drive) -> Trace:
    """Drive an environment, from one episode into the next."""
    first, _ = env.reset(seed=drive.seed)
    obs = before = np.ravel(first).astype(np.float64)
    seen, rewards, ends = [obs], [0.0], [0.0]
    for t in range(drive.steps):
        after, reward, terminated, truncated, _ = env.step(drive.act(t, obs, before))
        obs, before = np.ravel(after).astype(np.float64), obs
        seen.append(obs)
        rewards.append(float(reward))
        ends.append(1.0 if terminated else 2.0 * truncated)
        if terminated or truncated:
            first, _ = env.reset()
            obs = before = np.ravel(first).astype(np.float64)
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
    family = tasks.family
    assert family.gymnasium_id is not None
    values = tasks.as_dicts()
    steps, changed = 0, set[str]()
    with ExitStack() as opened:
        envs = []
        for value in values:
            env = make_environment(
                family.gymnasium_id, value, max_episode_steps=family.max_episode_steps
            )
            opened.callback(env.close)
            envs.append(env)
        obs_dim = int(np.prod(envs[0].observation_space.shape or ()))
        for drive in drives(envs[0], obs_dim):
            first, *others = (run(env, drive) for env in envs)
            steps += drive.steps
            if first_difference(first, others[0]):
                raise ValueError(not_repeated(parameter, family.name))
            changed |= set[str]().union(*(first_difference(first, other) for other in others))
            if changed - {"reward"}:
                break
    if not changed:
        read = _is_read(family.gymnasium_id, values[-1], parameter.name, obs_dim)
        found = {
            True: f" (steps read it, but nothing in {steps} of them depended on it: a limit out of "
            "reach of the actions?)",
            False: " (no step reads it: it is unused, or a value derived from it is cached)",
            None: "",
        }[read]
        raise ValueError(unchanged(parameter, family.name) + found)
    if changed == {"reward"}:
        warnings.warn(
            f"parameter {parameter.name!r} of {family.name}: changes rewards alone, which adapting "
            f"by prediction cannot see",
            stacklevel=3,
        )
    elif _is_made_otherwise(family.gymnasium_id, values, parameter.name):
        warnings.warn(
            f"parameter {parameter.name!r} of {family.name}: set as an attribute it does not do "
            f"what it does given to the constructor (a value derived from it is cached)",
            stacklevel=3,
        )


def _is_read(env_id: str, values: dict[str, float], name: str, obs_dim: int) -> bool | None:
    """Whether a reset or a step reads an attribute; None where that cannot be watched."""
    env = make_environment(env_id, values)
    plant, reads = env.unwrapped, 0
    kind: Any = type(plant)

    class Watched(kind):  # type: ignore[misc]
        def __getattribute__(self, attribute: str) -> Any:
            nonlocal reads
            reads += attribute == name
            return super().__getattribute__(attribute)

    try:
        plant.__class__ = Watched
        for drive in drives(env, obs_dim):
            run(env, drive)
            if reads > 0:
                break
    except TypeError:  # a class of C, whose objects keep theirs
        return None
    finally:
        env.close()
    return reads > 0


def _is_made_otherwise(env_id: str, values: list[dict[str, float]], name: str) -> bool:
    """Whether an environment that is made with the value is another one than that it is set on.

    Asked only where the constructor takes the name, and keeps what it takes under it.
    """
    import gymnasium

    with ExitStack() as opened:
        plain = make_environment(env_id)
        opened.callback(plain.close)
        taken = inspect.signature(type(plain.unwrapped)).parameters.get(name)
        kwargs = plain.spec.kwargs if plain.spec else {}
        default = kwargs.get(name, taken.default if taken else None)
        if taken is None or default != getattr(plain.unwrapped, name):
            return False
        given: dict[str, Any] = {name: values[-1][name]}
        made = gymnasium.make(env_id, disable_env_checker=True, **given)
        opened.callback(made.close)
        for attribute, value in values[-1].items():
            if attribute != name:
                setattr(made.unwrapped, attribute, value)
        was_set = make_environment(env_id, values[-1])
        opened.callback(was_set.close)
        return any(
            first_difference(run(was_set, drive), run(made, drive)) for drive in drives(made, 0)
        )
