"""Steps to learn from: a policy, or chance, acts in fresh worlds of some tasks.

Place in the flow: stage 5, under every training. Worlds and actions have streams of their own,
named by seed, purpose and task.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from ssm_metarl.config import SupportPolicy
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Params, Rollout


def steps_in(
    tasks: Tasks,
    policy: Policy,
    params: Params,
    num_envs: int,
    *,
    seed: int,
    purpose: str,
    num_steps: int | None = None,
    behaviour: SupportPolicy = "policy",
    greedy: bool = False,
    trial_episodes: int | None = None,
    **worlds: Any,
) -> tuple[Rollout, int]:
    """What happens to a policy, or its parameters of K tasks, in N environments of each.

    It takes ``num_steps`` steps, episodes following one another; None for one whole episode each.
    ``behaviour`` "random" has uniform actions in its place; ``greedy`` takes the likeliest action
    instead of sampling; ``worlds`` are settings of `make_worlds`.

    Returns:
        The steps, (T, K, N), and the time limit of an episode.
    """
    with closing(make_worlds(tasks, num_envs, seed=seed, purpose=purpose, **worlds)) as made:
        limit = made.max_episode_steps
        steps = num_steps or limit
        noise = TaskNoise(seed, f"{purpose}-action", tasks.indices)
        if behaviour == "random":
            actor = random_actor(made, noise, steps)
        else:
            actor = policy.actor(
                params,
                len(tasks),
                num_envs,
                noise=None if greedy else noise,
                num_steps=steps,
                trial_episodes=trial_episodes,
            )
        return collect_rollout(made, actor, steps, autoreset=num_steps is not None), limit
