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
    """The newest transitions of the rows that were added.

    Args:
        table: Where the rows come from.
        wanted: What is read from them.
        max_rows: Transitions that are kept.
    """

    def __init__(self, table: Table, wanted: Wanted, max_rows: int) -> None:
        self.table, self.wanted, self.max_rows = table, wanted, max_rows
        columns = table.columns
        self.time = columns.time
        sizes = [columns.obs.stop, len(wanted.actions), 1, columns.obs.stop, 1, 1, 1, 1]
        stops = np.cumsum(sizes).tolist()
        places = [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
        self.obs, self.action, self.reward, self.next_obs = places[:4]
        self.start, self.terminated, self.truncated, self.step = places[4:]
        self.kept: Floats = np.empty((0, stops[-1]))
        """Columns obs, action, reward (NaN: none), next_obs, whether it starts an episode, ends it
        by a mark, by a time limit, and time up to the next row (NaN: none), shape (n, ...)."""
        self.count = 0
        """Transitions that were found."""
        self.unlinked = 0
        """Rows that do not go on where the row before led to."""
        self.last_time = np.nan
        self.notes: tuple[str, ...] = ()
        self._held: Block | None = None  # the last row: what follows it is not known yet
        self._held_start = True
        self._forward = False  # whether time went forward anywhere
        self._backward: ValueError | None = None  # where it first did not
        self._turns = 0  # how often it went backward

    def add(self, block: Block) -> None:
        """Take the next rows.

        Raises:
            ValueError: A row contradicts another, or lacks what its place in an episode needs.
        """
        if not len(block):
            return
        if self._held is not None:
            block = block.after(self._held)
        elif self.time is not None and not np.isfinite(block.values[0, self.time]):
            text = shown(block.cell(0, self.time) or "nothing")
            name = self.table.columns.read[self.time].name
            self.notes += (f"column {name} is ignored: {text} is no time",)
            self.time = None
        starts = self._starts(block)
        steps = self._steps(block, starts)
        self._append(block, starts, steps, len(block) - 1)
        self._held, self._held_start = block.last(), bool(starts[-1])

    def end(self) -> None:
        """No rows follow.

        Raises:
            ValueError: Time went backward.
        """
        if self._backward is not None and self._turns > 1:
            raise ValueError(
                f"{self.table.path}: expected rows in the order of time, received rows in reversed "
                "order of time"
            )
        if self._backward is not None:
            raise self._backward
        if self._held is not None:
            self._append(self._held, np.array([self._held_start]), np.array([np.nan]), 1)

    def _starts(self, block: Block) -> Bools:
        """Which rows start a sequence, shape (n,)."""
        values, columns = block.values, self.table.columns
        starts = block.breaks.copy()
        starts[0] = self._held_start
        sources = self._sources(block)
        agreed = np.zeros(len(block) - 1, dtype=bool)
        for name, rows, whole in sources:
            agreed |= rows
            for other, others, _ in sources if whole else ():
                if (alone := np.flatnonzero(others & ~rows & ~starts[1:])).size:
                    raise ValueError(
                        f"{self.table.path}, {self.table.place} {block.lines[alone[0] + 1]}: "
                        f"expected {name} and {other} to agree where an episode starts, received a "
                        f"start by {other} alone"
                    )
        starts[1:] |= agreed
        if columns.next_obs is not None:
            led_to, found = values[:-1, columns.next_obs], values[1:, columns.obs]
            apart = ~np.isclose(led_to, found, rtol=1e-5, atol=1e-8).all(1) & ~starts[1:]
            apart &= np.isfinite(led_to).all(1)
            self.unlinked += int(apart.sum())
            starts[1:] |= apart
        return starts

    def _sources(self, block: Block) -> list[tuple[str, Bools, bool]]:
        """What tells where episodes start: its name, rows 1 to n - 1, whether it tells of all."""
        columns, values = self.table.columns, block.values
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
            raise refusal(
                self.table, block, odd[0], self.time, "seconds, or a date and time in ISO form"
            )
        steps[:-1] = np.where(starts[1:], np.nan, np.diff(times))
        turns = np.flatnonzero(steps <= 0)
        self._forward |= bool((steps > 0).any())
        self._turns += int((steps < 0).sum())
        if turns.size and self._backward is None:
            self._backward = refusal(
                self.table, block, turns[0] + 1, self.time, "a later time than in the row before"
            )
        if self._backward is not None and self._forward:
            raise self._backward
        self.last_time = float(times[-1])
        return steps

    def _append(self, block: Block, starts: Bools, steps: Floats, rows: int) -> None:
        """Keep the transitions of the first ``rows`` rows."""
        columns, values = self.table.columns, block.values
        valid = np.append(~starts[1:], False)
        if columns.next_obs is None:
            led_to = np.roll(values[:, columns.obs], -1, axis=0)
        else:
            led_to = values[:, columns.next_obs]
            missing = np.isnan(led_to).all(1) & ~valid
            self._require(block, columns.next_obs, ~missing[:rows])
            valid = ~missing
        valid = valid[:rows]
        self._require(block, columns.action, valid)
        if columns.reward is not None:
            place = slice(columns.reward, columns.reward + 1)
            self._require(block, place, valid & ~np.isnan(values[:rows, columns.reward]))
        new = np.full((rows, self.kept.shape[1]), np.nan)
        new[:, self.obs] = values[:rows, columns.obs]
        new[:, self.action] = values[:rows, columns.action]
        if columns.reward is not None:
            new[:, self.reward] = values[:rows, [columns.reward]]
        new[:, self.next_obs] = led_to[:rows]
        new[:, self.start] = starts[:rows, None]
        ends = self._ends(values[:rows])
        new[:, self.terminated], new[:, self.truncated] = ends[0][:, None], ends[1][:, None]
        new[:, self.step] = steps[:rows, None]
        new = new[valid]
        self.count += len(new)
        self.kept = np.concatenate([self.kept, new])[-self.max_rows :].copy()

    def _ends(self, values: Floats) -> tuple[Bools, Bools]:
        """Which rows' actions ended an episode for good, and which by a time limit."""
        marked = {"terminated": np.zeros(len(values), dtype=bool)}
        for column, mark in self.table.columns.marks:
            marked[mark] = marked.get(mark, False) | (values[:, column] == 1)
        truncated = marked.get("truncated", np.zeros_like(marked["terminated"]))
        return marked["terminated"] | (marked.get("done", truncated) & ~truncated), truncated

    def _require(self, block: Block, columns: slice, rows: Bools) -> None:
        """Refuse what is no number a policy can take in the first rows where ``rows`` says so."""
        values = block.values[: len(rows), columns]
        space = self.wanted.action_space
        choices = None
        if isinstance(space, Discrete) and columns == self.table.columns.action:
            choices = space.n
        good = np.abs(values) <= LARGEST
        if choices is not None:
            good &= np.isin(values, np.arange(choices))
        bad = np.argwhere(~good & rows[:, None])
        if not bad.size:
            return
        row, column = bad[0].tolist()
        number = values[row, column]
        if choices is not None and np.isfinite(number):
            raise refusal(
                self.table, block, row, columns.start + column,
                f"a whole number from 0 to {choices - 1}", f"{number:g}",
            )  # fmt: skip
        raise refusal(self.table, block, row, columns.start + column, "a finite number")
