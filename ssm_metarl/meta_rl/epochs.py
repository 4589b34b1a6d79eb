"""What every meta-training has: epochs, counters, a policy, a state that can be put back.

Place in the flow: the base of `trainer` and of `in_context`; `training_run` gives it a folder.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.gradient_steps import GradientSteps
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily, Tasks, teacher
from ssm_metarl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch did: a line of the training log."""

    epoch: int
    """Epochs finished."""
    env_steps: int
    """Environment steps taken since the start, all data together."""
    average_return: float
    """Mean undiscounted return of the episodes that were learnt from, as they were cut."""
    recent_return: float
    """Exponential average of ``average_return`` over about ten epochs."""
    grad_norm: float
    """Norm of the gradient before clipping, at the last step."""
    seconds: float
    """Wall time of the epoch."""


Metrics = TypeVar("Metrics", bound=EpochMetrics)
Config = TypeVar("Config", MetaTrainingConfig, InContextConfig)


class EpochTrainer(ABC, Generic[Config, Metrics]):
    """A training that can be stopped after any epoch and go on from there."""

    steps: GradientSteps

    def __init__(
        self,
        config: Config,
        family: TaskFamily | None,
        *,
        inner_lr: float,
        policy: Policy | None = None,
        like: PolicyConfig | None = None,
    ) -> None:
        self.family = family or family_of_env(config.family)
        self.config: Config = on_family(config, self.family)  # what a checkpoint says it is
        self.policy_config = architecture(config, self.family, like=like)
        self.policy = policy or build_policy(
            self.policy_config, seed=config.seed, inner_lr=inner_lr
        )
        self.policy.trained_on = (self.family.name, fingerprint(self.family))
        self.epoch = 0
        """Epochs finished."""
        self.env_steps = 0
        """Environment steps taken."""
        self.recent_return = 0.0
        """Exponential average of the epochs' returns over about ten of them."""

    @abstractmethod
    def run_epoch(self) -> Metrics:
        """One epoch."""

    @kept_environments()
    def train(self, on_epoch: Callable[[Metrics], None] | None = None) -> Policy:
        """Run epochs until the limit is reached; returns the policy."""
        while self.progress < 1:
            metrics = self.run_epoch()
            if on_epoch is not None:
                on_epoch(metrics)
        return self.policy

    def policy_on_cpu(self) -> Policy:
        """The policy, or a copy where it lives elsewhere: evaluations run on the processor."""
        return self.policy if self.policy.step_size.is_cpu else copy.deepcopy(self.policy).cpu()

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        shares = [0.0]
        if self.config.num_epochs is not None:
            shares.append(self.epoch / self.config.num_epochs)
        if self.config.env_step_limit is not None:
            shares.append(self.env_steps / self.config.env_step_limit)
        return min(1.0, max(shares))

    def draw_tasks(self) -> Tasks:
        """The training tasks of the epoch that comes."""
        count = self.config.tasks_per_epoch
        return self.family.sample("train", count, seed=self.config.seed, start=self.epoch * count)

    def expert(self, tasks: Tasks, rollout: Rollout) -> Tensor | None:
        """What the told expert would have done in a rollout's steps, where it is imitated."""
        if self.config.imitation_coef == 0:
            return None
        return teacher(tasks)(rollout.obs, rollout.action, rollout.reset)

    def finished(self, env_steps: int, average_return: float, started: float) -> dict[str, Any]:
        """Count one more epoch; gives what the metrics of all of them tell."""
        self.epoch += 1
        self.env_steps += env_steps
        decay = min(0.9, (self.epoch - 1) / self.epoch)
        self.recent_return = decay * self.recent_return + (1 - decay) * average_return
        told = {"average_return": average_return, "seconds": time.perf_counter() - started}
        return EpochTrainer.counters(self) | told  # without what a kind of training adds

    def counters(self) -> dict[str, int | float]:
        """The numbers that a resumed training starts from."""
        return {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "recent_return": self.recent_return,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything else that it starts from."""
        return {
            **{f"policy.{n}": v.detach().clone() for n, v in self.policy.state_dict().items()},
            **{f"optimizer.{n}": v for n, v in self.steps.tensors().items()},
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | float]) -> None:
        """Put back what :meth:`tensors` and :meth:`counters` gave."""
        self.policy.load_state_dict(named(tensors, "policy."))
        self.steps.restore(named(tensors, "optimizer."))
        self.epoch, self.env_steps = int(counters["epoch"]), int(counters["env_steps"])
        self.recent_return = float(counters["recent_return"])


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name starts so, without that start."""
    return {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}


def on_family(config: Config, family: TaskFamily) -> Config:
    """The settings as they hold for a family, which is what a checkpoint says.

    Batched physics can be pushed and started anywhere. Of a simulator the state is out of reach:
    there the *defaults* of ``push_probability`` and ``spread_starts`` stand for none.

    Raises:
        ValueError: A number was asked for that cannot apply.
    """
    config = replace(config, family=family.name)
    if config.imitation_coef > 0:
        teacher(family.task())  # whoever asks for one that is not there hears it now
    if family.dynamics is not None:
        return config
    defaults = {field.name: field.default for field in fields(config)}
    for name in ("push_probability", "spread_starts"):
        value = getattr(config, name)
        if value not in (0, defaults[name]):
            raise ValueError(
                f"{name}: expected 0 for {family.name!r}, whose state is out of reach, received "
                f"{value:g}"
            )
    return replace(config, push_probability=0.0, spread_starts=0.0)
