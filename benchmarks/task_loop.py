"""MAML as it is usually written: one task after the other, one time step after the other.

Place in the flow: the peer of `meta_training`. It does what one epoch of `MetaTrainer` does, on the
same tasks, support lengths, inner steps and horizons; a test holds its meta-gradient to
`MetaMAML`'s. Each task has a dictionary of parameters of its own, and its graph is freed before the
next task's is built, which is the one thing that a loop over tasks is good for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.numpy_cartpole import NumpyCartPole
from benchmarks.plain_policy import PlainPolicy, Style
from benchmarks.plain_state_space import PlainStateSpace
from ssm_metarl import seeding
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.gae import episode_advantage
from ssm_metarl.objectives.returns import fit_linear_baseline
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

MIN_RMS, MIN_SPREAD = 1e-8, 1e-4
FINAL_LR_SHARE = 0.05
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one epoch took."""

    env_steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Environment steps a second."""
        return self.env_steps / self.seconds


class TaskLoop:
    """A per-task-loop MAML with learned step sizes and a clipped outer step.

    Args:
        policy: Where the meta-parameters start; it is copied.
        config: The meta-training's settings, objective "prediction" and standard adaptation.
        family: A family with CartPole's physics.
        style: How the policy is unrolled over time.
    """

    def __init__(
        self, policy: Policy, config: MetaTrainingConfig, family: TaskFamily, style: Style = "cell"
    ) -> None:
        if policy.config is None:
            raise ValueError("task loop: expected a policy with its architecture, received none")
        self.config, self.family = config, family
        plain = PlainPolicy if policy.config.core == "diagonal" else PlainStateSpace
        self.plain = plain(policy.config, style)
        self.params: Named = {}
        self.step_sizes: Named = {}
        self.copy_from(policy)

    def copy_from(self, policy: Policy) -> None:
        """Take over a policy's meta-parameters and step sizes, with a fresh optimiser."""
        for own, theirs in (
            (self.params, dict(policy.meta_params())),
            (self.step_sizes, dict(policy.step_sizes())),
        ):
            own.clear()
            own.update({n: p.detach().clone().requires_grad_() for n, p in theirs.items()})
        leaves = [*self.params.values(), *self.step_sizes.values()]
        self.optimizer = torch.optim.Adam(leaves, lr=self.config.outer_lr, eps=1e-5)

    def inner_loss(self, params: Mapping[str, Tensor], support: Rollout) -> Tensor:
        """Squared prediction error on one task's support data (K = 1)."""
        obs, next_obs, mask = support.obs[:, 0], support.next_obs[:, 0], support.mask[:, 0]
        change = (next_obs - obs)[..., list(self.plain.predicted_dims)]
        weight = mask[..., None].to(obs.dtype)
        count = weight.sum().clamp(min=1)
        spread = ((change.square() * weight).sum(dim=(0, 1)) / count).sqrt().clamp(min=MIN_SPREAD)
        features = self.plain.unroll(params, obs, support.reset[:, 0])
        predicted = self.plain.prediction(params, features, support.action[:, 0])
        error = (predicted - change / spread).square().mean(-1)
        return (error * weight[..., 0]).sum() / count

    def adapt(self, support: Rollout, num_steps: int, *, second_order: bool) -> Named:
        """One task's parameters after the inner steps."""
        params = dict(self.params)
        size = sum(p.numel() for p in params.values())
        largest = torch.tensor(MIN_RMS)
        for _ in range(num_steps):
            loss = self.inner_loss(params, support)
            grads = torch.autograd.grad(
                loss, list(params.values()), create_graph=second_order, allow_unused=True
            )
            known = [g for g in grads if g is not None]
            square = torch.stack([g.square().sum() for g in known]).sum() / size
            largest = torch.maximum(torch.sqrt(square + MIN_RMS**2), largest)
            params = {
                name: p if g is None else p - self.step_sizes[name] * g / largest
                for (name, p), g in zip(params.items(), grads, strict=True)
            }
        return params

    def task_loss(
        self, support: Rollout, query: Rollout, advantage: Tensor, num_steps: int
    ) -> Tensor:
        """One task's outer loss: PPO's surrogate after adapting, and the inner loss that is left.

        Args:
            support: The task's support data (T, 1, 1).
            query: Its query episodes (T', 1, N).
            advantage: Shape (T', N).
            num_steps: Inner steps.
        """
        config = self.config
        adapted = self.adapt(support, num_steps, second_order=not config.first_order)
        mask, action = query.mask[:, 0], query.action[:, 0]
        features = self.plain.unroll(adapted, query.obs[:, 0], query.reset[:, 0])
        log_probs = self.plain.log_probs(adapted, features)
        log_prob = log_probs.gather(-1, action[..., None])[..., 0]
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        ratio = (log_prob - query.log_prob[:, 0]).clamp(max=20.0).exp()
        clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        gain = (gain + config.entropy_coef * entropy) * mask
        loss = -gain.sum() / mask.sum().clamp(min=1)
        return loss + config.inner_loss_coef * self.inner_loss(adapted, support)

    def backward(
        self, supports: list[Rollout], queries: list[Rollout], advantages: list[Tensor], steps: int
    ) -> float:
        """Accumulate the meta-gradient, task by task; returns the mean outer loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for support, query, advantage in zip(supports, queries, advantages, strict=True):
            loss = self.task_loss(support, query, advantage, steps) / len(supports)
            loss.backward()
            total += loss.item()
        return total

    def run_epoch(
        self, epoch: int, *, num_tasks: int | None = None, progress: float = 0.0
    ) -> Epoch:
        """What `MetaTrainer.run_epoch` does as its epoch number ``epoch``.

        Args:
            epoch: Names tasks, lengths and horizon.
            num_tasks: Tasks of the meta-batch that are run; None for all. A loop's rate does not
                depend on it.
            progress: Share of the training that is done: the learning rate's decay.
        """
        started = time.perf_counter()
        config = self.config
        rng = seeding.generator(config.seed, "epoch", epoch)
        length = int(
            rng.integers(config.min_support_steps, config.max_support_steps, endpoint=True)
        )
        num_steps = int(rng.integers(1, config.adaptation_steps, endpoint=True))
        start = epoch * config.tasks_per_epoch
        size = num_tasks or config.tasks_per_epoch
        tasks = self.family.sample("train", size, seed=config.seed, start=start).as_dicts()
        every = config.full_horizon_every
        full = every > 0 and epoch % every == every - 1
        supports, queries = [], []
        for index, task in enumerate(tasks):
            noise = seeding.generator(config.seed, "task-loop", start + index)
            supports.append(self._collect(task, None, noise, length, 1))
            adapted = self.adapt(supports[-1], num_steps, second_order=False)
            adapted = {name: p.detach() for name, p in adapted.items()}
            horizon = 500 if full else config.horizon
            queries.append(self._collect(task, adapted, noise, horizon, config.episodes_per_task))
        advantages = scaled_advantages(queries, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.outer_lr * max(FINAL_LR_SHARE, 1 - progress)
        for _ in range(config.update_epochs):
            self.backward(supports, queries, advantages, num_steps)
            leaves = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(leaves, config.max_grad_norm)
            self.optimizer.step()
        steps = sum(int(r.mask.sum()) for r in (*supports, *queries))
        return Epoch(steps, time.perf_counter() - started)

    def probe(self, num_steps: int = 20) -> float:
        """Seconds of a few unrolled steps and their gradient: which number of threads suits it."""
        envs = self.config.episodes_per_task
        obs = torch.zeros(num_steps, envs, len(self.plain.config.obs_scale))
        started = time.perf_counter()
        reset = torch.zeros(num_steps, envs, dtype=torch.bool)
        self.plain.unroll(self.params, obs, reset).sum().backward()
        return time.perf_counter() - started

    @torch.no_grad()
    def _collect(
        self,
        task: Mapping[str, float],
        params: Named | None,
        noise: np.random.Generator,
        num_steps: int,
        num_envs: int,
    ) -> Rollout:
        """Episodes of one task: random support data (``params`` None), or query episodes."""
        query, config = params is not None, self.config
        world = NumpyCartPole(
            task,
            num_envs,
            noise,
            max_steps=num_steps if query else 500,
            push_probability=config.push_probability if query else 0.0,
            spread_starts=config.spread_starts if query else 0.0,
        )
        obs = torch.from_numpy(world.reset())
        reset, running = (
            torch.ones(num_envs, dtype=torch.bool),
            torch.ones(num_envs, dtype=torch.bool),
        )
        state = self.plain.start(num_envs, obs)
        uniform = torch.from_numpy(noise.random((num_steps, num_envs), dtype="float32"))
        columns: dict[str, list[Tensor]] = {name: [] for name in Rollout.__dataclass_fields__}
        for t in range(num_steps):
            if params is None:
                action = (uniform[t] * 2).long()
                log_prob = torch.full((num_envs,), -0.6931472)
            else:
                logits, state = self.plain.act(params, obs, state)
                log_probs = logits.log_softmax(-1)
                action = (uniform[t] >= log_probs[:, 0].exp()).long()
                log_prob = log_probs.gather(-1, action[:, None])[:, 0]
            after, terminated, truncated = map(torch.from_numpy, world.step(action.numpy()))
            record = (
                obs,
                action,
                running.float(),
                after,
                terminated,
                truncated,
                reset,
                running,
                log_prob,
            )
            for column, value in zip(columns.values(), record, strict=True):
                column.append(value)
            ended = terminated | truncated
            if query:
                obs, reset, running = after, torch.zeros_like(ended), running & ~ended
                if not running.any():
                    break
            else:
                obs, reset = torch.from_numpy(world.reset(ended.numpy())), ended
        return Rollout(**{n: torch.stack(values)[:, None] for n, values in columns.items()})


def scaled_advantages(queries: list[Rollout], config: MetaTrainingConfig) -> list[Tensor]:
    """Each task's advantages (T, N) under its own baseline; all tasks share one scale."""
    centred, variances = [], []
    for query in queries:
        value, next_value = fit_linear_baseline(query, config.gamma)
        raw = episode_advantage(
            query, value, next_value, gamma=config.gamma, gae_lambda=config.gae_lambda
        )[:, 0]
        mask = query.mask[:, 0]
        count = mask.sum().clamp(min=1)
        centred.append((raw - (raw * mask).sum() / count) * mask)
        variances.append(centred[-1].square().sum() / count)
    scale = torch.stack(variances).mean().sqrt() + 1e-6
    return [c / scale for c in centred]
