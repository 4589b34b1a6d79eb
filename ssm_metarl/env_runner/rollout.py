"""Run an actor in many worlds and write down what happened.

Place in the flow: stage 2, after `task_batch` (the worlds); its `Rollout` feeds `objectives`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.entrance import counts
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import Actor, RewardedActor, Rollout, Worlds

CHECK_EVERY = 8  # steps between looks at whether every episode has ended


@threads_for_kernels()
@torch.no_grad()
def collect_rollout(
    worlds: Worlds, actor: Actor, num_steps: int, *, autoreset: bool = False
) -> Rollout:
    """Collect at most ``num_steps`` steps in every environment.

    Args:
        worlds: K x N environments.
        actor: Chooses actions; it is told where an episode starts and keeps its own state.
        num_steps: T, steps per environment.
        autoreset: If True, episodes follow one another until ``num_steps`` are taken, the last
            one cut there. If False, each environment runs one episode; the steps after its end
            are masked out, and collection stops once all have ended.

    Returns:
        A rollout whose time axis has the number of steps that were run.

    Raises:
        ValueError: The actor was made for other numbers of tasks or environments, the two speak of
            other observations or actions, or no step is asked for.
    """
    counts(num_steps=num_steps)
    made_for = [getattr(actor, name, None) for name in ("num_tasks", "num_envs")]
    here = [worlds.num_tasks, worlds.num_envs]
    if None not in made_for and made_for != here:
        raise ValueError(
            f"actor: expected one for (K, N) = {tuple(here)} environments, received "
            f"{type(actor).__name__} made for {tuple(made_for)}"
        )
    rows: list[tuple[Tensor, ...]] = []  # in the order of a rollout's fields
    remembers = actor if isinstance(actor, RewardedActor) else None
    obs = worlds.reset()
    reset = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
    running = reset
    for t in range(num_steps):
        action, log_prob = actor(obs, reset)
        step = worlds.step(action)
        if remembers is not None:
            remembers.rewarded(step.reward)
        rows.append((
            obs, action, step.reward, step.obs, step.terminated, step.truncated, reset, running,
            log_prob,
        ))  # fmt: skip
        ended = step.terminated | step.truncated
        if autoreset:
            obs, reset = worlds.reset(ended), ended
        else:
            obs, reset, running = step.obs, torch.zeros_like(ended), running & ~ended
            if t % CHECK_EVERY == CHECK_EVERY - 1 and not running.any():
                break
    columns = map(torch.stack, zip(*rows, strict=True))
    return Rollout(**dict(zip(Rollout.__dataclass_fields__, columns, strict=True)))


def random_actor(worlds: Worlds, noise: TaskNoise, num_steps: int) -> Actor:
    """Uniformly random actions, for so many steps: what tells most about a plant."""
    actions, log_probs = worlds.action_space.draw_random(noise, num_steps, worlds.num_envs)
    steps = iter(zip(actions.to(worlds.device), log_probs.to(worlds.device), strict=True))

    def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        return next(steps)

    return act
