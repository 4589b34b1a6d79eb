"""A plant's own log, as support data: a CSV or Parquet file in, a `Rollout` out.

Place in the flow: beside `experience_buffer`; ``ssm-metarl adapt --data`` reads its file here. A
format makes blocks of rows, `log_columns` says what their columns hold, `log_transitions` what led
to what. A log of any length takes the memory of a few blocks.

A row is one moment: what was observed, and the action that was then taken. What the action led to
is the next row, so an episode's last row has an observation only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.experience.log_cells import Floats, listed
from ssm_metarl.experience.log_columns import Wanted
from ssm_metarl.experience.log_csv import CsvTable
from ssm_metarl.experience.log_parquet import ParquetTable
from ssm_metarl.experience.log_table import Block, Bools, Table
from ssm_metarl.experience.log_transitions import Transitions
from ssm_metarl.types import Rollout

MAX_ROWS = 20_000
"""Transitions that are kept: a plant drifts, and what counts is how it is now."""
GAP = 1.5
"""Periods after which rows are missing."""
UNITS = ((1.0, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"), (1e-9, "nanoseconds"))
EPOCH, LONG_PERIOD = (1e9, 3e9), 3600.0
"""Seconds since 1970, in this century, and a period beyond which numbers are no seconds."""


@dataclass(frozen=True)
class PlantLog:
    """What a plant's log holds."""

    rollout: Rollout
    """The transitions that are used, one task's episodes in a row, shape (T, 1, 1)."""
    num_rows: int
    """Rows in the file, all of which were checked."""
    used_rows: int
    """Rows whose action and outcome are in the rollout, T."""
    num_episodes: int
    """Sequences in the rollout: episodes, or parts of one between gaps."""
    period: float | None
    """Median time between the rows of an episode in seconds; None without a time column."""
    notes: tuple[str, ...]
    """What was left out, repaired or taken for granted, a sentence each."""


def read_plant_log(path: str | os.PathLike[str], **options: Any) -> Rollout:
    """The rollout of :func:`open_plant_log` alone, from the same arguments."""
    return open_plant_log(path, **options).rollout


def open_plant_log(
    path: str | os.PathLike[str],
    *,
    obs_dim: int,
    action_space: ActionSpace,
    obs_names: Sequence[str] = (),
    max_rows: int = MAX_ROWS,
) -> PlantLog:
    """Read a plant's log, and say what was made of it.

    Args:
        path: A CSV file with a header, or a Parquet file.
        obs_dim: O, the observations' size.
        action_space: Of the policy that is to adapt.
        obs_names: Names of the observation columns; obs_0, obs_1, ... are understood, too.
        max_rows: Transitions that are kept, the newest ones.

    Returns:
        The newest transitions, and what a user should know about them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a cell is no number, an action is none, or no row tells
            what an action led to; the message names the line.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1, received {max_rows}")
    wanted, path = Wanted(tuple(obs_names), obs_dim, action_space), Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a CSV file, received no such file")
    with open(path, "rb") as raw:
        is_parquet = raw.peek(4)[:4] == b"PAR1" or path.suffix in (".parquet", ".pq")
        table: Table = (ParquetTable if is_parquet else CsvTable)(path, raw, wanted)
        reading = _Reading(table, wanted, max_rows)
        for block in table.blocks():
            reading.add(block)
            if reading.failed:
                break
        return reading.result()


class _Reading:
    """A log that is being read, once as it stands and once without rows that repeat the last."""

    def __init__(self, table: Table, wanted: Wanted, max_rows: int) -> None:
        self.table = table
        self.plain, self.single = (Transitions(table, wanted, max_rows) for _ in range(2))
        self.rows = self.repeats = self.repeated = 0
        self._last: Floats = np.full((1, len(table.columns.read)), np.nan)
        self._repeating = False  # whether the last row repeats the one before

    @property
    def failed(self) -> bool:
        """Whether no later row can change the outcome."""
        return self.plain.error is not None and self.single.error is not None

    def add(self, block: Block) -> None:
        """Take the next rows."""
        before = np.concatenate([self._last, block.values[:-1]])
        equal = (block.values == before) | (np.isnan(block.values) & np.isnan(before))
        same = equal.all(axis=1) & ~block.breaks
        same[0] &= self.rows > 0
        self.rows += len(block)
        self.repeats += int(same.sum())
        self.repeated += int((same & ~np.append(self._repeating, same[:-1])).sum())
        self._last, self._repeating = block.values[-1:].copy(), bool(same[-1])
        self.plain.add(block)
        self.single.add(block.rows(np.flatnonzero(~same)))

    def result(self) -> PlantLog:
        """The log, now that all rows have been added.

        Raises:
            ValueError: A row is wrong, or none tells what an action led to.
        """
        # A plant at rest repeats its rows, too, but few different ones.
        doubled = self.repeated > 2 and 2 * self.repeated >= self.rows - self.repeats
        found = self.single if doubled else self.plain
        found.end()
        if not found.count:
            raise ValueError(
                f"{self.table.path}: expected at least two rows of an episode, to tell what an "
                f"action led to, received {self.rows:,} row(s)"
            )
        notes = [*self.table.notes, *found.notes]
        if self.table.columns.ignored:
            notes.insert(0, f"columns ignored: {listed(self.table.columns.ignored)}")
        if doubled:
            notes.append(f"{self.repeats:,} rows that repeat the row before are left out")
        if found.unlinked:
            notes.append(
                f"{found.unlinked:,} rows do not go on where the row before led to: each starts an "
                "episode"
            )
        if found.count > (kept := len(found.kept["step"])):
            notes.append(f"the last {kept:,} of {self.rows:,} rows are used")
        period, gaps = _find_period(found, notes)
        rollout = _build_rollout(found, gaps, notes)
        episodes = int(rollout.reset.sum())
        return PlantLog(rollout, self.rows, rollout.num_steps, episodes, period, tuple(notes))


def _find_period(found: Transitions, notes: list[str]) -> tuple[float | None, Bools]:
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


def _build_rollout(found: Transitions, gaps: Bools, notes: list[str]) -> Rollout:
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
