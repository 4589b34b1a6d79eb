"""Task families over any Gymnasium environment: parameters are attributes of ``env.unwrapped``.

Place in the flow: stage 1, behind `TaskFamily.from_gymnasium`; `env_runner.gymnasium_worlds` makes
its environments here.

The trap: an environment may cache what it derives from an attribute. Gymnasium's CartPole computes
``total_mass`` once, so a changed ``masscart`` changes nothing, and a changed ``masspole`` changes
one term of three. `TaskFamily.verify` finds the first kind, and the second where the environment's
constructor takes the parameter too (`gymnasium_verify`): read the environment's ``step`` before
declaring a parameter.

Gymnasium is imported inside the functions, to keep ``import ssm_metarl`` cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter, Uniform

if TYPE_CHECKING:
    import gymnasium

    from ssm_metarl.action_space import ActionSpace


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
    try:
        for name, value in (values or {}).items():
            setattr(env.unwrapped, name, value)
    except BaseException:
        env.close()
        raise
    return env


def spaces_of(env: gymnasium.Env[Any, Any]) -> tuple[int, ActionSpace]:
    """Observation size and action space of an environment, as the rest of the package names them.

    Raises:
        ValueError: Observations that are not a box of numbers; actions that are neither discrete
            nor a box with finite bounds.
    """
    from gymnasium import spaces

    name = env.spec.id if env.spec else str(env)
    observations, actions = env.observation_space, env.action_space
    obs_dim = 0
    if isinstance(observations, spaces.Box):
        obs_dim = int(np.prod(observations.shape))
    if obs_dim == 0:
        raise ValueError(
            f"observation space of {name}: expected a Box of at least one number, received "
            f"{_in_one_line(observations)}; wrap it before it is registered, such as in "
            f"gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(actions, spaces.Discrete):
        return obs_dim, Discrete(int(actions.n))
    if isinstance(actions, spaces.Box) and actions.low.size > 0:
        if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
            raise ValueError(
                f"action space of {name}: expected finite bounds, received "
                f"{_in_one_line(actions)}; wrap it before it is registered, such as in "
                f"gymnasium.wrappers.TransformAction with a Box that has bounds"
            )
        low, high = (tuple(np.ravel(x).astype(float).tolist()) for x in (actions.low, actions.high))
        return obs_dim, Continuous(len(low), low, high)
    raise ValueError(
        f"action space of {name}: expected Discrete, or a Box with finite bounds, received "
        f"{_in_one_line(actions)}"
    )


def _in_one_line(space: gymnasium.Space[Any]) -> str:
    """A space's own words: the bounds of many numbers take several lines, and are left out."""
    words = " ".join(str(space).split())
    return words if len(words) <= 200 else f"{words[:200]}..."


def declare(
    env_id: str,
    parameters: Mapping[str, Uniform | Choice],
    ood: Mapping[str, Uniform | Choice],
    name: str | None,
    max_episode_steps: int | None,
    obs_scale: Sequence[float] | None,
) -> TaskFamily:
    """The body of :meth:`TaskFamily.from_gymnasium`, where arguments and errors are described."""
    if unknown := sorted(set(ood) - set(parameters)):
        raise ValueError(f"ood: expected some of {sorted(parameters)}, received {unknown}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps: expected at least 1, received {max_episode_steps}")
    env = make_environment(env_id)
    try:
        obs_dim, _ = spaces_of(env)
        if max_episode_steps is None and (env.spec is None or env.spec.max_episode_steps is None):
            raise ValueError(
                f"max_episode_steps: expected a number for {env_id}, which is registered without "
                f"a time limit, received None; pass from_gymnasium(..., max_episode_steps=200)"
            )
        declared = tuple(
            TaskParameter(
                name=attribute,
                unit=id_range.unit,
                default=_default(env, env_id, attribute, id_range),
                id=id_range,
                ood=_ood_range(attribute, id_range, ood.get(attribute)),
                meaning=f"attribute of {env_id}",
            )
            for attribute, id_range in parameters.items()
        )
    finally:
        env.close()
    if obs_scale is not None:
        obs_scale = tuple(float(factor) for factor in obs_scale)
        if len(obs_scale) != obs_dim or not all(0 < f < float("inf") for f in obs_scale):
            raise ValueError(
                f"obs_scale: expected {obs_dim} numbers above 0, one for each observation, "
                f"received {obs_scale}"
            )
    return TaskFamily(
        name=name or env_id,
        parameters=declared,
        gymnasium_id=env_id,
        max_episode_steps=max_episode_steps,
        obs_scale=obs_scale,
    )


def _default(
    env: gymnasium.Env[Any, Any], env_id: str, attribute: str, id_range: Uniform | Choice
) -> float:
    """The attribute's value, of its own type: what is whole or a switch stays so in every task."""
    if not hasattr(env.unwrapped, attribute):
        known = sorted(k for k, v in vars(env.unwrapped).items() if _is_number(v) and k[0] != "_")
        raise ValueError(
            f"parameter {attribute!r}: expected an attribute of {env_id} (such as "
            f"{', '.join(known)}), received a name it does not have"
        )
    value = getattr(env.unwrapped, attribute)
    if isinstance(value, (bool, np.bool_)):
        if isinstance(id_range, Choice) and set(id_range.values) <= {0, 1}:
            return bool(value)
        raise ValueError(
            f"parameter {attribute!r} of {env_id}: expected a number, or Choice((False, True)) for "
            f"a switch, received {value!r} as its value"
        )
    if not _is_number(value):
        raise ValueError(
            f"parameter {attribute!r} of {env_id}: expected a number, received {value!r}"
        )
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


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
