"""What least squares foresees: where the plant goes by itself, and what the next action will do.

Place in the flow: stage 3, a part of `trial_input`. With W = (W_z; W_1 ... W_S) from
`identification`, of which row s belongs to the action s steps ago, S steps ahead of z_t::

    f_h = f_{h-1} + W_z' f_{h-1} + sum of W_s' a_{t+h-s} over s > h     f_0 = z_t
    e_h = e_{h-1} + W_z' e_{h-1} + W_h'                                 e_0 = 0

f_S is the free response: all actions that are under way have arrived, and no other was taken. e_S
is what an action now adds to it. A controller that looks S steps ahead needs not know the dead time
(Smith's predictor, 1957). In the coefficients themselves a dead time that training never drew
stands where nothing ever stood, and a policy that was told them did not look there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.compiled import compiled

FARTHEST = 10.0
"""Bound of both, in scaled units: before the plant is known, W may be anything."""


def foresee(z: Tensor, actions: Tensor, found: Tensor, code_dim: int) -> tuple[Tensor, Tensor]:
    """Free response and effect.

    Args:
        z: Scaled observations, shape (..., O).
        actions: Codes of the last S actions, newest first, shape (..., S C).
        found: W, shape (..., O + S C, O).
        code_dim: C.

    Returns:
        f_S, shape (..., O), and e_S, shape (..., C, O), in the type of z.
    """
    if not z.is_cpu:
        return foresee_plainly(z, actions, found, code_dim)
    rows = z.shape[:-1].numel()
    given = [
        x.detach().to(z.dtype).reshape(rows, *x.shape[z.dim() - 1 :]).contiguous().numpy()
        for x in (z, actions, found)
    ]
    free = z.new_empty(z.shape)
    effect = z.new_empty(*z.shape[:-1], code_dim, z.shape[-1])
    _foresee(*given, *(x.view(rows, *x.shape[z.dim() - 1 :]).numpy() for x in (free, effect)))
    return free, effect


def foresee_plainly(
    z: Tensor, actions: Tensor, found: Tensor, code_dim: int
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's own operations, on any device."""
    moves, pushes = found.split([z.shape[-1], actions.shape[-1]], dim=-2)
    free, effect = z[..., None, :], torch.zeros_like(pushes[..., :code_dim, :])
    line = actions[..., None, :]
    for passed in range(code_dim, actions.shape[-1] + 1, code_dim):
        arriving = line[..., : actions.shape[-1] - passed] @ pushes[..., passed:, :]
        free = (free + free @ moves + arriving).clamp(-FARTHEST, FARTHEST)
        now = pushes[..., passed - code_dim : passed, :]
        effect = (effect + effect @ moves + now).clamp(-FARTHEST, FARTHEST)
    return free[..., 0, :], effect


@compiled
def _foresee(z, actions, found, free, effect):  # type: ignore[no-untyped-def]
    moved = np.empty(z.shape[1])
    for r in range(len(z)):
        foresee_one(z[r], actions[r], found[r], moved, free[r], effect[r])


@compiled
def foresee_one(z, actions, found, moved, free, effect):  # type: ignore[no-untyped-def]
    """`foresee_plainly` of one row, number by number; moved (O,) is scratch."""
    dims, codes = len(z), len(effect)
    for j in range(dims):
        free[j] = z[j]
    effect[:] = 0
    for passed in range(codes, len(actions) + 1, codes):
        for j in range(dims):
            moved[j] = free[j]
            for i in range(dims):
                moved[j] += free[i] * found[i, j]
            for i in range(passed, len(actions)):
                moved[j] += actions[i - passed] * found[dims + i, j]
        for j in range(dims):
            free[j] = min(max(moved[j], -FARTHEST), FARTHEST)
        for c in range(codes):
            for j in range(dims):
                moved[j] = effect[c, j] + found[dims + passed - codes + c, j]
                for i in range(dims):
                    moved[j] += effect[c, i] * found[i, j]
            for j in range(dims):
                effect[c, j] = min(max(moved[j], -FARTHEST), FARTHEST)
