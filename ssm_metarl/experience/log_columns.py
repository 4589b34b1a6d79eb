"""Which columns of a log hold what.

Place in the flow: every format asks with its header; `log_transitions` reads what was found.

Names count without regard to case, surrounding spaces and a unit in brackets. What a policy
observes and does is looked for first, so that an observation may be called ``t`` or ``run``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.experience.log_cells import Kind, plain

EPISODE = re.compile(
    r"(episode|trial|run|traj|trajectory|rollout)(_(id|index|idx|no|num|number))?|ep"
)
TIME = re.compile(
    r"(?:time|t|ts|stamp|time_?stamp|date_?time|sec|secs|seconds|elapsed|elapsed_time)"
    r"(?:_(s|sec|ms|us|ns))?"
)
SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
"""Units of time; the two letters mu look alike."""

Mark = Literal["terminated", "truncated", "done", "last", "first"]
MARKS: dict[str, Mark] = {
    **dict.fromkeys(("terminated", "terminal", "is_terminal"), "terminated"),
    **dict.fromkeys(("truncated", "timeout"), "truncated"),
    "done": "done",
    "is_last": "last",
    "is_first": "first",
}
"""Columns that mark single rows: the last ones of episodes, or the first ones."""

UNIT = re.compile(r"\s*[\[(]\s*([^\[\]()]*?)\s*[\])]\s*$")
FOREIGN = re.compile(r"(deg|degrees?|°|\udcb0)|(mm|cm)")
"""Units that are refused; the last angle is a degree sign that is not in UTF-8."""


@dataclass(frozen=True)
class Column:
    """A column that is read: its place in the file, from 0, and its name as messages show it."""

    index: int
    name: str
    kind: Kind


@dataclass(frozen=True)
class Columns:
    """The columns that are read, and what stands in which of them."""

    read: tuple[Column, ...]
    """C columns: observations, actions, next observations if any, then the others."""
    obs: slice
    action: slice
    next_obs: slice | None
    reward: int | None
    time: int | None
    seconds: float | None
    """Unit of the time column as its name tells; None if it does not."""
    episodes: tuple[int, ...]
    """Columns of which another value starts an episode."""
    marks: tuple[tuple[int, Mark], ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What a policy needs of a log."""

    obs_names: tuple[str, ...]
    obs_dim: int
    action_space: ActionSpace

    @property
    def actions(self) -> list[str]:
        """Names of the action's columns."""
        if isinstance(self.action_space, Discrete) or self.action_space.dim == 1:
            return ["action"]
        return [f"action_{i}" for i in range(self.action_space.dim)]

    @property
    def numbered(self) -> list[str]:
        """Names that observations have where their own are not given."""
        return [f"obs_{i}" for i in range(self.obs_dim)]

    def __str__(self) -> str:
        return ", ".join([*(self.obs_names or self.numbered), *self.actions])

    def find(self, header: Sequence[str]) -> Columns | None:
        """The columns of a header; None where one is missing or there twice.

        Raises:
            ValueError: An observation has a unit other than rad or m.
        """
        acted = _places(header, self.actions)
        for names in (self.obs_names, self.numbered):
            observed = _places(header, names) if names else None
            if observed is None or acted is None or set(observed) & set(acted):
                continue
            led_to = _places(header, [f"next_{name}" for name in names]) or []
            for place in (*observed, *led_to):
                unit = UNIT.search(header[place])
                if unit and header[place].strip() not in names:
                    check_unit(header[place].strip(), unit[1])
            return self._columns(header, observed, acted, led_to)
        return None

    def _columns(
        self, header: Sequence[str], observed: list[int], acted: list[int], led_to: list[int]
    ) -> Columns:
        binary = isinstance(self.action_space, Discrete) and self.action_space.n == 2
        read: list[tuple[int, Kind]] = [(i, "number") for i in observed]
        read += [(i, "flag" if binary else "number") for i in acted]
        read += [(i, "number") for i in led_to]
        seen, done = len(observed), len(observed) + len(acted)
        reward = time = seconds = None
        episodes: list[int] = []
        marks: list[tuple[int, Mark]] = []
        others = [i for i in range(len(header)) if i not in {i for i, _ in read}]
        for index in others:
            role, place = re.sub(r"[\s-]+", "_", _bare(header[index])), len(read)
            if role == "reward" and reward is None:
                read.append((index, "number"))
                reward = place
            elif (found := TIME.fullmatch(role)) and time is None:
                read.append((index, "moment"))
                unit = UNIT.search(header[index])
                time, seconds = place, SECONDS.get(unit[1].casefold() if unit else found[1] or "")
            elif EPISODE.fullmatch(role):
                read.append((index, "key"))
                episodes.append(place)
            elif role in MARKS:
                read.append((index, "flag"))
                marks.append((place, MARKS[role]))
        known = {index for index, _ in read}
        ignored = (header[i].strip() for i in others if i not in known)
        return Columns(
            read=tuple(Column(i, plain(header[i].strip()), kind) for i, kind in read),
            obs=slice(0, seen),
            action=slice(seen, done),
            next_obs=slice(done, done + seen) if led_to else None,
            reward=reward,
            time=time,
            seconds=seconds,
            episodes=tuple(episodes),
            marks=tuple(marks),
            ignored=tuple(name for name in ignored if name),
        )


def check_unit(name: str, unit: str) -> None:
    """Refuse a unit that would have to be converted.

    Raises:
        ValueError: It is one of angles or lengths other than rad or m.
    """
    own = unit.strip().strip("[]()").strip()
    if found := FOREIGN.match(own.casefold()):
        rest = own[found.end() :]
        if not rest or not rest[0].isalpha():
            expected = ("rad" if found[1] else "m") + rest
            raise ValueError(f"{plain(name)}: expected {expected}, received {plain(own)}")


def _bare(name: str) -> str:
    """A name without its unit, case and spaces."""
    return UNIT.sub("", name).strip().casefold()


def _places(header: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Where the names stand; None unless each stands once."""
    exact, bare = [name.strip() for name in header], [_bare(name) for name in header]
    found = []
    for name in names:
        places = [i for i, n in enumerate(exact) if n == name]
        places = places or [i for i, n in enumerate(bare) if n == name.casefold()]
        if len(places) != 1 or places[0] in found:
            return None
        found += places
    return found
