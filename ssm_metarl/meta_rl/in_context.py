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

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.compiled import threads_for_kernels, usual_modes
from ssm_metarl.config import PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.trial_input import trial_starts
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import fingerprint, make_worlds
from ssm_metarl.meta_rl.architecture import in_context_architecture
from ssm_metarl.meta_rl.counted import Counted
from ssm_metarl.meta_rl.meta_maml import FINAL_LR_SHARE, TrainingDiverged
from ssm_metarl.meta_rl.optimizer_state import optimizer_tensors, restore_optimizer
from ssm_metarl.objectives.trial_advantage import trial_advantage
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily, Tasks, teacher
from ssm_metarl.types import Rollout

NO_EXPERT = -1
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
    expert: Tensor
    """What a told expert would have done, shape (S, M); -1 where there is none."""

    def minibatches(self, order: Tensor, count: int) -> Iterator[Sequences]:
        """The sequences in the given order, in ``count`` parts."""
        for part in order.tensor_split(count):
            yield Sequences(
                hidden=self.hidden[part],
                **{n: getattr(self, n)[:, part] for n in _TIMED},
            )


_TIMED = ("inputs", "reset", "action", "log_prob", "advantage", "target", "expert")


class InContextTrainer(Counted):
    """An in-context meta-training that can be stopped after any epoch and go on from there.

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
        self.config = replace(config, family=self.family.name)  # what a checkpoint says it is
        if config.imitation_coef > 0:
            teacher(self.family.task())  # whoever asks for one that is not there hears it now
        self.policy_config = in_context_architecture(config, self.family, like=like)
        self.policy = policy or build_policy(
            self.policy_config, seed=config.seed, inner_lr=INNER_LR
        )
        self.policy.trained_on = (self.family.name, fingerprint(self.family))
        self.optimizer = torch.optim.Adam(
            self.policy.meta_params().values(), lr=config.lr, eps=1e-5
        )

    @kept_environments()
    def train(self, on_epoch: Callable[[InContextMetrics], None] | None = None) -> Policy:
        """Run epochs until the limit is reached; returns the policy."""
        while self.progress < 1:
            metrics = self.run_epoch()
            if on_epoch is not None:
                on_epoch(metrics)
        return self.policy

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
        expert = torch.full_like(rollout.action, NO_EXPERT)
        if config.imitation_coef > 0:
            expert = teacher(tasks)(rollout.obs, rollout.action, rollout.reset)
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
        batched = self.family.dynamics is not None  # a Gymnasium environment's state is hidden
        with closing(
            make_worlds(
                tasks,
                1,
                seed=config.seed,
                purpose="train-trial",
                max_episode_steps=config.horizon,
                push_probability=config.push_probability if batched else 0.0,
                spread_starts=config.spread_starts if batched else 0.0,
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
    def _rate(self, rollout: Rollout, expert: Tensor) -> tuple[Sequences, float]:
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
        value = torch.cat(values) / (1 - config.gamma)
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
            "target": target * (1 - config.gamma),  # the head's unit: a mean reward
            "expert": expert.flatten(1, 2)[:, None],
        }

        def cut_up(x: Tensor) -> Tensor:
            """(T, 1, R, ...) as (S, M, ...): the sequences side by side."""
            pieces = x[: config.steps_per_epoch, 0].split(config.sequence_steps)
            return torch.cat(pieces, dim=1)

        whole = config.steps_per_epoch // config.sequence_steps
        sequences = Sequences(
            hidden=torch.cat(states[:whole], dim=1)[0],
            **{name: cut_up(x) for name, x in columns.items()},
        )
        return sequences, float(advantage.var() / target.var().clamp(min=1e-8))

    def _update(self, sequences: Sequences) -> tuple[float, float, float]:
        """PPO's gradient steps; gives the last one's loss, entropy and gradient norm."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * max(FINAL_LR_SHARE, 1 - self.progress)
        rng = seeding.generator(config.seed, "minibatches", self.epoch)
        for _ in range(config.update_epochs):
            order = torch.from_numpy(rng.permutation(len(sequences.hidden)))
            for part in sequences.minibatches(order, config.minibatches):
                self.optimizer.zero_grad(set_to_none=True)
                loss, entropy = ppo_loss(self.policy, part, config)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(
                    self.policy.meta_params().values(), config.max_grad_norm
                )
                if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                    raise TrainingDiverged(
                        f"expected a finite loss and gradient, received loss {loss.item():g} and "
                        f"gradient norm {norm.item():g}"
                    )
                self.optimizer.step()
        return loss.item(), entropy.item(), norm.item()

    def policy_on_cpu(self) -> Policy:
        """The policy, which lives there."""
        return self.policy

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, but for the counters."""
        moments = optimizer_tensors(self.optimizer, list(self.policy.meta_params()))
        return {
            **{f"policy.{n}": v.detach().clone() for n, v in self.policy.state_dict().items()},
            **{f"optimizer.{n}": v for n, v in moments.items()},
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | float]) -> None:
        """Put back what :meth:`tensors` and :meth:`counters` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}

        self.policy.load_state_dict(part("policy."))
        restore_optimizer(self.optimizer, list(self.policy.meta_params()), part("optimizer."))
        self.restore_counters(counters)


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
    ratio = (distribution.log_prob(sequences.action) - sequences.log_prob).exp()
    clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    advantage = sequences.advantage
    gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = (policy.value(out.output)[:, 0] - sequences.target).square().mean()
    entropy = distribution.entropy().mean()
    loss = config.value_coef * value_loss - gain - config.entropy_coef * entropy
    if config.imitation_coef > 0:
        loss = loss - config.imitation_coef * distribution.log_prob(sequences.expert).mean()
    return loss, entropy
