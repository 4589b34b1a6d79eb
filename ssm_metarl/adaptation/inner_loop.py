"""The gradient step that adapts parameters to tasks: one step, one place.

Place in the flow: stage 4. Meta-training differentiates through it, adapters and evaluator call it.

    params_k <- params_k - alpha * g_k / r_k - pull_k * (params_k - params)

g_k is task k's gradient, alpha is learned for every parameter (Meta-SGD, Li et al. 2017, arXiv
1707.09835, eq. 2). r_k is the largest root mean square that g_k has had in this adaptation: the
first step moves a parameter by about alpha, however loud the task's data are, and later steps
shrink with the gradient. The last term, where experience is replayed, is MQL's proximal anchor
(Fakoor et al. 2020, arXiv 1910.00125): a step takes back the share pull_k of the way so far.
With a plain learning rate the gradient of the loss plus pull_k / 2 * ||params_k - params||^2 is
taken as it is (MAML, Finn et al. 2017, arXiv 1703.03400, eq. 1).

The trap: through alpha the pull would push away every parameter whose learned step size is
negative, a third of them in the shipped models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ssm_metarl.types import FlatParams, Params, flatten

TaskLoss = Callable[[Params], Tensor]
"""Parameters with a leading K axis -> the loss of each task, shape (K,)."""

Accept = Callable[[Params], Tensor]
"""Parameters after a step (K, ...) -> whether each task keeps it, shape (K,), bool. A task that was
refused once is refused for good."""

MIN_RMS = 1e-8  # a task without any gradient stays where it is


def expand_to_tasks(params: Params, num_tasks: int) -> FlatParams:
    """Shared parameters as K equal ones, (...) -> (K, ...), without copying.

    Those that are per task already stay as they are.
    """
    if isinstance(params, FlatParams) and params.flat.dim() == 2:
        return params
    shapes = {name: p.shape for name, p in params.items()}
    return FlatParams(flatten(params, shapes).expand(num_tasks, -1), shapes)


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
        loss: The tasks' losses; task k's must depend on the k-th parameters alone.
        step_size: A learned step size for each parameter, applied to the normalised gradient,
            or a number: plain gradient descent.
        num_tasks: K.
        num_steps: Gradient steps.
        pull: Strength of the proximal anchor at ``params``, in [0, 1], shape (K,); None for none.
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
        start = task_params.flat
        for _ in range(num_steps):
            losses = loss(task_params)
            # Task k's loss depends on its own slice only: the sum's gradient is each task's own.
            (grad,) = torch.autograd.grad(
                losses.sum(), [task_params.flat], create_graph=second_order
            )
            if isinstance(step_size, Mapping):
                rms = torch.sqrt(grad.square().mean(1) + MIN_RMS**2)  # (K,)
                largest_rms = torch.clamp(rms, min=largest_rms)
                update = flatten(step_size, task_params.shapes) * grad / largest_rms[:, None]
            else:
                update = step_size * grad
            if pull is not None:
                rate = 1.0 if isinstance(step_size, Mapping) else step_size
                update = update + rate * pull[:, None] * (task_params.flat - start)
            history.append(losses.detach())
            stepped = task_params.flat - update
            if accept is not None:
                kept = accept(task_params.at(stepped))
                if not kept.any():
                    break
                if not kept.all():
                    stepped = torch.where(kept[:, None], stepped, task_params.flat)
            task_params = task_params.at(stepped)
    return task_params, torch.stack(history) if history else torch.zeros(0, num_tasks)
