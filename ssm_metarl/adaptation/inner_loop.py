"""The gradient step that adapts parameters to tasks: one step, one place.

Place in the flow: stage 4. `meta_rl.meta_maml` differentiates through it, both adapters and the
evaluator call it, so adaptation at training time and at test time cannot drift apart.

    params_k <- params_k - alpha * g_k / r_k,      g_k = grad L_k(params_k)

alpha is learned for every parameter (Meta-SGD, Li et al. 2017, arXiv 1707.09835, eq. 2). r_k is
the largest root mean square that task k's gradient has had in this adaptation: the first step
moves a parameter by about alpha, however loud the task's data are, and later steps shrink with
the gradient instead of being blown up to the same length again. With a plain learning rate the
gradient is taken as it is (MAML, Finn et al. 2017, arXiv 1703.03400, eq. 1).

Where experience is replayed, a proximal anchor holds the parameters to where they started:

    params_k <- params_k - alpha * g_k / r_k - pull_k * (params_k - params)

This is the gradient of MQL's pull_k / 2 * ||params_k - params||^2 (Fakoor et al. 2020, arXiv
1910.00125), apart from alpha and r_k: a step takes back the share pull_k of the way so far, however
loud the data and however long the learned steps are; the first one has nothing to take back. With a
plain learning rate the gradient of the sum is taken, so the rate multiplies the pull too.

The trap: through alpha the pull would push away every parameter whose learned step size is
negative, a third of them in the shipped models.

Everything here is a pure function: nothing is mutated and restored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ssm_metarl.types import FlatParams, Params, flatten

TaskLoss = Callable[[Params], Tensor]
"""Parameters with a leading K axis -> the loss of each task, shape (K,)."""

Accept = Callable[[Params], Tensor]
"""Parameters after a step (K, ...) -> whether each task keeps it, shape (K,), bool. A task that was
refused once is refused for good."""

MIN_RMS = 1e-8  # a task without any gradient stays where it is


class Anchor(NamedTuple):
    """What holds K tasks' parameters back."""

    start: Tensor
    """Where they started, shape (K, P)."""
    pull: Tensor
    """Share of the way from there that a step takes back, in [0, 1], shape (K,)."""


def expand_to_tasks(params: Params, num_tasks: int) -> FlatParams:
    """Shared parameters as K equal ones, (...) -> (K, ...), without copying.

    Those that are per task already stay as they are.
    """
    if isinstance(params, FlatParams) and params.flat.dim() == 2:
        return params
    shapes = {name: p.shape for name, p in params.items()}
    return FlatParams(flatten(params, shapes).expand(num_tasks, -1), shapes)


def inner_step(
    task_params: FlatParams,
    loss: TaskLoss,
    step_size: Params | float,
    *,
    largest_rms: Tensor | float = MIN_RMS,
    anchor: Anchor | None = None,
    create_graph: bool = False,
) -> tuple[FlatParams, Tensor, Tensor | float]:
    """One gradient step for K tasks at once.

    Args:
        task_params: Shape (K, ...) each; they must require a gradient.
        loss: The tasks' losses; task k's must depend on the k-th parameters alone.
        step_size: A learned step size for each parameter, applied to the normalised gradient,
            or a number: plain gradient descent.
        largest_rms: Each task's largest gradient RMS in the steps before, shape (K,).
        anchor: What holds the parameters back; None for nothing.
        create_graph: Keep the graph, for second-order meta-gradients.

    Returns:
        The adapted parameters, the losses before the step (K,), and the largest RMS by now.
    """
    losses = loss(task_params)
    # Task k's loss depends on its own slice only, so the sum's gradient is each task's own.
    (grad,) = torch.autograd.grad(losses.sum(), [task_params.flat], create_graph=create_graph)
    if isinstance(step_size, Mapping):
        rms = torch.sqrt(grad.square().mean(1) + MIN_RMS**2)  # (K,)
        largest_rms = torch.clamp(rms, min=largest_rms)
        update = flatten(step_size, task_params.shapes) * grad / largest_rms[:, None]
    else:
        update = step_size * grad
    if anchor is not None:
        rate = 1.0 if isinstance(step_size, Mapping) else step_size
        update = update + rate * anchor.pull[:, None] * (task_params.flat - anchor.start)
    return task_params.at(task_params.flat - update), losses.detach(), largest_rms


def adapt_params(
    params: Params,
    loss: TaskLoss,
    step_size: Params | float,
    *,
    num_tasks: int,
    num_steps: int,
    pull: Tensor | None = None,
    second_order: bool = False,
    accept: Accept | None = None,
) -> tuple[FlatParams, Tensor]:
    """Adapt shared parameters to K tasks with ``num_steps`` gradient steps on the same data.

    Args:
        params: Shared parameters, shape (...) each (or per task, `FlatParams`).
        loss: As in :func:`inner_step`.
        step_size: As in :func:`inner_step`.
        num_tasks: K.
        num_steps: Gradient steps.
        pull: Strength of the proximal anchor at ``params``, shape (K,); None for none.
        second_order: Differentiate through the gradients. Without it the result still depends
            on ``params`` and ``step_size``, with the gradients held constant (first-order MAML).
        accept: Asked after each step; a task whose step is refused stays as it was before it,
            and takes no more. None keeps every step.

    Returns:
        Task parameters, shape (K, ...) each, and the loss before each step that any task took,
        (num_steps, K).
    """
    largest_rms: Tensor | float = MIN_RMS
    history = []
    with torch.enable_grad():
        task_params = expand_to_tasks(params, num_tasks)
        if not task_params.flat.requires_grad:
            # A frozen parameter adapts like the others: only training leaves it as it is.
            task_params = task_params.at(task_params.flat.detach().requires_grad_())
        anchor = None if pull is None else Anchor(task_params.flat, pull)
        for _ in range(num_steps):
            stepped, losses, largest_rms = inner_step(
                task_params,
                loss,
                step_size,
                largest_rms=largest_rms,
                anchor=anchor,
                create_graph=second_order,
            )
            history.append(losses)
            if accept is not None:
                kept = accept(stepped)
                if not kept.any():
                    break
                if not kept.all():
                    flat = torch.where(kept[:, None], stepped.flat, task_params.flat)
                    stepped = task_params.at(flat)
            task_params = stepped
    empty = torch.zeros(0, num_tasks)
    return task_params, torch.stack(history) if history else empty
