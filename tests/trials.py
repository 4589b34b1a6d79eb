"""The episodes of trials as whole rollouts: what a memory that runs through them must meet."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch

from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import PURPOSE
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Params, Rollout


def trial_episodes(
    policy: Policy,
    params: Params,
    tasks: Tasks,
    *,
    num_trials: int,
    num_episodes: int,
    seed: int,
) -> list[Rollout]:
    """Greedy episodes that follow each other in trials of one task, each with a memory of its own.

    Args:
        policy: In context; it remembers all episodes of a trial.
        params: Shared parameters, or those of one task.
        tasks: One task.
        num_trials: N, side by side. Their first episodes start as those of `run_episodes`.
        num_episodes: Of a trial.
        seed: Names the initial states.

    Returns:
        The trials' first episodes, their second ones and so on, a rollout (T, 1, N) each.
    """
    with closing(make_worlds(tasks, num_trials, seed=seed, purpose=PURPOSE)) as worlds:
        actor = policy.actor(params, 1, num_trials)
        steps = num_episodes * worlds.max_episode_steps
        rollout = collect_rollout(worlds, actor, steps, autoreset=True)
    number = rollout.reset.long().cumsum(dim=0) - 1  # (T, 1, N)

    def episode(wanted: int) -> Rollout:
        inside = number == wanted
        order = torch.argsort((~inside).to(torch.int8), dim=0, stable=True)
        order = order[: int(inside.sum(dim=0).max())]
        return replace(rollout, mask=inside).map(
            lambda x: torch.take_along_dim(x, order.view(*order.shape, *(1,) * (x.dim() - 3)), 0)
        )

    return [episode(wanted) for wanted in range(num_episodes)]
