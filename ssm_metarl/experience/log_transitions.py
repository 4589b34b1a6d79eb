"""From the rows of a log to its newest transitions.

Place in the flow: `plant_log` gives every row once; what is kept is a few numbers of the last
``max_rows`` transitions.

A row's transition ends in the observation of the next row of its sequence, or in its own columns
``next_*`` where there are any. Nothing is made up: an episode's last row has no transition without
them, and its action is not looked at.
"""

from __future__ import annotations

import numpy as np

from ssm_metarl.action_space import Discrete
from ssm_metarl.experience.log_cells import LARGEST, Floats, shown
from ssm_metarl.experience.log_columns import Wanted
from ssm_metarl.experience.log_table import Block, Bools, Table, refusal


class Transitions:
    """The newest transitions, at most ``max_rows``, of the rows that were added."""

    def __init__(self, table: Table, wanted: Wanted, max_rows: int) -> None:
        self.table, self.columns, self.max_rows = table, table.columns, max_rows
        self.choices = wanted.action_space.n if isinstance(wanted.action_space, Discrete) else None
        self.time = table.columns.time
        self.kept: dict[str, Floats] = {}
        """obs, next_obs (n, O), action (n, A), and (n,): reward (NaN: none), start of an episode,
        terminated, truncated, step: the time up to the next row (NaN: none)."""
        self.count = 0
        """Transitions that were found."""
        self.unlinked = 0
        """Rows that do not go on where the row before led to."""
        self.error: ValueError | None = None
        """Why a row contradicts another, or lacks what its place in an episode needs."""
        self.last_time = np.nan
        self.notes: list[str] = []
        self._held: Block | None = None  # the last row: what follows it is not known yet
        self._held_start = True
        self._forward = False  # whether time went forward anywhere
        self._backward: ValueError | None = None  # where it first did not
        self._turns = 0  # how often it went backward

    def add(self, block: Block) -> None:
        """Take the next rows; none once there is an error."""
        if self.error is not None or not len(block):
            return
        try:
            self._require(block, self.columns.obs, np.ones(len(block), dtype=bool))
            if self._held is not None:
                block = block.after(self._held)
            elif self.time is not None and not np.isfinite(block.values[0, self.time]):
                text = shown(block.cell(0, self.time))
                name = self.columns.read[self.time].name
                self.notes.append(f"column {name} is ignored: {text} is no time")
                self.time = None
            starts = self._starts(block)
            self._append(block, starts, self._steps(block, starts), len(block) - 1)
            self._held, self._held_start = block.last(), bool(starts[-1])
        except ValueError as error:
            self.error = error

    def end(self) -> None:
        """No rows follow.

        Raises:
            ValueError: One of them was wrong, or time went backward.
        """
        if self._backward is not None and self._turns > 1:
            self._backward = ValueError(
                f"{self.table.path}: expected rows in the order of time, received rows in reversed "
                "order of time"
            )
        if error := self.error or self._backward:
            raise error
        if self._held is not None:
            self._append(self._held, np.array([self._held_start]), np.array([np.nan]), 1)

    def _starts(self, block: Block) -> Bools:
        """Which rows start a sequence, shape (n,)."""
        starts = block.breaks.copy()
        starts[0] = self._held_start
        sources = self._sources(block)
        both = ((a, b) for a in sources if a[2] for b in sources)
        for (name, rows, _), (other, others, _) in both:
            if (alone := np.flatnonzero(others & ~rows & ~starts[1:])).size:
                raise ValueError(
                    f"{self.table.path}, {self.table.place} {block.lines[alone[0] + 1]}: "
                    f"expected {name} and {other} to agree where an episode starts, received a "
                    f"start by {other} alone"
                )
        for _, rows, _ in sources:
            starts[1:] |= rows
        if self.columns.next_obs is not None:
            led_to = block.values[:-1, self.columns.next_obs]
            found = block.values[1:, self.columns.obs]
            apart = ~np.isclose(led_to, found, rtol=1e-5, atol=1e-8).all(1) & ~starts[1:]
            apart &= np.isfinite(led_to).all(1)
            self.unlinked += int(apart.sum())
            starts[1:] |= apart
        return starts

    def _sources(self, block: Block) -> list[tuple[str, Bools, bool]]:
        """What tells where episodes start: its name, rows 1 to n - 1, whether it tells of all."""
        columns, values = self.columns, block.values
        sources: list[tuple[str, Bools, bool]] = []
        if columns.episodes:  # one may lie within another: runs, and their episodes
            numbers = values[:, columns.episodes]
            same = (numbers[1:] == numbers[:-1]) | (np.isnan(numbers[1:]) & np.isnan(numbers[:-1]))
            name = " or ".join(columns.read[c].name for c in columns.episodes)
            sources.append((name, ~same.all(1), True))
        for column, mark in columns.marks:
            marked = values[:, column]
            if (odd := np.flatnonzero(~np.isnan(marked) & (marked != 0) & (marked != 1))).size:
                raise refusal(self.table, block, odd[0], column, "0 or 1, false or true")
            rows = marked[1:] == 1 if mark == "first" else marked[:-1] == 1
            sources.append((columns.read[column].name, rows, mark in ("first", "last")))
        return sources

    def _steps(self, block: Block, starts: Bools) -> Floats:
        """Time from each row to the next one of its sequence, NaN where there is none, (n,)."""
        steps = np.full(len(block), np.nan)
        if self.time is None:
            return steps
        times = block.values[:, self.time]
        if (odd := np.flatnonzero(~np.isfinite(times))).size:
            expected = "seconds, or a date and time in ISO form"
            raise refusal(self.table, block, odd[0], self.time, expected)
        steps[:-1] = np.where(starts[1:], np.nan, np.diff(times))
        turns = np.flatnonzero(steps <= 0)
        self._forward |= bool((steps > 0).any())
        self._turns += int((steps < 0).sum())
        if turns.size and self._backward is None:
            expected = "a later time than in the row before"
            self._backward = refusal(self.table, block, turns[0] + 1, self.time, expected)
        if self._backward is not None and self._forward:
            raise self._backward
        self.last_time = float(times[-1])
        return steps

    def _append(self, block: Block, starts: Bools, steps: Floats, rows: int) -> None:
        """Keep the transitions of the first ``rows`` rows."""
        columns, values = self.columns, block.values
        valid = np.append(~starts[1:], False)
        if columns.next_obs is None:
            led_to = np.roll(values[:, columns.obs], -1, axis=0)
        else:
            led_to = values[:, columns.next_obs]
            missing = np.isnan(led_to).all(1) & ~valid
            self._require(block, columns.next_obs, ~missing[:rows])
            valid = ~missing
        valid = valid[:rows]
        self._require(block, columns.action, valid, self.choices)
        reward = np.full(len(values), np.nan)
        if columns.reward is not None:
            reward = values[:, columns.reward]
            place = slice(columns.reward, columns.reward + 1)
            self._require(block, place, valid & ~np.isnan(reward[:rows]))
        nowhere = np.zeros(len(values), dtype=bool)
        marked = {mark: nowhere for mark in ("terminated", "truncated", "done")}
        for column, mark in columns.marks:
            marked[mark] = marked.get(mark, nowhere) | (values[:, column] == 1)
        new = {
            "obs": values[:, columns.obs],
            "action": values[:, columns.action],
            "reward": reward,
            "next_obs": led_to,
            "start": starts,
            "terminated": marked["terminated"] | (marked["done"] & ~marked["truncated"]),
            "truncated": marked["truncated"],
            "step": steps,
        }
        self.count += int(valid.sum())
        for name, numbers in new.items():
            parts = [self.kept[name]] if name in self.kept else []
            joined = np.concatenate([*parts, numbers[:rows][valid]])
            self.kept[name] = joined[-self.max_rows :].astype(np.float64)

    def _require(
        self, block: Block, columns: slice, rows: Bools, choices: int | None = None
    ) -> None:
        """Refuse what is no number a policy can take in the first rows where ``rows`` says so."""
        values = block.values[: len(rows), columns]
        good = np.abs(values) <= LARGEST
        if choices is not None:
            good &= np.isin(values, np.arange(choices))
        bad = np.argwhere(~good & rows[:, None])
        if not bad.size:
            return
        row, column = bad[0].tolist()
        expected, received, value = "a finite number", None, values[row, column]
        if choices is not None and np.isfinite(value):
            expected, received = f"a whole number from 0 to {choices - 1}", f"{value:g}"
        raise refusal(self.table, block, row, columns.start + column, expected, received)
