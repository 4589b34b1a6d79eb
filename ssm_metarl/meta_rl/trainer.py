"""Meta-training, top to bottom: the loop one reads.

Place in the flow: stage 5. One epoch is

    draw K tasks  ->  support data  ->  inner step  ->  query episodes  ->  outer step

with the steps from `training_data`, the inner step from `adaptation.inner_loop`, the outer one from
`meta_maml`. Lengths, inner steps and horizons vary between epochs, so that test time may use any.
Every random number belongs to (seed, purpose, task or epoch), so the epoch number is all the
random state there is: a resumed training continues bit for bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.inner_loop import TaskLoss, adapt_params
from ssm_metarl.adaptation.inner_objective import Replay, check_unadapted, task_loss, weigh_replay
from ssm_metarl.compiled import threads_for_kernels, usual_modes
from ssm_metarl.config import HybridAdaptationConfig, MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.epochs import EpochMetrics, EpochTrainer, named
from ssm_metarl.meta_rl.meta_maml import MetaMAML
from ssm_metarl.meta_rl.training_data import steps_in
from ssm_metarl.objectives.ppo import Guide
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Params, Rollout

KICKSTART = 1.0
"""Weight of a teacher at the start of a training, in the outer loss for each nat of KL a step."""
KICKSTART_SHARE = 0.5
"""Share of the training over which that weight falls to nothing."""


@dataclass(frozen=True, kw_only=True)
class MetaMetrics(EpochMetrics):
    """See `EpochMetrics`; the returns are those of the query episodes."""

    meta_loss: float
    """Outer loss at the last outer step."""
    left_out: int
    """Tasks whose meta-gradient was not finite, and was left out, at the last outer step."""
    inner_steps: int
    """Inner steps in this epoch."""
    support_steps: int
    """Environment steps of support data per task."""
    horizon: int
    """Limit of the query episodes."""
    buffer_size: int
    """Transitions in the experience buffer."""


def usable_device(name: str) -> torch.device:
    """A device by its name; ValueError where PyTorch knows no such device here."""
    try:
        torch.ones(1, device=name).item()  # "meta" has tensors without numbers
        return torch.device(name)
    except Exception:  # of every kind, from backends that are not installed
        raise ValueError(
            f"device: expected one that PyTorch can use here, such as 'cpu', received {name!r}"
        ) from None


class MetaTrainer(EpochTrainer[MetaTrainingConfig, MetaMetrics]):
    """Meta-training for a gradient step.

    Args:
        config: The settings.
        family: Overrides the family that ``config.family`` names.
        like: See `architecture`.
    """

    @usual_modes()
    def __init__(
        self,
        config: MetaTrainingConfig,
        family: TaskFamily | None = None,
        *,
        like: PolicyConfig | None = None,
    ) -> None:
        super().__init__(config, family, inner_lr=config.inner_lr, like=like)
        self.device = usable_device(config.device)
        self.policy.to(self.device)
        self.maml = MetaMAML(self.policy, config)
        self.steps = self.maml.steps
        self.buffer = ExperienceBuffer(config.buffer_size, self.family.name)
        self.teacher: Policy | None = None
        """A policy to stay close to at first: what a network was shrunk from (`KICKSTART`)."""

    def start_from(self, model: Policy) -> None:
        """Take a model's weights, not its step sizes: it may have been trained without any.

        Raises:
            ValueError: It is of another architecture, or adapted to a task already.
        """
        check_unadapted(model, "start")
        if model.config != self.policy_config:
            raise ValueError(
                f"start: expected a model of {self.policy_config}, received one of {model.config}"
            )
        with torch.no_grad():
            for name, weights in model.meta_params().items():
                self.policy.get_parameter(name).copy_(weights)

    @threads_for_kernels()
    @torch.enable_grad()
    def run_epoch(self) -> MetaMetrics:
        """One meta-batch: collect, adapt, collect again, update."""
        started = time.perf_counter()
        config = self.config
        rng = seeding.generator(config.seed, "epoch", self.epoch)
        support_steps = int(
            rng.integers(config.min_support_steps, config.max_support_steps, endpoint=True)
        )
        # A policy that remembers must do well without a step, too: its context is half of it.
        fewest = 0 if config.in_context else min(1, config.adaptation_steps)
        inner_steps = int(rng.integers(fewest, config.adaptation_steps, endpoint=True))
        tasks = self.draw_tasks()
        support = self._collect_support(tasks, support_steps)
        loss = self._inner_loss(support)
        adapted = self.maml.adapt(loss, num_tasks=len(tasks), num_steps=inner_steps)
        query, horizon = self._collect_query(tasks, adapted)
        advantage = advantages(
            query,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            shared_scale=True,
            told_dims=self.family.told_dims,
            obs_scale=self.policy.obs_scale,
        )
        update = self.maml.update(
            loss,
            query,
            advantage,
            num_steps=inner_steps,
            progress=self.progress,
            guide=self._guide(support, query, inner_steps),
            expert=self.expert(tasks, query),
        )
        self.buffer.add(support, tasks.indices)  # shipped with the model, for hybrid adaptation
        env_steps = int(support.mask.sum()) + int(query.mask.sum())
        return MetaMetrics(
            meta_loss=update.loss,
            grad_norm=update.grad_norm,
            left_out=update.left_out,
            inner_steps=inner_steps,
            support_steps=support_steps,
            horizon=horizon,
            buffer_size=len(self.buffer),
            **self.finished(env_steps, float(query.episode_returns().mean()), started),
        )

    def _collect_support(self, tasks: Tasks, num_steps: int) -> Rollout:
        config, params = self.config, self.policy.meta_params()
        rollout, _ = steps_in(
            tasks, self.policy, params, 1, seed=config.seed, purpose="train-support",
            num_steps=num_steps, behaviour=config.support_policy, device=self.device,
        )  # fmt: skip
        return rollout

    def _inner_loss(self, support: Rollout) -> TaskLoss:
        config = self.config
        replay: Replay | None = None
        if config.adaptation_mode == "hybrid" and len(self.buffer) > 0:
            rng = seeding.generator(config.seed, "train-replay", self.epoch)
            replayed = self.buffer.sample(HybridAdaptationConfig.num_replay_sequences, rng)
            replay = weigh_replay(
                self.policy,
                support,
                replayed.to(self.device),
                experience_weight=config.experience_weight,
            )
        return self._loss_of(self.policy, support, replay)

    def _loss_of(self, policy: Policy, support: Rollout, replay: Replay | None = None) -> TaskLoss:
        config = self.config
        gamma, gae_lambda = config.gamma, config.gae_lambda
        return task_loss(
            policy, config.objective, support, gamma=gamma, gae_lambda=gae_lambda, replay=replay
        )

    def _collect_query(self, tasks: Tasks, adapted: Params) -> tuple[Rollout, int]:
        config, every = self.config, self.config.full_horizon_every
        full = every > 0 and self.epoch % every == every - 1
        return steps_in(
            tasks, self.policy, adapted, config.episodes_per_task,
            seed=config.seed, purpose="train-query", device=self.device,
            max_episode_steps=None if full else config.horizon,
            push_probability=config.push_probability, spread_starts=config.spread_starts,
        )  # fmt: skip

    def _guide(self, support: Rollout, query: Rollout, num_steps: int) -> Guide | None:
        """What the teacher, adapted to the same data, would do in the query episodes."""
        weight = KICKSTART * (1 - self.progress / KICKSTART_SHARE)
        if self.teacher is None or weight <= 0:
            return None
        adapted, _ = adapt_params(
            self.teacher.meta_params(),
            self._loss_of(self.teacher, support),
            self.teacher.step_sizes(),
            num_tasks=support.num_tasks,
            num_steps=num_steps,
        )
        with torch.no_grad():
            return Guide(self.teacher.look(adapted, query.cleaned()).distribution, weight)

    def tensors(self) -> dict[str, Tensor]:
        """With the experience that it has collected."""
        experience = {f"experience.{n}": v for n, v in self.buffer.tensors().items()}
        return super().tensors() | experience

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | float]) -> None:
        """Put back what :meth:`tensors` and :meth:`counters` gave."""
        super().restore(tensors, counters)
        self.buffer.restore(named(tensors, "experience."))
