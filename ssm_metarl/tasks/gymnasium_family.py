"""Task families over any Gymnasium environment: parameters are attributes of ``env.unwrapped``.

Place in the flow: stage 1, behind `TaskFamily.from_gymnasium` and `TaskFamily.verify`;
`env_runner.gymnasium_worlds` makes its environments here.

The trap: an environment may cache what it derives from an attribute. Gymnasium's CartPole computes
``total_mass`` once, so a changed ``masscart`` changes nothing, and a changed ``masspole`` changes
one term of three. `TaskFamily.verify` finds the first kind, nothing finds the second: read the
environment's ``step`` before declaring a parameter.

Gymnasium is imported inside the functions, to keep ``import ssm_metarl`` cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter, Tasks, Uniform

if TYPE_CHECKING:
    import gymnasium

TRACE_SEEDS = (0, 1)
TRACE_STEPS = 100


def make_environment(
    env_id: str,
    values: Mapping[str, float] | None = None,
    *,
    max_episode_steps: int | None = None,
    check: bool = False,
    expected: str = "a Gymnasium id such as 'Pendulum-v1'",
) -> gymnasium.Env[Any, Any]:
    """Make one Gymnasium environment and set attributes on it.

    Args:
        env_id: A registered id.
        values: Attributes to set on ``env.unwrapped``.
        max_episode_steps: Time limit; None for the environment's own.
        check: Keep Gymnasium's checks of every action and observation (slow).
        expected: What the error message says an id should have been.

    Raises:
        ValueError: Gymnasium does not know the id.
    """
    import gymnasium

    try:
        env = gymnasium.make(
            env_id, max_episode_steps=max_episode_steps, disable_env_checker=None if check else True
        )
    except gymnasium.error.DependencyNotInstalled:
        raise  # the id is right, and the message says what to install
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"environment: expected {expected}, received {env_id!r} ({reason})"
        ) from None
    for name, value in (values or {}).items():
        setattr(env.unwrapped, name, value)
    return env


def declare(
    env_id: str,
    parameters: Mapping[str, Uniform | Choice],
    ood: Mapping[str, Uniform | Choice],
    name: str | None,
) -> TaskFamily:
    """The body of :meth:`TaskFamily.from_gymnasium`, where arguments and errors are described."""
    if unknown := sorted(set(ood) - set(parameters)):
        raise ValueError(f"ood: expected some of {sorted(parameters)}, received {unknown}")
    env = make_environment(env_id)
    try:
        declared = tuple(
            TaskParameter(
                name=attribute,
                unit=id_range.unit,
                default=_default(env, env_id, attribute),
                id=id_range,
                ood=_ood_range(attribute, id_range, ood.get(attribute)),
                meaning=f"attribute of {env_id}",
            )
            for attribute, id_range in parameters.items()
        )
    finally:
        env.close()
    return TaskFamily(name=name or env_id, parameters=declared, gymnasium_id=env_id)


def _default(env: gymnasium.Env[Any, Any], env_id: str, attribute: str) -> float:
    if not hasattr(env.unwrapped, attribute):
        known = sorted(k for k, v in vars(env.unwrapped).items() if _is_number(v) and k[0] != "_")
        raise ValueError(
            f"parameter {attribute!r}: expected an attribute of {env_id} (such as "
            f"{', '.join(known)}), received a name it does not have"
        )
    value = getattr(env.unwrapped, attribute)
    if not _is_number(value):
        raise ValueError(
            f"parameter {attribute!r} of {env_id}: expected a number, received {value!r}"
        )
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _ood_range(
    name: str, id_range: Uniform | Choice, given: Uniform | Choice | None
) -> Uniform | Choice:
    """The given OOD range, checked, or half the ID range's width on either side of it."""
    if isinstance(id_range, Choice):
        return given or id_range
    if isinstance(given, Uniform):
        for low, high in given.intervals:
            if any(low < b and a < high for a, b in id_range.intervals):
                raise ValueError(
                    f"ood range of {name!r}: expected none of the ID range "
                    f"{list(id_range.intervals)}, received [{low:g}, {high:g}]"
                )
    if given is not None:
        return given
    low = min(a for a, _ in id_range.intervals)
    high = max(b for _, b in id_range.intervals)
    half_width = (high - low) / 2
    # A mass or a length must not become negative: a range keeps the sign that it has.
    below = min(half_width, low / 2) if low > 0 else half_width
    above = min(half_width, -high / 2) if high < 0 else half_width
    if low == 0:
        return Uniform(high, high + above, unit=id_range.unit)
    if high == 0:
        return Uniform(low - below, low, unit=id_range.unit)
    return Uniform(low - below, low, unit=id_range.unit, also=((high, high + above),))


def trace(tasks: Tasks) -> Tensor:
    """What random actions meet in each task: every observation, reward and end.

    Returns:
        Shape (K, number of values), float64; the tasks meet the same actions and seeds.
    """
    from gymnasium.spaces import flatten

    assert tasks.family.gymnasium_id is not None
    rows = []
    for values in tasks.as_dicts():
        env = make_environment(tasks.family.gymnasium_id, values)
        numbers: list[Any] = []
        for seed in TRACE_SEEDS:
            env.action_space.seed(seed)
            obs, _ = env.reset(seed=seed)
            numbers.append(flatten(env.observation_space, obs))
            for _ in range(TRACE_STEPS):
                obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                numbers.append(flatten(env.observation_space, obs))
                numbers.append([float(reward), terminated, truncated])
                if terminated or truncated:
                    obs, _ = env.reset()
        env.close()
        rows.append(np.concatenate(numbers).astype(np.float64))
    return torch.from_numpy(np.stack(rows))
