"""In-context meta-training (RL²), top to bottom: recurrent PPO over trials of several episodes.

Place in the flow: stage 5, a sibling of `trainer` behind the same interface. One epoch is

    draw K tasks  ->  trials, the memory running through their episodes  ->  advantages
                  ->  clipped steps on whole sequences, from the states that acting had there

(Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, arXiv 1611.05763). The policy is told what it
did and what came of it (`core.trial_input`); adapting is what its hidden state does. Where the
family has an expert, the policy may also imitate it, told the task, in the states that it gets into
itself (Ross et al. 2011, arXiv 1011.0686): a label at every step says more than a return.

Two kinds of end. An episode's end is an input. A trial's end clears the memory and cuts the
advantage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.compiled import threads_for_kernels, usual_modes
from ssm_metarl.config import PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.trial_input import trial_starts
from ssm_metarl.meta_rl.epochs import EpochMetrics, EpochTrainer
from ssm_metarl.meta_rl.gradient_steps import GradientSteps, StepsTaken
from ssm_metarl.meta_rl.training_data import steps_in
from ssm_metarl.meta_rl.value_scale import ValueScale
from ssm_metarl.objectives.gae import trial_advantage
from ssm_metarl.objectives.ppo import clipped_gain, value_loss
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Rollout

INNER_LR = 0.01
"""Step size of a gradient step, for which this training does not prepare."""


@dataclass(frozen=True, kw_only=True)
class InContextMetrics(EpochMetrics):
    """See `EpochMetrics`; the last episode of each environment is cut short."""

    loss: float
    """PPO's loss at the last gradient step."""
    entropy: float
    """Mean entropy of the policy in nats, at the last gradient step."""
    value_error: float
    """Share of the returns' variance that the values leave unexplained."""


@dataclass(frozen=True)
class Sequences:
    """Steps of a batch of trials, cut into M sequences of S steps."""

    inputs: Tensor  # (S, M, I)
    reset: Tensor  # (S, M), True where a trial starts
    hidden: Tensor  # (1, M, P), the state that acting had before the first step
    action: Tensor  # (S, M[, A])
    log_prob: Tensor  # (S, M), of the behaviour that took the actions
    advantage: Tensor  # (S, M), mean 0, standard deviation 1 over all
    target: Tensor  # (S, M), what the value head should say
    expert: Tensor | None  # (S, M[, A]), what a told expert would have done, where it is imitated

    def minibatches(self, order: Tensor, count: int) -> Iterator[Sequences]:
        """The sequences in the given order, in ``count`` parts."""
        columns = {name: x for name, x in vars(self).items() if x is not None}
        for part in order.tensor_split(count):
            yield replace(self, **{name: x[:, part] for name, x in columns.items()})


