"""A plant's own log, as support data: a CSV or Parquet file in, a `Rollout` out.

Place in the flow: beside `experience_buffer`; ``ssm-metarl adapt --data`` reads its file here.
A format makes blocks of rows (`FORMATS`), `log_columns` says what they hold, `log_transitions` what
led to what, `log_rollout` makes the rollout. A log of any length takes the memory of a few blocks.

A row is one moment: what was observed, and the action that was then taken. What the action led to
is the next row, so an episode's last row has an observation only, its action empty. Columns, in
any order, others are ignored and named in a note:

    the observations   the family's names (such as x and x_dot), or obs_0, ...
    action             0, 1, ... if discrete; action_0, action_1, ... if there are several numbers
    reward             optional: what the action of this row earned
    episode            optional: a row with another value than the row before starts an episode;
                       also episode_id, episode_index, trial, run, traj, ...
    terminated, truncated, done, terminal, timeout, is_last; is_first
                       optional, 0 or 1: the row's action ended an episode; the row starts one
    next_x, ...        optional, all observations: what the action led to, if it is not the next row
    time               optional: seconds or ISO dates; also t, timestamp, time_ms, ...
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.experience.log_cells import Floats, listed
from ssm_metarl.experience.log_columns import Wanted
from ssm_metarl.experience.log_csv import CsvTable
from ssm_metarl.experience.log_parquet import ParquetTable
from ssm_metarl.experience.log_rollout import build_rollout, find_period
from ssm_metarl.experience.log_table import Block, Table
from ssm_metarl.experience.log_transitions import Transitions
from ssm_metarl.types import Rollout

MAX_ROWS = 20_000
"""Transitions that are kept: a plant drifts, and what counts is how it is now."""


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
        period, gaps = find_period(found, notes)
        rollout = build_rollout(found, gaps, notes)
        return PlantLog(
            rollout=rollout,
            num_rows=self.rows,
            used_rows=rollout.num_steps,
            num_episodes=int(rollout.reset.sum()),
            period=period,
            notes=tuple(notes),
        )
