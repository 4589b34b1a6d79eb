"""A plant's own log, as support data: a CSV or Parquet file in, a `Rollout` out.

Place in the flow: beside `experience_buffer`; ``ssm-metarl adapt --data`` reads its file here.
`log_csv` and `log_parquet` make blocks of rows, `log_columns` says what they hold,
`log_transitions` what led to what, `log_rollout` makes the rollout. A log of any length takes the
memory of a few blocks.

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
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.experience.log_cells import LARGEST, Floats, listed
from ssm_metarl.experience.log_columns import Wanted
from ssm_metarl.experience.log_csv import CsvTable
from ssm_metarl.experience.log_parquet import ParquetTable
from ssm_metarl.experience.log_rollout import build_rollout, find_period
from ssm_metarl.experience.log_table import Block, Bools, Table, refusal
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


def read_plant_log(
    path: str | os.PathLike[str],
    *,
    obs_dim: int,
    action_space: ActionSpace,
    obs_names: Sequence[str] = (),
    max_rows: int = MAX_ROWS,
) -> Rollout:
    """Read a plant's log: the rollout of :func:`open_plant_log`.

    Args:
        path: A CSV file with a header, or a Parquet file.
        obs_dim: O, the observations' size.
        action_space: Of the policy that is to adapt.
        obs_names: Names of the observation columns; obs_0, obs_1, ... are understood, too.
        max_rows: Transitions that are kept, the newest ones.

    Returns:
        One task's episodes in a row, shape (T, 1, 1).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a cell is no number, an action is none, or no row tells
            what an action led to; the message names the line.
    """
    return open_plant_log(
        path, obs_dim=obs_dim, action_space=action_space, obs_names=obs_names, max_rows=max_rows
    ).rollout


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
        ValueError: As for :func:`read_plant_log`.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1, received {max_rows}")
    wanted = Wanted(tuple(obs_names), obs_dim, action_space)
    table = _open(Path(path), wanted)
    try:
        reading = _Reading(table, wanted, max_rows)
        for block in table.blocks():
            reading.add(block)
        return reading.result()
    finally:
        table.close()


def _open(path: Path, wanted: Wanted) -> Table:
    """The table in a file, whose first bytes or name tell what it is."""
    try:
        raw = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a CSV file, received no such file") from None
    try:
        if raw.peek(4)[:4] == b"PAR1" or path.suffix in (".parquet", ".pq"):
            raw.close()
            return ParquetTable(path, wanted)
        return CsvTable(path, raw, wanted)
    except BaseException:
        raw.close()
        raise


class _Reading:
    """A log that is being read, once as it stands and once without rows that repeat the last."""

    def __init__(self, table: Table, wanted: Wanted, max_rows: int) -> None:
        self.table, self.wanted, self.max_rows = table, wanted, max_rows
        self.rows = self.repeats = self.repeated = 0
        self.plain = Transitions(table, wanted, max_rows)
        self.single: Transitions | None = None  # the same as plain until a row repeats
        self._error: tuple[Transitions, ValueError] | None = None
        self._last: Floats = np.full((1, len(table.columns.read)), np.nan)
        self._repeating = False  # whether the last row repeats the one before

    @property
    def doubled(self) -> bool:
        """Whether rows are written more than once: at least half of the different ones.

        A plant at rest repeats its rows, too, but few different ones.
        """
        return self.repeated > 2 and 2 * self.repeated >= self.rows - self.repeats

    def add(self, block: Block) -> None:
        """Take the next rows."""
        observed = block.values[:, self.table.columns.obs]
        bad = np.argwhere(~(np.abs(observed) <= LARGEST))
        if bad.size:
            row, column = bad[0].tolist()
            raise refusal(self.table, block, row, column, "a finite number")
        repeats = self._find_repeats(block)
        self.rows += len(block)
        if self.single is None and repeats.any():
            self.single = copy(self.plain)
        self._feed(self.plain, block)
        if self.single is not None:
            self._feed(self.single, block.rows(np.flatnonzero(~repeats)))

    def result(self) -> PlantLog:
        """The log, now that all rows have been added.

        Raises:
            ValueError: No row tells what an action led to.
        """
        found = self._right
        if self._error is not None and self._error[0] is found:
            raise self._error[1]
        found.end()
        if not len(found.kept):
            raise ValueError(
                f"{self.table.path}: expected at least two rows of an episode, to tell what an "
                f"action led to, received {self.rows:,} row(s)"
            )
        notes = [*self.table.notes, *found.notes]
        if self.table.columns.ignored:
            notes.insert(0, f"columns ignored: {listed(self.table.columns.ignored)}")
        if found is self.single:
            notes.append(f"{self.repeats:,} rows that repeat the row before are left out")
        if found.unlinked:
            notes.append(
                f"{found.unlinked:,} rows do not go on where the row before led to: each starts an "
                "episode"
            )
        if found.count > len(found.kept):
            notes.append(f"the last {len(found.kept):,} of {self.rows:,} rows are used")
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

    @property
    def _right(self) -> Transitions:
        """Which of both counts."""
        return self.single if self.single is not None and self.doubled else self.plain

    def _feed(self, found: Transitions, block: Block) -> None:
        """Add rows to one of both; its error counts if it is the right one in the end."""
        if self._error is not None and self._error[0] is found:
            return
        try:
            found.add(block)
        except ValueError as error:
            if self._error is not None and self._error[0] is self._right:
                raise self._error[1] from None
            if self._error is not None or self.single is None:
                raise
            self._error = found, error

    def _find_repeats(self, block: Block) -> Bools:
        """Which rows repeat the row before in all that is read, shape (n,)."""
        values = block.values
        before = np.concatenate([self._last, values[:-1]])
        same: Bools = ((values == before) | (np.isnan(values) & np.isnan(before))).all(
            1
        ) & ~block.breaks
        if not self.rows:
            same[:1] = False
        self._last = values[-1:].copy()
        self.repeats += int(same.sum())
        self.repeated += int((same & ~np.append(self._repeating, same[:-1])).sum())
        self._repeating = bool(same[-1])
        return same
