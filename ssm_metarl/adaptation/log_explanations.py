"""What may have spoilt a plant's log, and how to undo it.

Place in the flow: stage 4, what `log_check` compares. An explanation turns a log into the one that
it should have been; rows at the edge of a sequence, which lack a neighbour, fall away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.adaptation.plant_prior import PlantPrior
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

LONGEST_DELAY = 3
RATES = (0.05, 0.1, 0.25, 0.5, 2.0, 4.0, 5.0, 10.0)
NEAR_RATES = (0.5, 2.0)
"""Rates that are told of and go through: a policy still holds the plant at them."""
MIRRORED = "mirrored sensor"
UNITS = {"degrees": math.pi / 180, "hundredths": 0.01, "thousandths": 0.001}


class Explanation(NamedTuple):
    """A way in which a log may have come about."""

    name: str
    undo: Callable[[Rollout], tuple[Rollout, Tensor]]
    """The log as it should have been, and which of its rows that keeps, (T,)."""
    rate: float = 1.0
    """How much longer a row is than a time step of the family."""
    stretch: float = 0.0
    """Log of the factor by which undoing it scales a row's volume."""
    mended: str = ""
    """What to say where the undone log is used; empty where the log is refused."""
    remedy: str = ""
    """What to say where it is refused."""


def explanations_for(family: TaskFamily, prior: PlantPrior) -> list[Explanation]:
    """All that a log is compared with."""
    dims = np.flatnonzero(prior.moving).tolist()
    names = family.obs_names or tuple(f"obs_{i}" for i in range(len(prior.scale)))
    step = "" if family.time_step is None else f" ({family.time_step:g} s)"
    found = [
        Explanation("late action", _late_action, remedy="each action stands one row too late in "
                    "the log; write it beside the observation that it was chosen from"),
        Explanation("reversed time", _reversed, remedy="the rows stand in reversed order of time"),
    ]  # fmt: skip
    for delay in range(1, LONGEST_DELAY + 1):
        found.append(
            Explanation(
                "delayed plant",
                lambda log, delay=delay: _delayed_plant(log, delay),  # type: ignore[misc]
                mended=f"actions act {delay} step(s) late on this plant, which the policy does not "
                f"know: each was moved to where it acts",
            )
        )
    if family.effect_dims:
        old = ", ".join(names[i] for i in family.effect_dims)
        found.append(
            Explanation(
                "old velocities",
                lambda log: _old_columns(log, family.effect_dims),
                mended=f"{old} are one row old, as differences of positions are: moved by a row",
            )
        )
    for rate in RATES:
        near = NEAR_RATES[0] <= rate <= NEAR_RATES[1]
        found.append(
            Explanation(
                "another rate",
                lambda log: (log, _every_row(log)),
                rate,
                mended=f"a row lasts about {rate:g} time steps of {family.name}{step}" * near,
                remedy=f"a row lasts about {rate:g} time steps of {family.name}{step}; log at that "
                f"rate, or resample (hold actions, do not look ahead)",
            )
        )
    for size in (1, 2):
        for some in itertools.combinations(dims, size):
            if size == len(dims):  # all mirrored is the mirrored plant
                continue
            which = ", ".join(names[i] for i in some)
            found.append(
                Explanation(
                    MIRRORED,
                    lambda log, some=some: _scaled(log, some, -1.0),  # type: ignore[misc]
                    remedy=f"the sign of {which} is the other way round",
                )
            )
            for unit, factor in UNITS.items():
                found.append(
                    Explanation(
                        "another unit",
                        lambda log, some=some, factor=factor: _scaled(log, some, factor),  # type: ignore[misc]
                        stretch=size * math.log(factor),
                        remedy=f"{which} look like {unit} of the family's unit",
                    )
                )
    return found


def kept(log: Rollout, keep: Tensor) -> Rollout:
    """The chosen steps; after a gap a new sequence starts."""
    gap = torch.cat([torch.ones(1, dtype=torch.bool), ~keep[:-1]])
    log = replace(log, reset=log.reset | gap[:, None, None])
    return log.map(lambda v: v[keep])


def _follows(log: Rollout) -> Tensor:
    """Whether each step goes on from the one before it, shape (T,)."""
    follows = ~log.reset[:, 0, 0].clone()
    follows[:1] = False
    return follows


def _late_action(log: Rollout) -> tuple[Rollout, Tensor]:
    """Each action stood one row late: it belongs to the row before."""
    follows = _follows(log)
    moved = replace(log, action=torch.cat([log.action[1:], log.action[:1]]))
    keep = torch.cat([follows[1:], follows[:1] & False])
    return kept(moved, keep), keep


def _delayed_plant(log: Rollout, delay: int) -> tuple[Rollout, Tensor]:
    """The action that acts in a step is the one of ``delay`` steps before."""
    follows, keep = _follows(log), torch.ones(log.num_steps, dtype=torch.bool)
    for ago in range(delay):
        keep = keep & torch.cat([torch.zeros(ago, dtype=torch.bool), follows])[: len(follows)]
    moved = torch.cat([log.action[:delay], log.action[:-delay]])[: log.num_steps]
    return kept(replace(log, action=moved), keep), keep


def _old_columns(log: Rollout, dims: Sequence[int]) -> tuple[Rollout, Tensor]:
    """Some columns stood one row late: each value belongs to the row before."""
    follows = _follows(log)
    obs, after = log.obs.clone(), log.next_obs.clone()
    obs[..., list(dims)] = log.next_obs[..., list(dims)]
    after[:-1, ..., list(dims)] = log.next_obs[1:, ..., list(dims)]
    keep = torch.cat([follows[1:], follows[:1] & False])
    return kept(replace(log, obs=obs, next_obs=after), keep), keep


def _reversed(log: Rollout) -> tuple[Rollout, Tensor]:
    """Time ran backwards."""
    return replace(log, obs=log.next_obs, next_obs=log.obs), _every_row(log)


def _scaled(log: Rollout, dims: Sequence[int], factor: float) -> tuple[Rollout, Tensor]:
    scale = torch.ones(log.obs.shape[-1], dtype=log.obs.dtype)
    scale[list(dims)] = factor
    return replace(log, obs=log.obs * scale, next_obs=log.next_obs * scale), _every_row(log)


def _every_row(log: Rollout) -> Tensor:
    return torch.ones(log.num_steps, dtype=torch.bool)
