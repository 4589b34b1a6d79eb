"""In-context least squares: how observations and actions have moved this plant so far.

Place in the flow: stage 3, a part of `trial_input`. With phi the last observation and the last
actions, and y the change of the observation, ridge regression over the trial up to now gives::

    G_t = keep G_{t-1} + phi phi'        C_t = keep C_{t-1} + phi y'        both 0 at a trial's start
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

RIDGE = 1e-6
KEEP = 0.998
"""Share of the sums that a step keeps: a plant that drifts is forgotten in some 500 steps."""


class Identification:
    """Regressions of R environments, each as far as its trial has come.

    Args:
        rows: R.
        obs_dim: O, entries of y.
        actions_dim: Entries of phi beside the O observations.
    """

    def __init__(self, rows: int, obs_dim: int, actions_dim: int) -> None:
        size = obs_dim + actions_dim
        self._gram = torch.zeros(rows, size, size, dtype=torch.float64)
        self._cross = torch.zeros(rows, size, obs_dim, dtype=torch.float64)

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
        """
        if z.device.type != "cpu":
            return self.update_plainly(z, before, actions, episode_start, trial_start)
        phi = torch.cat([before, actions], dim=-1).double().contiguous()
        out = torch.empty(*z.shape[:2], phi.shape[-1], z.shape[-1], dtype=torch.float64)
        _update(
            phi.numpy(), (z - before).double().numpy(), episode_start.numpy(), trial_start.numpy(),
            self._gram.numpy(), self._cross.numpy(), out.numpy(),
        )  # fmt: skip
        return out.flatten(2).to(z.dtype)

    def update_plainly(
        self, z: Tensor, before: Tensor, actions: Tensor, episode_start: Tensor, trial_start: Tensor
    ) -> Tensor:
        """The same by PyTorch's own operations, on any device."""
        gram, cross = self._gram.to(z.device), self._cross.to(z.device)
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
        self._gram, self._cross = gram, cross
        return torch.stack(solutions).to(z.dtype)


@compiled
def _update(phi, y, episode_start, trial_start, gram, cross, out):  # type: ignore[no-untyped-def]
    """`Identification.update_plainly`, number by number, by Cholesky's decomposition."""
    T, R, F = phi.shape
    O = y.shape[2]
    root = np.empty((F, F))
    for r in range(R):
        for t in range(T):
            if trial_start[t, r]:
                for i in range(F):
                    for j in range(F):
                        gram[r, i, j] = 0.0
                    for j in range(O):
                        cross[r, i, j] = 0.0
            if not episode_start[t, r]:
                for i in range(F):
                    for j in range(F):
                        gram[r, i, j] = KEEP * gram[r, i, j] + phi[t, r, i] * phi[t, r, j]
                    for j in range(O):
                        cross[r, i, j] = KEEP * cross[r, i, j] + phi[t, r, i] * y[t, r, j]
            for i in range(F):
                for j in range(i + 1):
                    total = gram[r, i, j]
                    if i == j:
                        total += RIDGE
                    for k in range(j):
                        total -= root[i, k] * root[j, k]
                    if i == j:
                        root[i, i] = math.sqrt(max(total, 0.1 * RIDGE))
                    else:
                        root[i, j] = total / root[j, j]
            for column in range(O):
                for i in range(F):
                    total = cross[r, i, column]
                    for k in range(i):
                        total -= root[i, k] * out[t, r, k, column]
                    out[t, r, i, column] = total / root[i, i]
                for i in range(F - 1, -1, -1):
                    total = out[t, r, i, column]
                    for k in range(i + 1, F):
                        total -= root[k, i] * out[t, r, k, column]
                    out[t, r, i, column] = total / root[i, i]
