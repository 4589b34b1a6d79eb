"""Fine-tuning: plain training on each task alone, from any start, K tasks at once.

Place in the flow: stage 7, a baseline: what a new task costs without an inner step that was learnt.
A round is sampled episodes of each task, gradient steps on them, and one greedy episode. Every task
has parameters and moments of its own: Adam moves each number by itself, so that one optimiser over
all K rows is K optimisers.

The trap: the greedy episodes are measurements, not data. Only what a task learns from is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_loop import expand_to_tasks
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.config import Objective, PpoSettings, SupportPolicy
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import check_family, run_episodes
from ssm_metarl.meta_rl.gradient_steps import GradientSteps, Optimizer
from ssm_metarl.meta_rl.meta_maml import query_parts
from ssm_metarl.methods.meta_trained import can_adapt
from ssm_metarl.objectives.ppo import clipped_policy_loss
from ssm_metarl.objectives.prediction import PredictionLoss
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.settings import Count, Positive, require
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import FlatParams, Params, Rollout

PURPOSE = "fine-tuning"
Part = tuple[Tensor, Callable[[FlatParams], Tensor]]
"""Some of the tasks, shape (K',), and their losses (K',) as a function of their parameters."""


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(PpoSettings):
    """How each task is trained on."""

    rounds: tuple[int, ...] = (1, 2, 7)
    """Episodes of each round."""
    lr: Positive
    """Learning rate, the same throughout."""
    update_epochs: Count = 10
    """Gradient steps after each round, all on its episodes."""
    objective: Objective = "policy_gradient"
    """What they descend: the clipped surrogate of PPO, or the reward-free loss of prediction."""
    optimizer: Optimizer = "adam"
    """Adam, or plain gradient descent."""
    behaviour: SupportPolicy = "policy"
    """Who acts in the episodes that are learnt from: the policy, sampled, or uniform actions."""
    stop_return: float | None = None
    """A task whose greedy return is at least this is done; None for never."""
    seed: int = 0
    """Names all episodes: the greedy ones are those of `EvaluationConfig.seed`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rounds) > 0 and min(self.rounds) >= 1, "rounds",
                "at least one, of at least 1 episode", self.rounds)  # fmt: skip
        require(self.objective == "prediction" or self.behaviour == "policy", "behaviour",
                "'policy' where objective is 'policy_gradient'", self.behaviour)  # fmt: skip


@dataclass(frozen=True)
class FineTuningCurve:
    """What each of K tasks came to after each of R rounds; row 0 is the start."""

    episodes: np.ndarray
    """Episodes that a task has learnt from, unless it was done before, shape (R + 1,)."""
    env_steps: np.ndarray
    """Environment steps in them, shape (R + 1, K); of a task that is done, they stay."""
    returns: np.ndarray
    """Return of one greedy episode, shape (R + 1, K); of a task that is done, it stays."""

    def after(self, episodes: int) -> np.ndarray:
        """Greedy returns after so many episodes, shape (K,).

        Raises:
            ValueError: No round ends there.
        """
        known = self.episodes.tolist()
        require(episodes in known, "episodes", f"one of {known}", episodes)
        result: np.ndarray = self.returns[known.index(episodes)]
        return result

    def steps_to(self, target: float) -> np.ndarray:
        """Environment steps until the greedy return was first ``target``, (K,); inf for never."""
        reached = self.returns >= target
        first = self.env_steps[reached.argmax(axis=0), np.arange(reached.shape[1])]
        return np.where(reached.any(axis=0), first, np.inf)


@threads_for_kernels()
@torch.enable_grad()
def fine_tune(
    policy: Policy,
    tasks: Tasks,
    config: FineTuningConfig,
    *,
    start: Params | None = None,
) -> FineTuningCurve:
    """Train on each task alone.

    Args:
        policy: Its architecture, and the start; stays as it is.
        tasks: K tasks.
        config: The settings.
        start: Parameters to start from, shared or those of each task; None for the policy's own.

    Raises:
        ValueError: The policy does not fit the tasks, remembers from episode to episode, or has no
            outputs for the objective.
    """
    check_family(policy, tasks.family)
    if policy.in_context:
        raise ValueError(
            "policy: expected one that starts every episode anew, received one that adapts in "
            "context"
        )
    if not can_adapt(policy, config.objective):
        raise ValueError(
            "objective: expected 'policy_gradient' for a model without prediction outputs, "
            "received 'prediction'"
        )
    learner = _Learner(policy, tasks, config, start)
    for count in config.rounds:
        if not learner.active.any():
            break
        learner.run_round(count)
    episodes = [0, *accumulate(config.rounds)][: len(learner.returns)]
    return FineTuningCurve(
        np.array(episodes), np.stack(learner.env_steps), np.stack(learner.returns)
    )


