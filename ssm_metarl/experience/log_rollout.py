"""From the transitions of a log to a `Rollout`, and how long a row lasts.

Place in the flow: the last step of `plant_log`, after `log_transitions`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.experience.log_cells import Floats
from ssm_metarl.experience.log_table import Bools
from ssm_metarl.experience.log_transitions import Transitions
from ssm_metarl.types import Rollout

GAP = 1.5
"""Periods after which rows are missing."""

EPOCH, LONG_PERIOD = (1e9, 3e9), 3600.0
"""Seconds since 1970, in this century, and a period beyond which numbers are no seconds."""


def find_period(found: Transitions, notes: list[str]) -> tuple[float | None, Bools]:
    """Seconds between rows, None if not known, and where rows are missing, shape (n,).

    What is told about the time column is added to the notes.
    """
    steps = found.kept[:, found.step][:, 0]
    known = steps[np.isfinite(steps)]
    gaps: Bools = np.zeros(len(steps), dtype=bool)
    if not known.size or found.time is None:
        return None, gaps
    median = float(np.median(known))
    gaps = steps > GAP * median * (1 + 1e-9)
    columns = found.table.columns
    name = columns.read[found.time].name
    if columns.seconds is not None:
        return median * columns.seconds, gaps
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
    units = (
        (1.0, "seconds"),
        (1e-3, "milliseconds"),
        (1e-6, "microseconds"),
        (1e-9, "nanoseconds"),
    )
    for scale, unit in units:
        if EPOCH[0] <= time * scale <= EPOCH[1] and step * scale <= LONG_PERIOD:
            return scale, unit
    return units[3] if step >= 1e6 else units[2] if step >= 1e4 else units[0]


def build_rollout(found: Transitions, gaps: Bools, notes: list[str]) -> Rollout:
    """What was kept, shape (T, 1, 1), without the transitions that span a gap.

    What is told about gaps and rewards is added to the notes.
    """
    kept = found.kept.copy()
    kept[0, found.start] = 1
    kept[1:, found.start] += gaps[:-1, None]
    if gaps.any():
        notes.append(f"{int(gaps.sum()):,} gap(s) of over {GAP:g} periods: none is stepped over")
        if found.table.columns.next_obs is None:
            kept = kept[~gaps]
    reward = kept[:, found.reward]
    if np.isnan(reward).any():
        if not np.isnan(reward).all():
            notes.append("rewards are missing in some rows: none is used")
        reward = np.zeros_like(reward)
    if isinstance(found.wanted.action_space, Discrete):
        action = torch.from_numpy(kept[:, found.action].astype(np.int64))[..., 0]
    else:
        action = _float(kept[:, found.action])
    flag = {
        name: torch.from_numpy(kept[:, place] > 0)
        for name, place in (
            ("reset", found.start),
            ("terminated", found.terminated),
            ("truncated", found.truncated),
        )
    }
    steps = len(kept)
    return Rollout(
        obs=_float(kept[:, found.obs])[:, None, None],  # (T, 1, 1, O)
        action=action[:, None, None],  # (T, 1, 1) or (T, 1, 1, A)
        reward=_float(reward)[:, None],  # (T, 1, 1)
        next_obs=_float(kept[:, found.next_obs])[:, None, None],  # (T, 1, 1, O)
        mask=torch.ones(steps, 1, 1, dtype=torch.bool),
        log_prob=torch.full((steps, 1, 1), torch.nan),
        **{name: values[:, None] for name, values in flag.items()},  # (T, 1, 1)
    )


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