class InContextTrainer(EpochTrainer[InContextConfig, InContextMetrics]):
    """In-context meta-training.

    Args:
        config: The settings.
        family: Overrides the family that ``config.family`` names.
        policy: Trained in place of a fresh one of the configuration's sizes.
        like: See `architecture`.
    """

    @usual_modes()
    def __init__(
        self,
        config: InContextConfig,
        family: TaskFamily | None = None,
        *,
        policy: Policy | None = None,
        like: PolicyConfig | None = None,
    ) -> None:
        super().__init__(config, family, inner_lr=INNER_LR, policy=policy, like=like)
        self.steps = GradientSteps(self.policy.meta_params(), config.lr, config.max_grad_norm)
        self.value_scale = ValueScale()

    @threads_for_kernels()
    @torch.enable_grad()
    def run_epoch(self) -> InContextMetrics:
        """One batch of trials: collect, rate, update."""
        started = time.perf_counter()
        tasks = self.draw_tasks()
        rollout = self._collect(tasks)
        assert isinstance(self.policy.heads, LinearHeads)  # no other has a value
        self.value_scale.update(rollout.reward, self.policy.heads.value, epoch=self.epoch)
        sequences, value_error = self._rate(rollout, self.expert(tasks, rollout))
        taken, entropy = self._update(sequences)
        average = float(rollout.reward.sum() / rollout.reset.sum())
        return InContextMetrics(
            loss=taken.loss,
            entropy=entropy,
            value_error=value_error,
            grad_norm=taken.grad_norm,
            **self.finished(rollout.mask.numel(), average, started),
        )

    def _collect(self, tasks: Tasks) -> Rollout:
        config = self.config
        rollout, _ = steps_in(
            tasks,
            self.policy,
            self.policy.meta_params(),
            1,
            seed=config.seed,
            purpose="train-trial",
            num_steps=config.steps_per_epoch + 1,  # the last only tells what the others led to
            trial_episodes=config.trial_episodes,
            max_episode_steps=config.horizon,
            push_probability=config.push_probability,
            spread_starts=config.spread_starts,
        )
        return rollout

    @torch.no_grad()
    def _rate(self, rollout: Rollout, expert: Tensor | None) -> tuple[Sequences, float]:
        """Values, advantages, and the states that acting had where sequences start.

        The weights are still those that acted, so running over the inputs once more gives the very
        states and values of that time.
        """
        config, policy = self.config, self.policy
        start = trial_starts(rollout.reset, config.trial_episodes)
        flat = rollout.map(lambda x: x.flatten(1, 2)[:, None])  # all environments as one task's
        reset = start.flatten(1, 2)[:, None]
        inputs = policy.inputs(flat, reset)  # (T, 1, R, I)
        hidden = policy.init_hidden(1, reset.shape[2])
        values: list[Tensor] = []
        states: list[Tensor] = []
        pieces = (x.split(config.sequence_steps) for x in (inputs, reset))
        for part, cut in zip(*pieces, strict=True):
            states.append(hidden)
            out, hidden = policy.unroll(policy.meta_params(), part, hidden, cut)
            values.append(policy.value(out.output))
        unit = self.value_scale.size  # of the head: a mean reward over the rewards' size
        value = torch.cat(values) / (1 - config.gamma) * unit
        gammas = {"gamma": config.gamma, "episode_gamma": config.episode_gamma}
        advantage = trial_advantage(flat, value, reset, **gammas, gae_lambda=config.gae_lambda)
        target = advantage + value[:-1]
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)

        def cut_up(x: Tensor) -> Tensor:
            """(T, 1, R, ...) as (S, M, ...): the sequences side by side."""
            pieces = x[: config.steps_per_epoch, 0].split(config.sequence_steps)
            return torch.cat(pieces, dim=1)

        whole = config.steps_per_epoch // config.sequence_steps
        sequences = Sequences(
            inputs=cut_up(inputs),
            reset=cut_up(reset),
            hidden=torch.cat(states[:whole], dim=1),
            action=cut_up(flat.action),
            log_prob=cut_up(flat.log_prob),
            advantage=cut_up(scaled),
            target=cut_up(target * (1 - config.gamma) / unit),
            expert=None if expert is None else cut_up(expert.flatten(1, 2)[:, None]),
        )
        return sequences, float(advantage.var() / target.var().clamp(min=1e-8))

    def counters(self) -> dict[str, int | float]:
        """With the rewards' size, whose unit the value head speaks."""
        return super().counters() | {"mean_square_reward": self.value_scale.mean_square}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | float]) -> None:
        """Put back what :meth:`tensors` and :meth:`counters` gave; older files had the unit 1."""
        super().restore(tensors, counters)
        self.value_scale = ValueScale(counters.get("mean_square_reward", 1.0))

    def _update(self, sequences: Sequences) -> tuple[StepsTaken, float]:
        """PPO's gradient steps, and the policy's entropy at the last one."""
        config = self.config
        rng = seeding.generator(config.seed, "minibatches", self.epoch)
        entropy = torch.zeros(())

        def losses() -> Iterator[Callable[[], Tensor]]:
            for _ in range(config.update_epochs):
                order = torch.from_numpy(rng.permutation(sequences.hidden.shape[1]))
                for part in sequences.minibatches(order, config.minibatches):
                    yield partial(backward, part)

        def backward(part: Sequences) -> Tensor:
            nonlocal entropy
            loss, entropy = ppo_loss(self.policy, part, config)
            loss.backward()
            return loss.detach()

        return self.steps.take(losses(), progress=self.progress), entropy.item()


def ppo_loss(
    policy: Policy, sequences: Sequences, config: InContextConfig
) -> tuple[Tensor, Tensor]:
    """PPO's loss on whole sequences, and the policy's mean entropy in nats."""
    out, _ = policy.unroll(
        policy.meta_params(), sequences.inputs[:, None], sequences.hidden, sequences.reset[:, None]
    )
    distribution = out.distribution.map(lambda x: x[:, 0])
    log_prob = distribution.log_prob(sequences.action)
    gain = clipped_gain(log_prob, sequences.log_prob, sequences.advantage, config.clip_coef).mean()
    error = value_loss(policy.value(out.output)[:, 0], sequences.target)
    entropy = distribution.entropy().mean()
    loss = config.value_coef * error - gain - config.entropy_coef * entropy
    if sequences.expert is not None:
        loss = loss - config.imitation_coef * distribution.log_prob(sequences.expert).mean()
    return loss, entropy