class _Learner:
    """K tasks' parameters, and what came of each round so far."""

    def __init__(
        self, policy: Policy, tasks: Tasks, config: FineTuningConfig, start: Params | None
    ) -> None:
        self.policy, self.tasks, self.config = policy, tasks, config
        params = expand_to_tasks(policy.meta_params() if start is None else start, len(tasks))
        flat = params.flat.detach().clone().requires_grad_()  # (K, P)
        self.params = params.at(flat)
        self.steps = GradientSteps(
            {"flat": flat}, config.lr, config.max_grad_norm,
            optimizer=config.optimizer, each_row=True,
        )  # fmt: skip
        self.active = np.ones(len(tasks), dtype=bool)
        self.env_steps = [np.zeros(len(tasks), dtype=np.int64)]
        self.returns: list[np.ndarray] = []
        self._measure()

    def run_round(self, count: int) -> None:
        """Learn from ``count`` episodes of every task that is not done."""
        rows = torch.from_numpy(np.flatnonzero(self.active))
        rollout = self._collect(rows, count)
        backward = partial(self._backward, rows, self._losses(rollout))
        self.steps.take([backward] * self.config.update_epochs)
        steps = self.env_steps[-1].copy()
        steps[self.active] += rollout.steps_taken().numpy()
        self.env_steps.append(steps)
        self._measure()

    def _collect(self, rows: Tensor, count: int) -> Rollout:
        config, tasks = self.config, self.tasks[rows.tolist()]
        purpose = f"{PURPOSE}-{len(self.returns)}"
        with closing(make_worlds(tasks, count, seed=config.seed, purpose=purpose)) as worlds:
            noise = TaskNoise(config.seed, f"{purpose}-action", tasks.indices)
            limit = worlds.max_episode_steps
            if config.behaviour == "random":
                actor = random_actor(worlds, noise, limit)
            else:
                params = self.params.at(self.params.flat.detach()[rows])
                actor = self.policy.actor(params, len(tasks), count, noise=noise, num_steps=limit)
            return collect_rollout(worlds, actor, limit)

    def _backward(self, rows: Tensor, parts: list[Part]) -> Tensor:
        """Each task's gradient into its row; the sum of the losses that are finite."""
        flat = self.params.flat
        flat.grad = torch.zeros_like(flat)
        total = flat.new_zeros(())
        for chosen, loss in parts:
            own = flat.detach()[rows[chosen]].requires_grad_()
            losses = loss(self.params.at(own))
            # Task k's loss depends on row k alone, so the sum's gradient is each task's own.
            (flat.grad[rows[chosen]],) = torch.autograd.grad(losses.sum(), own)
            total = total + losses.detach()[losses.isfinite()].sum()
        return total

    def _losses(self, rollout: Rollout) -> list[Part]:
        """Some of the tasks at a time, and their losses as functions of their parameters."""
        config, policy = self.config, self.policy
        advantage = torch.zeros_like(rollout.reward)
        if config.objective == "policy_gradient":
            advantage = advantages(
                rollout,
                gamma=config.gamma,
                gae_lambda=config.gae_lambda,
                told_dims=self.tasks.family.told_dims,
                obs_scale=policy.obs_scale,
            )
        parts = query_parts(rollout, advantage)
        if config.objective == "prediction":
            return [(part.tasks, PredictionLoss(policy, part.query)) for part in parts]
        loss = partial(
            clipped_policy_loss,
            policy,
            clip_coef=config.clip_coef,
            entropy_coef=config.entropy_coef,
        )
        return [
            (part.tasks, partial(loss, rollout=part.query, advantage=part.advantage))
            for part in parts
        ]

    def _measure(self) -> None:
        """One greedy episode of every task that is not done, and who is done now."""
        rows = np.flatnonzero(self.active)
        params = self.params.at(self.params.flat.detach()[torch.from_numpy(rows)])
        actor = self.policy.actor(params, len(rows), 1)
        ran = run_episodes(self.tasks[rows.tolist()], actor, 1, seed=self.config.seed)
        returns = self.returns[-1].copy() if self.returns else np.zeros(len(self.tasks))
        returns[rows] = ran.returns[:, 0]
        self.returns.append(returns)
        if self.config.stop_return is not None:
            self.active &= returns < self.config.stop_return
