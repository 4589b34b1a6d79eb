"""In-context meta-training (RL²), top to bottom: recurrent PPO over trials of several episodes.

Place in the flow: stage 5, a sibling of `trainer` behind the same interface. One epoch is

    draw K tasks  ->  trials, the memory running through their episodes  ->  advantages
                  ->  clipped steps on whole sequences, from the states that acting had there

(Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, arXiv 1611.05763; PPO: Schulman et al. 2017,
arXiv 1707.06347). The policy is told what it did and what came of it (`core.trial_input`); adapting
is what its hidden state does, and at test time no weight changes.

Where the family has a regulator that is told the task (`TaskFamily.experts`), the policy may also
imitate it in the states that it gets into itself (Ross et al. 2011, arXiv 1011.0686): the
parameters are known in training, and a label at every step says more than the episode's length.

Two kinds of end. An episode's end is an input. A trial's end clears the memory and cuts the
advantage. Every number belongs to (seed, purpose, task or epoch), as in `trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.compiled import threads_for_kernels, usual_modes
from ssm_metarl.config import PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.trial_input import trial_starts
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import fingerprint, make_worlds
from ssm_metarl.meta_rl.architecture import in_context_architecture
from ssm_metarl.meta_rl.epochs import EpochTrainer, on_family
from ssm_metarl.meta_rl.gradient_steps import GradientSteps
from ssm_metarl.meta_rl.value_scale import ValueScale
from ssm_metarl.objectives.gae import trial_advantage
from ssm_metarl.objectives.ppo import clipped_gain, value_loss
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily, Tasks, teacher
from ssm_metarl.types import Rollout

INNER_LR = 0.01
"""Step size of a gradient step, for which this training does not prepare."""


@dataclass(frozen=True)
class InContextMetrics:
    """What one epoch did: a line of the training log."""

    epoch: int
    """Epochs finished."""
    env_steps: int
    """Environment steps taken since the start."""
    loss: float
    """PPO's loss at the last gradient step."""
    average_return: float
    """Mean undiscounted return of the episodes, the last one of each environment cut short."""
    recent_return: float
    """Exponential average of ``average_return`` over about ten epochs."""
    entropy: float
    """Mean entropy of the policy in nats, at the last gradient step."""
    value_error: float
    """Share of the returns' variance that the values leave unexplained."""
    grad_norm: float
    """Norm of the gradient before clipping, at the last gradient step."""
    seconds: float
    """Wall time of the epoch."""


@dataclass(frozen=True)
class Sequences:
    """Steps of a batch of trials, cut into M sequences of S steps."""

    inputs: Tensor
    """Shape (S, M, I)."""
    reset: Tensor
    """True where a trial starts, shape (S, M)."""
    hidden: Tensor
    """State that acting had before the first step, shape (M, P)."""
    action: Tensor
    """Shape (S, M[, A])."""
    log_prob: Tensor
    """Of the behaviour that took the actions, shape (S, M)."""
    advantage: Tensor
    """Mean 0, standard deviation 1 over all, shape (S, M)."""
    target: Tensor
    """What the value head should say, shape (S, M)."""
    expert: Tensor | None
    """What a told expert would have done, shape (S, M); None where nobody is imitated."""

    def minibatches(self, order: Tensor, count: int) -> Iterator[Sequences]:
        """The sequences in the given order, in ``count`` parts."""
        for part in order.tensor_split(count):
            yield Sequences(
                hidden=self.hidden[part],
                expert=None if self.expert is None else self.expert[:, part],
                **{name: getattr(self, name)[:, part] for name in _TIMED},
            )


_TIMED = ("inputs", "reset", "action", "log_prob", "advantage", "target")


