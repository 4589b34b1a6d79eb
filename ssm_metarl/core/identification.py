"""In-context least squares: how observations and actions have moved this plant so far.

Place in the flow: stage 3, a part of `trial_input`. With phi the last observation and the last
actions, and y the change of the observation, ridge regression over the trial up to now gives::

    G_t = keep G_{t-1} + phi phi'     C_t = keep C_{t-1} + phi y'     both 0 at a trial's start
    W_t = (G_t + ridge I)^-1 C_t         y is about W' phi

G and C are a diagonal linear recurrence on products, the same kind of memory as the layers behind
it. What those cannot learn to do well is the division: sensors of a falling pole move together, so
sums of products alone tell them badly apart (von Oswald et al. 2023, arXiv 2309.05858, add such a
layer to transformers). A plant without noise is known after as many steps as phi has entries.

The trap: at an episode's first step nothing has moved yet, and the jump from the last episode's end
is no change.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.compiled import compiled
from ssm_metarl.entrance import fitted, shaped

RIDGE = 1e-6
KEEP = 0.998
"""Share of the sums that a step keeps: of a plant that drifts, half is forgotten in 350 steps."""


class Identification:
    """Regressions of R environments, each as far as its trial has come.

    Args:
        rows: R.
        obs_dim: O, entries of y.
        actions_dim: Entries of phi beside the O observations.
    """

    def __init__(self, rows: int, obs_dim: int, actions_dim: int) -> None:
        size = obs_dim + actions_dim
        self.gram = torch.zeros(rows, size, size, dtype=torch.float64)
        self.cross = torch.zeros(rows, size, obs_dim, dtype=torch.float64)

    def update(
        self, z: Tensor, before: Tensor, actions: Tensor, episode_start: Tensor, trial_start: Tensor
    ) -> Tensor:
        """Take in T steps.

        Args:
            z: Observations, shape (T, R, O).
            before: Those of the steps before, shape (T, R, O).
            actions: The last actions, as in `trial_input`, shape (T, R, A).
            episode_start: True at an episode's first step, shape (T, R).
            trial_start: True at a trial's first step, shape (T, R).

        Returns:
            W after each step, shape (T, R, (O + A) O), in the type of z.

        Raises:
            ValueError: A shape does not fit.
        """
        rows, size, obs_dim = self.cross.shape
        steps = len(z) if isinstance(z, Tensor) and z.dim() > 0 else 0
        kind = z.dtype if steps and z.dtype.is_floating_point else torch.float32
        z = shaped("z", z, (steps, rows, obs_dim), kind, "T, R, O")
        before = shaped("before", before, z.shape, kind, "T, R, O")
        shape = (steps, rows, size - obs_dim)
        actions = shaped("actions", actions, shape, kind, "T, R, A")
        lead = (steps, rows)
        episode_start = shaped("episode_start", episode_start, lead, torch.bool, "T, R")
        trial_start = shaped("trial_start", trial_start, lead, torch.bool, "T, R")
        if z.device.type != "cpu":
            return self.update_plainly(z, before, actions, episode_start, trial_start)
        episode_start = fitted("episode_start", episode_start, lead, torch.bool, "T, R")
        trial_start = fitted("trial_start", trial_start, lead, torch.bool, "T, R")
        z, before = z.detach(), before.detach()
        phi = torch.cat([before, actions.detach()], dim=-1).double().contiguous()
        out = torch.empty(*z.shape[:2], phi.shape[-1], z.shape[-1], dtype=torch.float64)
        _update(
            phi.numpy(), (z - before).double().numpy(), episode_start.numpy(), trial_start.numpy(),
            self.gram.numpy(), self.cross.numpy(), out.numpy(),
        )  # fmt: skip
        return out.flatten(2).to(z.dtype)

    def update_plainly(
        self, z: Tensor, before: Tensor, actions: Tensor, episode_start: Tensor, trial_start: Tensor
    ) -> Tensor:
        """The same by PyTorch's own operations, on any device."""
        gram, cross = self.gram.to(z.device), self.cross.to(z.device)
        ridge = RIDGE * torch.eye(gram.shape[-1], dtype=torch.float64, device=z.device)
        solutions = []
        for t in range(len(z)):
            phi = torch.cat([before[t], actions[t]], dim=-1).double()
            y = (z[t] - before[t]).double()
            cleared, new = trial_start[t][:, None, None], ~episode_start[t][:, None, None]
            keep = torch.where(new, KEEP, 1.0).masked_fill(cleared, 0.0)
            gram, cross = keep * gram, keep * cross
            gram = gram + new * phi[:, :, None] * phi[:, None, :]
            cross = cross + new * phi[:, :, None] * y[:, None, :]
            solutions.append(torch.linalg.solve(gram + ridge, cross).flatten(1))
        self.gram, self.cross = gram, cross
        return torch.stack(solutions).to(z.dtype)


@compiled
def _update(phi, y, episode_start, trial_start, gram, cross, out):  # type: ignore[no-untyped-def]
    """`Identification.update_plainly`, number by number."""
    root = np.empty(gram.shape[1:])
    for r in range(phi.shape[1]):
        for t in range(phi.shape[0]):
            regress(phi[t, r], y[t, r], episode_start[t, r], trial_start[t, r], gram[r], cross[r],
                    root, out[t, r])  # fmt: skip


@compiled
def regress(phi, y, episode_start, trial_start, gram, cross, root, out):  # type: ignore[no-untyped-def]
    """One step of one environment: (F,) and (O,) into the sums, and W (F, O) by Cholesky's roots.

    root (F, F) is scratch.
    """
    size, dims = cross.shape
    for i in range(size):
        for j in range(size):
            if trial_start:
                gram[i, j] = 0.0
            if not episode_start:
                gram[i, j] = KEEP * gram[i, j] + phi[i] * phi[j]
        for j in range(dims):
            if trial_start:
                cross[i, j] = 0.0
            if not episode_start:
                cross[i, j] = KEEP * cross[i, j] + phi[i] * y[j]
    for i in range(size):
        for j in range(i + 1):
            total = gram[i, j]
            for k in range(j):
                total -= root[i, k] * root[j, k]
            if i > j:
                root[i, j] = total / root[j, j]
            else:  # rounding may leave less than the ridge, even less than nothing
                root[i, i] = math.sqrt(max(total + RIDGE, 0.1 * RIDGE))
    for column in range(dims):
        for i in range(size):
            total = cross[i, column]
            for k in range(i):
                total -= root[i, k] * out[k, column]
            out[i, column] = total / root[i, i]
        for i in range(size - 1, -1, -1):
            total = out[i, column]
            for k in range(i + 1, size):
                total -= root[k, i] * out[k, column]
            out[i, column] = total / root[i, i]
