"""Spaces of Gymnasium environments: observations as one row of numbers, actions as the package's.

Place in the flow: stage 1, beside `gymnasium_plant`. Observations of any space that has a size
become one row: what is in a Dict or a Tuple stands one after another, a choice is one-hot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.settings import in_one_line

if TYPE_CHECKING:
    import gymnasium


def spaces_of(env: gymnasium.Env[Any, Any], name: str) -> tuple[int, ActionSpace]:
    """Observation size and action space of an environment; ``name`` is what an error calls it.

    Raises:
        ValueError: Observations that are no numbers; actions that are neither discrete nor a box
            with finite bounds.
    """
    from gymnasium import spaces

    observations, actions = env.observation_space, env.action_space
    obs_dim = int(spaces.flatdim(observations)) if _is_of_numbers(observations) else 0
    if obs_dim == 0:
        raise ValueError(
            f"observation space of {name}: expected at least one number, in a Box or in what can "
            f"be flattened to one, received {in_one_line(observations)}"
        )
    if isinstance(actions, spaces.Discrete):
        return obs_dim, Discrete(int(actions.n))
    if isinstance(actions, spaces.Box) and actions.low.size > 0:
        if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
            raise ValueError(
                f"action space of {name}: expected finite bounds, received "
                f"{in_one_line(actions)}; wrap it, such as in gymnasium.wrappers.TransformAction "
                f"with a Box that has bounds"
            )
        low, high = (tuple(np.ravel(x).astype(float).tolist()) for x in (actions.low, actions.high))
        return obs_dim, Continuous(len(low), low, high)
    raise ValueError(
        f"action space of {name}: expected Discrete, or a Box with finite bounds, received "
        f"{in_one_line(actions)}"
    )


def widest(spaces: Iterable[tuple[str, tuple[int, ActionSpace]]]) -> tuple[int, ActionSpace]:
    """What a policy for several tasks sees and does: the widest bounds of any of them.

    A task whose own bounds are narrower clips to these, as its plant does.

    Args:
        spaces: What each is called, and its `spaces_of`.

    Raises:
        ValueError: Their sizes differ.
    """
    (_, (obs_dim, actions)), *others = spaces
    for name, (other_dim, other) in others:
        same = type(other) is type(actions) and other.logits_dim == actions.logits_dim
        if other_dim != obs_dim or not same:
            raise ValueError(
                f"{name}: expected observations of size {obs_dim} and {actions} as in every task, "
                f"received size {other_dim} and {other}"
            )
        if isinstance(actions, Continuous) and isinstance(other, Continuous):
            low, high = zip(*actions.bounds, strict=True)
            lower, higher = zip(*other.bounds, strict=True)
            actions = Continuous(
                actions.dim, tuple(map(min, low, lower)), tuple(map(max, high, higher))
            )
    return obs_dim, actions


def flat(space: gymnasium.Space[Any], observation: Any) -> NDArray[Any]:
    """An observation as one row of numbers, shape (O,)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return np.ravel(observation)
    return np.asarray(spaces.flatten(space, observation))


def names_of(space: gymnasium.Space[Any], prefix: str = "") -> tuple[str, ...]:
    """Names of the numbers of a Dict's or Tuple's observation; empty for other spaces.

    Keys and places joined by "_": a Dict of ``position`` (2,) and ``contact`` Discrete(2) has
    position_0, position_1, contact_0, contact_1.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = [(str(key), part) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [(f"part_{i}", part) for i, part in enumerate(space.spaces)]
    elif not prefix:
        return ()
    else:
        size = int(spaces.flatdim(space))
        return (prefix,) if size == 1 else tuple(f"{prefix}_{i}" for i in range(size))
    head = f"{prefix}_" if prefix else ""
    return tuple(name for key, part in parts for name in names_of(part, head + key))


def _is_of_numbers(space: object) -> bool:
    from gymnasium import spaces

    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.values() if isinstance(space, spaces.Dict) else space
        return all(map(_is_of_numbers, parts))
    numbers = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return isinstance(space, numbers)