class InContextTrainer(EpochTrainer[InContextMetrics]):
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
        super().__init__()
        self.config: InContextConfig
        self.family = family or family_of_env(config.family)
        self.config = on_family(config, self.family)  # what a checkpoint says it is
        self.policy_config = in_context_architecture(config, self.family, like=like)
        self.policy = policy or build_policy(
            self.policy_config, seed=config.seed, inner_lr=INNER_LR
        )
        self.policy.trained_on = (self.family.name, fingerprint(self.family))
        self.steps = GradientSteps(self.policy.meta_params(), config.lr, config.max_grad_norm)
        self.value_scale = ValueScale()

    @threads_for_kernels()
    @torch.enable_grad()
    def run_epoch(self) -> InContextMetrics:
        """One batch of trials: collect, rate, update."""
        started = time.perf_counter()
        config = self.config
        tasks = self.family.sample(
            "train",
            config.tasks_per_epoch,
            seed=config.seed,
            start=self.epoch * config.tasks_per_epoch,
        )
        rollout = self._collect(tasks)
        expert = None
        if config.imitation_coef > 0:
            expert = teacher(tasks)(rollout.obs, rollout.action, rollout.reset)
        assert isinstance(self.policy.heads, LinearHeads)  # no other has a value
        self.value_scale.update(rollout.reward, self.policy.heads.value, epoch=self.epoch)
        sequences, value_error = self._rate(rollout, expert)
        loss, entropy, norm = self._update(sequences)

        average = float(rollout.reward.sum() / rollout.reset.sum())
        self.count(rollout.mask.numel(), average)
        return InContextMetrics(
            epoch=self.epoch,
            env_steps=self.env_steps,
            loss=loss,
            average_return=average,
            recent_return=self.recent_return,
            entropy=entropy,
            value_error=value_error,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
        )

    def _collect(self, tasks: Tasks) -> Rollout:
        config, policy = self.config, self.policy
        with closing(
            make_worlds(
                tasks,
                1,
                seed=config.seed,
                purpose="train-trial",
                max_episode_steps=config.horizon,
                push_probability=config.push_probability,
                spread_starts=config.spread_starts,
            )
        ) as worlds:
            noise = TaskNoise(config.seed, "train-trial-action", tasks.indices)
            steps = config.steps_per_epoch + 1  # the last one only tells what the others led to
            actor = policy.actor(
                policy.meta_params(),
                len(tasks),
                1,
                noise=noise,
                num_steps=steps,
                trial_episodes=config.trial_episodes,
            )
            return collect_rollout(worlds, actor, steps, autoreset=True)

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
        for part in inputs.split(config.sequence_steps):
            states.append(hidden)
            first = config.sequence_steps * len(values)
            cut = reset[first : first + len(part)]
            out, hidden = policy.unroll(policy.meta_params(), part, hidden, cut)
            values.append(policy.value(out.output))
        unit = self.value_scale.size  # of the head: a mean reward over the rewards' size
        value = torch.cat(values) / (1 - config.gamma) * unit
        advantage = trial_advantage(
            flat,
            value,
            reset,
            gamma=config.gamma,
            episode_gamma=config.episode_gamma,
            gae_lambda=config.gae_lambda,
        )
        target = advantage + value[:-1]
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        columns = {
            "inputs": inputs,
            "reset": reset,
            "action": flat.action,
            "log_prob": flat.log_prob,
            "advantage": scaled,
            "target": target * (1 - config.gamma) / unit,
        }

        def cut_up(x: Tensor) -> Tensor:
            """(T, 1, R, ...) as (S, M, ...): the sequences side by side."""
            pieces = x[: config.steps_per_epoch, 0].split(config.sequence_steps)
            return torch.cat(pieces, dim=1)

        whole = config.steps_per_epoch // config.sequence_steps
        sequences = Sequences(
            hidden=torch.cat(states[:whole], dim=1)[0],
            expert=None if expert is None else cut_up(expert.flatten(1, 2)[:, None]),
            **{name: cut_up(x) for name, x in columns.items()},
        )
        return sequences, float(advantage.var() / target.var().clamp(min=1e-8))

    def counters(self) -> dict[str, int | float]:
        """With the rewards' size, whose unit the value head speaks."""
        return super().counters() | {"mean_square_reward": self.value_scale.mean_square}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | float]) -> None:
        """Put back what :meth:`tensors` and :meth:`counters` gave; older files had the unit 1."""
        super().restore(tensors, counters)
        self.value_scale = ValueScale(counters.get("mean_square_reward", 1.0))

    def _update(self, sequences: Sequences) -> tuple[float, float, float]:
        """PPO's gradient steps; gives the last one's loss, entropy and gradient norm."""
        config = self.config
        rng = seeding.generator(config.seed, "minibatches", self.epoch)
        entropy = torch.zeros(())

        def losses() -> Iterator[Callable[[], Tensor]]:
            for _ in range(config.update_epochs):
                order = torch.from_numpy(rng.permutation(len(sequences.hidden)))
                for part in sequences.minibatches(order, config.minibatches):
                    yield partial(backward, part)

        def backward(part: Sequences) -> Tensor:
            nonlocal entropy
            loss, entropy = ppo_loss(self.policy, part, config)
            loss.backward()
            return loss.detach()

        taken = self.steps.take(losses(), progress=self.progress)
        return taken.loss, entropy.item(), taken.grad_norm


def ppo_loss(
    policy: Policy, sequences: Sequences, config: InContextConfig
) -> tuple[Tensor, Tensor]:
    """PPO's loss on whole sequences, and the policy's mean entropy in nats."""
    out, _ = policy.unroll(
        policy.meta_params(),
        sequences.inputs[:, None],
        sequences.hidden[None],
        sequences.reset[:, None],
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
