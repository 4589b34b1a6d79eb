"""The outer step of MAML: improve the parameters from which one inner step leads far.

Place in the flow: stage 5, between `adaptation.inner_loop` and `trainer`, which collects the data.

    phi <- Adam(grad_phi of mean_k J_clip(phi_k(phi); query_k))

with phi_k the parameters adapted on task k's support data, and J_clip PPO's clipped surrogate
on episodes that phi_k collected (ProMP, Rothfuss et al. 2019, arXiv 1810.06784). The gradient
runs through the inner step, second order unless ``first_order``. The step sizes learn with it.
Where the inner objective is prediction, ``inner_loss_coef`` times the inner loss *after* the inner
steps is added: else nothing asks that a step towards better predictions predict better. That loss
grew fifty-fold, and a second step from there went astray.

The trap: the gradient holds the support *actions* fixed, so nothing credits them for being
informative (E-MAML, Stadie et al. 2018, adds that term). Random support, the default, has no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_loop import TaskLoss, adapt_params, expand_to_tasks
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.meta_rl.gradient_steps import GradientSteps, StepsTaken
from ssm_metarl.objectives.ppo import Guide, clipped_policy_loss
from ssm_metarl.types import FlatParams, Rollout

STEPS_AT_ONCE = 4096  # of query episodes: what they leave for the gradient is some megabytes


@dataclass(frozen=True)
class MetaUpdate(StepsTaken):
    """What one meta-batch did to the meta-parameters, at the last outer step."""

    left_out: int
    """Tasks whose gradient was not finite."""


class QueryPart(NamedTuple):
    """Query episodes of some tasks, without the steps that none of them took."""

    tasks: Tensor  # which, (K',)
    query: Rollout  # (T', K', N)
    advantage: Tensor  # (T', K', N)
    guide: Guide | None  # what a teacher network would do in these steps, where there is one
    expert: Tensor | None  # what a told expert would do, (T', K', N[, A]), where it is imitated


def query_parts(
    query: Rollout, advantage: Tensor, guide: Guide | None = None, expert: Tensor | None = None
) -> list[QueryPart]:
    """Take a meta-batch apart, longest episodes first, into parts of about `STEPS_AT_ONCE`.

    What the episodes of a part leave behind for the gradient fits into cache, and a task whose
    episodes end early does not wait for the others.
    """
    lengths = query.mask.sum(dim=0).amax(dim=-1)  # (K,)
    order = torch.argsort(lengths, descending=True, stable=True)
    parts = []
    for tasks in order.tensor_split(-(-query.mask.numel() // STEPS_AT_ONCE)):
        steps = int(lengths[tasks].max())

        def cut(x: Tensor, steps: int = steps, tasks: Tensor = tasks) -> Tensor:
            return x[:steps, tasks]

        part = guide and replace(guide, distribution=guide.distribution.map(cut))
        told = None if expert is None else cut(expert)
        parts.append(QueryPart(tasks, query.map(cut).cleaned(), cut(advantage), part, told))
    return parts


class MetaMAML:
    """Meta-parameters, their optimiser, and the outer step.

    Args:
        policy: Its meta-parameters and step sizes are trained in place.
        config: The meta-training's settings.
    """

    def __init__(self, policy: Policy, config: MetaTrainingConfig) -> None:
        self.policy, self.config = policy, config
        self.steps = GradientSteps(
            dict(policy.named_parameters()), config.outer_lr, config.max_grad_norm
        )

    def adapt(
        self, loss: TaskLoss, *, num_tasks: int, num_steps: int, second_order: bool = False
    ) -> FlatParams:
        """Parameters adapted to K tasks, shape (K, ...) each."""
        adapted, _ = adapt_params(
            self.policy.meta_params(),
            loss,
            self.policy.step_sizes(),
            num_tasks=num_tasks,
            num_steps=num_steps,
            second_order=second_order,
        )
        return adapted

    def backward(
        self, loss: TaskLoss, parts: Sequence[QueryPart], *, num_steps: int
    ) -> tuple[float, int]:
        """Put the meta-gradient into the parameters' ``grad``.

        The outer loss's gradient at the adapted parameters comes first, some tasks at a time; then
        it goes back through the inner steps, of all tasks at once. A task whose gradient is not
        finite is left out, unless most are: an inner step can make a `StateSpaceModel`, whose
        recurrence is nonlinear, run away on one task, which says nothing about the others.

        Args:
            loss: The tasks' inner losses on their support data.
            parts: Episodes that adapted parameters collected, of all tasks (`query_parts`).
            num_steps: Inner steps.

        Returns:
            The outer loss, and the number of tasks without a finite gradient.
        """
        config, policy = self.config, self.policy
        num_tasks = sum(len(part.tasks) for part in parts)
        meta = expand_to_tasks(policy.meta_params(), num_tasks)
        before = meta.at(meta.flat.detach().requires_grad_())
        sizes = before.at(policy.step_size.detach().expand_as(before.flat).requires_grad_())
        adapted, _ = adapt_params(
            before,
            loss,
            sizes,
            num_tasks=num_tasks,
            num_steps=num_steps,
            second_order=not config.first_order,
        )
        start = adapted.at(adapted.flat.detach().requires_grad_())
        outer = start.flat.new_zeros(num_tasks)
        for part in parts:
            losses = clipped_policy_loss(
                policy,
                start.at(start.flat[part.tasks]),
                part.query,
                part.advantage,
                clip_coef=config.clip_coef,
                entropy_coef=config.entropy_coef,
                guide=part.guide,
                expert=part.expert,
                imitation_coef=config.imitation_coef,
            )
            (losses.sum() / num_tasks).backward()
            outer[part.tasks] = losses.detach()
        if config.objective == "prediction" and config.inner_loss_coef > 0:
            left = config.inner_loss_coef * loss(start)
            (left.sum() / num_tasks).backward()
            outer = outer + left.detach()
        inputs = (before.flat, sizes.flat)
        # Without an inner step nothing depends on the step sizes.
        grads = torch.autograd.grad(
            adapted.flat, inputs, start.flat.grad, materialize_grads=num_steps == 0
        )
        rows = torch.stack(grads)  # (2, K, P)
        sound = outer.isfinite() & rows.square().sum(dim=(0, 2)).isfinite()
        if 2 * int(sound.sum()) >= num_tasks:
            rows, outer = rows.where(sound[:, None], 0.0), outer[sound]
        meta.flat.backward(rows[0])
        policy.step_size.grad = rows[1].sum(0)
        return float(outer.mean()), num_tasks - int(sound.sum())

    def update(
        self,
        loss: TaskLoss,
        query: Rollout,
        advantage: Tensor,
        *,
        num_steps: int,
        progress: float,
        guide: Guide | None = None,
        expert: Tensor | None = None,
    ) -> MetaUpdate:
        """Take ``update_epochs`` outer steps on one meta-batch.

        Args:
            loss: As in :meth:`backward`.
            query: Episodes that adapted parameters collected, (T, K, N).
            advantage: Shape (T, K, N).
            num_steps: As in :meth:`backward`.
            progress: Share of the training that is done, in [0, 1]; sets the learning rate.
            guide: A teacher to stay close to.
            expert: What a told expert would do in the query's steps, where it is imitated.

        Raises:
            TrainingDiverged: The loss or its gradient is not finite; nothing was changed by
                that step.
        """
        parts = query_parts(query, advantage, guide, expert)
        left_out = 0

        def backward() -> float:
            nonlocal left_out
            meta_loss, left_out = self.backward(loss, parts, num_steps=num_steps)
            return meta_loss

        taken = self.steps.take([backward] * self.config.update_epochs, progress=progress)
        return MetaUpdate(taken.loss, taken.grad_norm, left_out)
