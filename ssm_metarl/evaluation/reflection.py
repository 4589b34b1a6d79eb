"""Does a plant's declared reflection hold? Start from mirrored states, and act mirrored.

Place in the flow: stage 7, one check of the `contract`. A family says what the reflection makes of
each observation, not of the state behind it; so every way to mirror a state, a sign a dimension, is
tried, and one of them must do.

The trap: a Gymnasium environment's state is its own affair. Many keep it in ``state``, and are
checked; of the others nothing is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
from ssm_metarl.tasks.task_family import TaskFamily, Tasks

PURPOSE = "contract"
LARGEST_STATE = 8
"""Size of states up to which every way to mirror them is tried."""


class Unchecked(Exception):
    """There is nothing to check, or no way to."""


StateStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""States (K, N, S) and actions to the next states, observations, rewards and ends."""


def check_reflection(family: TaskFamily) -> str:
    """Mirrored states and actions give mirrored observations, and the same rewards and ends.

    Returns:
        The factors of the observations, in words.

    Raises:
        Unchecked: None is declared, or there is no way to set a state.
        ValueError: Some observation, reward or end is not mirrored.
    """
    if not family.reflection:
        raise Unchecked("none is declared")
    tasks = family.sample("id", 8, seed=2, stream=PURPOSE)
    _, space = family.spaces
    if isinstance(space, Continuous) and any(low != -high for low, high in space.bounds):
        raise ValueError(f"reflection: expected bounds of actions that mirror, received {space}")
    rng = seeding.generator(2, PURPOSE)
    actions = [space.random(rng, 64).unflatten(0, (8, 8)) for _ in range(10)]
    with ExitStack() as opened:
        if family.plant is None:
            state, step = _batched_states(tasks)
        else:
            worlds = [
                opened.enter_context(closing(GymnasiumWorld(family.plant, values)))
                for values in tasks.as_dicts()
            ]
            state, step = _gymnasium_states(worlds, space)
        patterns = [(-1.0,) * state.shape[-1]]
        if state.shape[-1] <= LARGEST_STATE:
            patterns += itertools.product((-1.0, 1.0), repeat=state.shape[-1])
        found = [_wrong(family, space, actions, state, step, pattern) for pattern in patterns]
    best = min(found, key=lambda wrong: int(wrong.sum())).tolist()
    names = [*(family.obs_names or map("obs_{}".format, range(len(best) - 1))), "reward or end"]
    if any(best):
        raise ValueError(
            f"reflection: expected the mirrored history to give what {family.reflection} says, "
            f"received something else in {', '.join(itertools.compress(names, best))}"
        )
    return f"factors {', '.join(f'{factor:+g}' for factor in family.reflection)}"


def _wrong(
    family: TaskFamily,
    space: ActionSpace,
    actions: list[Tensor],
    state: Tensor,
    step: StateStep,
    pattern: tuple[float, ...],
) -> Tensor:
    """Which observations, and last reward or end, are not mirrored if states are so, (O + 1,)."""
    factors = torch.tensor([*family.reflection, 1.0, 1.0], dtype=torch.float64)
    one, other = state, state * torch.tensor(pattern, dtype=torch.float64)
    running = torch.ones(8, 8, dtype=torch.bool)
    wrong = torch.zeros(len(factors), dtype=torch.bool)
    for action in actions:
        mirrored = space.n - 1 - action if isinstance(space, Discrete) else -action
        one, *seen = step(one, action)
        other, *met = step(other, mirrored)
        expected, received = (
            torch.cat([obs, reward[..., None], ends[..., None]], dim=-1).double()[running]
            for obs, reward, ends in (seen, met)
        )
        wrong |= ~torch.isclose(received, factors * expected, rtol=1e-5, atol=1e-6).all(dim=0)
        running = running & ~seen[-1].bool()
        if not running.any():
            break
    return torch.cat([wrong[:-2], wrong[-2:].any()[None]])


def _batched_states(tasks: Tasks) -> tuple[Tensor, StateStep]:
    """Random states (K, 8, S) of batched physics, and how to step from any."""
    dynamics = tasks.family.dynamics
    assert dynamics is not None
    lead = (len(tasks), 8)
    parameters = {n: v[:, None].expand(lead) for n, v in tasks.values.items()}
    spread = torch.tensor(dynamics.start_spread, dtype=torch.float64)
    uniform = torch.from_numpy(seeding.generator(3, PURPOSE).random((2, *lead, len(spread))))

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        after, reward, ends = dynamics.step(state.contiguous(), action, parameters)
        return after, dynamics.observe(after, parameters), reward, ends

    return dynamics.initial_state(uniform[0]) + (2 * uniform[1] - 1) * spread, step


def _gymnasium_states(worlds: list[GymnasiumWorld], space: ActionSpace) -> tuple[Tensor, StateStep]:
    """The same of Gymnasium environments that keep their state in ``state``, as many do.

    Raises:
        Unchecked: They do not.
    """
    rng = seeding.generator(3, PURPOSE)
    states = []
    for world in worlds:
        for seed in range(8):
            world.reset(seed)
            for action in space.random(rng, seed):
                world.step(world.native(action.numpy()))
            states.append(getattr(world.env.unwrapped, "state", None))
    if not all(isinstance(s, (np.ndarray, tuple, list)) and np.ndim(s) == 1 for s in states):
        raise Unchecked("the environment keeps no state under that name")
    kind: Callable[[Any], Any] = np.array if isinstance(states[0], np.ndarray) else tuple

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = []
        for k, world in enumerate(worlds):
            plant: Any = world.env.unwrapped
            for start, chosen in zip(state[k].tolist(), action[k], strict=True):
                world.reset(0)
                plant.state = kind(start)
                obs, reward, ends, _ = world.step(world.native(chosen.numpy()))
                rows.append((list(plant.state), obs.tolist(), reward, ends))
        columns = (torch.tensor(column).unflatten(0, (8, 8)) for column in zip(*rows, strict=True))
        after, obs, reward, ends = columns
        return after.double(), obs.double(), reward.double(), ends

    return torch.tensor(np.array(states, dtype=float)).unflatten(0, (8, 8)), step
