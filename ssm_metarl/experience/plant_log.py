"""A plant's own log, as support data: a CSV file in, a `Rollout` out.

Place in the flow: beside `experience_buffer`; ``ssm-metarl adapt --data`` reads its file here.

A row is one moment: what was observed, and the action that was then taken. What the action led to
is the next row, so an episode's last row has an observation only, its action empty. Columns, in
any order, others are ignored:

    the observations   the family's names (cartpole: x, x_dot, theta, theta_dot), or obs_0, ...
    action             0, 1, ... if discrete; action_0, action_1, ... if there are several numbers
    reward             optional: what the action of this row earned
    episode            optional: a row with another value than the row before starts an episode
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby

import numpy as np
import torch

from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.types import Rollout

Row = tuple[int, Mapping[str, str]]
"""Number of a line in the file, and its cells by column."""


def read_plant_log(
    path: str | os.PathLike[str],
    *,
    obs_dim: int,
    action_space: ActionSpace,
    obs_names: Sequence[str] = (),
) -> Rollout:
    """Read a plant's log.

    Args:
        path: A CSV file with a header.
        obs_dim: O, the observations' size.
        action_space: Of the policy that is to adapt.
        obs_names: Names of the observation columns; obs_0, obs_1, ... are understood, too.

    Returns:
        One task's episodes in a row, shape (T, 1, 1).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a cell is no number, an action is none, or no row tells
            what an action led to; the message names the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows: list[Row] = []
            for row in reader:
                if None in row:  # cells beyond the header: decimal commas, perhaps
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells, received "
                        f"{len(header) + len(row[None])}"
                    )
                rows.append((reader.line_num, {k: (v or "").strip() for k, v in row.items()}))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a CSV file, received no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file, received another one ({error})") from None
    numbered = [f"obs_{i}" for i in range(obs_dim)]
    observed = list(obs_names) if obs_names and set(obs_names) <= set(header) else numbered
    several = not isinstance(action_space, Discrete) and action_space.dim > 1
    acted = [f"action_{i}" for i in range(action_space.dim)] if several else ["action"]  # type: ignore[union-attr]
    if any(header.count(name) != 1 for name in (*observed, *acted)):
        wanted = list(obs_names) if obs_names else numbered
        raise ValueError(
            f"{path}: expected columns {', '.join([*wanted, *acted])}, received "
            f"{', '.join(header) or 'no header'}"
        )
    episodes = []
    for _, group in groupby(rows, key=lambda row: row[1].get("episode", "")):
        episode = _episode(path, list(group), observed, acted, action_space)
        if episode is not None:
            episodes.append(episode)
    if not episodes:
        raise ValueError(
            f"{path}: expected at least two rows of an episode, to tell what an action led to, "
            f"received {len(rows)} row(s)"
        )
    return Rollout(
        **{f.name: torch.cat([getattr(e, f.name) for e in episodes]) for f in fields(Rollout)}
    )


def _episode(
    path: str | os.PathLike[str],
    rows: Sequence[Row],
    observed: Sequence[str],
    acted: Sequence[str],
    action_space: ActionSpace,
) -> Rollout | None:
    """One episode; None where it is a single row, which tells nothing."""
    if len(rows) < 2:
        return None
    obs = [[_number(path, row, name) for name in observed] for row in rows]
    actions = [[_number(path, row, name) for name in acted] for row in rows[:-1]]
    rewards = None
    if "reward" in rows[0][1]:
        rewards = [_number(path, row, "reward") for row in rows[:-1]]
    if isinstance(action_space, Discrete):
        for (line, _), (action,) in zip(rows, actions, strict=False):
            if action not in range(action_space.n):
                raise ValueError(
                    f"{path}, line {line}: action: expected a whole number from 0 to "
                    f"{action_space.n - 1}, received {action:g}"
                )
        return Rollout.from_episode(obs, [int(action) for (action,) in actions], rewards)
    return Rollout.from_episode(obs, np.array(actions, dtype=np.float32), rewards)


def _number(path: str | os.PathLike[str], row: Row, name: str) -> float:
    line, cells = row
    text = cells.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{path}, line {line}: {name}: expected a finite number, received {text or 'nothing'!r}"
        )
    return value
