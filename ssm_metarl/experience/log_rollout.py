"""From the transitions of a log to a `Rollout`, and how long a row lasts.

Place in the flow: the last step of `plant_log`, after `log_transitions`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.experience.log_cells import Floats
from ssm_metarl.experience.log_table import Bools
from ssm_metarl.experience.log_transitions import Transitions
from ssm_metarl.types import Rollout

GAP = 1.5
"""Periods after which rows are missing."""
UNITS = ((1.0, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"), (1e-9, "nanoseconds"))
EPOCH, LONG_PERIOD = (1e9, 3e9), 3600.0
"""Seconds since 1970, in this century, and a period beyond which numbers are no seconds."""


def find_period(found: Transitions, notes: list[str]) -> tuple[float | None, Bools]:
    """Seconds between rows, None if not known, and where rows are missing, shape (n,).

    What is told about the time column is added to the notes.
    """
    steps = found.kept["step"]
    known = steps[np.isfinite(steps)]
    if not known.size or found.time is None:
        return None, np.zeros(len(steps), dtype=bool)
    median = float(np.median(known))
    gaps: Bools = steps > GAP * median * (1 + 1e-9)
    name, scale = found.columns.read[found.time].name, found.columns.seconds
    if scale is not None:
        return median * scale, gaps
    if median == 1 and found.last_time % 1 == 0 and not np.any(known % 1):
        notes.append(f"column {name} counts rows: how long a row lasts is not known")
        return None, gaps
    scale, unit = _unit(found.last_time, median)
    if unit != "seconds":
        notes.append(f"column {name} is read in {unit}: rows are {median:g} apart")
    elif median >= 5:
        notes.append(f"rows are {median:g} s apart; a column of milliseconds is called {name}_ms")
    return median * scale, gaps


def _unit(time: float, step: float) -> tuple[float, str]:
    """The unit of a time column that does not tell it, from its last value and its steps."""
    for scale, unit in UNITS:
        if EPOCH[0] <= time * scale <= EPOCH[1] and step * scale <= LONG_PERIOD:
            return scale, unit
    return UNITS[3 if step >= 1e6 else 2 if step >= 1e4 else 0]


def build_rollout(found: Transitions, gaps: Bools, notes: list[str]) -> Rollout:
    """What was kept, shape (T, 1, 1), without the transitions that span a gap.

    What is told about gaps and rewards is added to the notes.
    """
    kept = found.kept
    starts = kept["start"] > 0
    starts[0] = True
    starts[1:] |= gaps[:-1]
    if gaps.any():
        notes.append(f"{int(gaps.sum()):,} gap(s) of over {GAP:g} periods: none is stepped over")
    stays = ~gaps if found.columns.next_obs is None else np.ones_like(gaps)
    reward = kept["reward"][stays]
    if np.isnan(reward).any():
        if not np.isnan(reward).all():
            notes.append("rewards are missing in some rows: none is used")
        reward = np.zeros_like(reward)
    action = _tensor(kept["action"][stays])
    mask = torch.ones(len(reward), 1, 1, dtype=torch.bool)
    return Rollout(
        obs=_tensor(kept["obs"][stays]),  # (T, 1, 1, O)
        action=action if found.choices is None else action[..., 0].long(),  # (T, 1, 1[, A])
        reward=_tensor(reward),  # (T, 1, 1)
        next_obs=_tensor(kept["next_obs"][stays]),  # (T, 1, 1, O)
        terminated=_tensor(kept["terminated"][stays]) > 0,
        truncated=_tensor(kept["truncated"][stays]) > 0,
        reset=torch.from_numpy(starts[stays])[:, None, None],
        mask=mask,
        log_prob=torch.full(mask.shape, torch.nan),
    )


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None]
