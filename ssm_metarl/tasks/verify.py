"""Does a parameter change anything? What any family is asked, and how batched physics answer.

Place in the flow: stage 1, behind `TaskFamily.verify`; `gymnasium_verify` answers for environments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.tasks.dynamics import Dynamics
from ssm_metarl.tasks.task_parameter import TaskParameter

PROBES = (0.0, 0.0, 0.25, 0.5, 0.75, 1 - 1e-9)
"""Where in its ID range a parameter is tried; first twice the same, for it must repeat itself."""
OTHERS = 0.7  # off the middle of their range: a zero there could hide this one
NUM_ENVS, NUM_STEPS = 32, 20


def probed(parameter: TaskParameter, parameters: Sequence[TaskParameter]) -> list[dict[str, float]]:
    """Tasks that differ in one of a family's parameters alone; the first two not at all."""
    return [
        {p.name: p.of_kind(p.id.at(q if p.name == parameter.name else OTHERS)) for p in parameters}
        for q in PROBES
    ]


def verify(
    dynamics: Dynamics, parameter: TaskParameter, values: list[dict[str, float]], family: str
) -> None:
    """Check one parameter on the tasks that are `probed`, see `TaskFamily.verify`."""
    traces = _traces(dynamics, values)
    differing = [
        {name for name, rows in traces.items() if not _alike(rows[k], rows[0])}
        for k in range(1, len(values))
    ]
    judge(parameter, family, [differing])


def judge(
    parameter: TaskParameter,
    family: str,
    drives: Iterable[list[set[str]]],
    unmoved: Callable[[], str] = str,
) -> bool:
    """Say what the drives of some tasks found.

    Args:
        parameter: In which the tasks differ, see `probed`.
        family: Its name.
        drives: Of each, what of "obs", "reward" and "end" the others met otherwise than the first.
            No more are asked for once one has told.
        unmoved: What else to say where nothing ever differed.

    Returns:
        Whether more than rewards changed.
    """
    about = f"parameter {parameter.name!r} of {family}"
    changed: set[str] = set()
    for twin, *others in drives:
        if twin:
            raise ValueError(
                f"{about}: expected the same trajectory each time from the same value, seed and "
                f"actions, received another one: {family} has randomness of its own, which hides "
                f"what a parameter changes; draw it from the seeded self.np_random"
            )
        changed.update(*others)
        if changed - {"reward"}:
            return True
    if not changed:
        tried = [parameter.id.at(quantile) for quantile in PROBES]
        span = f"{min(tried):g} to {max(tried):g} {parameter.unit}".rstrip()
        raise ValueError(
            f"{about}: expected a change of the dynamics, received the same trajectories from "
            f"{span}{unmoved()}"
        )
    alone = "changes rewards alone, which adapting by prediction cannot see"
    warnings.warn(f"{about}: {alone}", stacklevel=5)
    return False


def _traces(dynamics: Dynamics, values: list[dict[str, float]]) -> dict[str, Tensor]:
    """What random actions meet in each of K tasks, and earn; shape (K, ...) each."""
    rng, num_tasks = seeding.generator(0, "verify"), len(values)
    uniform = torch.from_numpy(rng.random((NUM_ENVS, len(dynamics.push_scale))))
    state = dynamics.initial_state(uniform).expand(num_tasks, -1, -1)
    parameters = {
        name: torch.tensor([v[name] for v in values]).double()[:, None].expand(-1, NUM_ENVS)
        for name in values[0]
    }
    seen, rewards = [dynamics.observe(state, parameters).flatten(1)], []
    for _ in range(NUM_STEPS):
        action = dynamics.action_space.random(rng, NUM_ENVS)
        state, reward, terminated = dynamics.step(
            state, action.expand(num_tasks, *action.shape), parameters
        )
        seen += [dynamics.observe(state, parameters).flatten(1), terminated.double()]
        rewards.append(reward)
    return {"obs": torch.cat(seen, dim=1), "reward": torch.cat(rewards, dim=1)}


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, 1e-6, 1e-9, equal_nan=True)
