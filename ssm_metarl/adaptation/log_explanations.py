"""What may have spoilt a plant's log, and how to undo it.

Place in the flow: stage 4, what `log_check` compares. An explanation turns a log into the one that
it should have been; rows at the edge of a sequence, which lack a neighbour, fall away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
        *(
            Explanation("delayed plant", partial(_delayed_plant, delay=delay),
                        mended=f"actions act {delay} step(s) late on this plant, which the policy "
                        f"does not know: each was moved to where it acts")
            for delay in range(1, LONGEST_DELAY + 1)
        ),
    ]  # fmt: skip
    if family.effect_dims:
        old = ", ".join(names[i] for i in family.effect_dims)
        mended = f"{old} are one row old, as differences of positions are: moved by a row"
        undo = partial(_old_columns, dims=list(family.effect_dims))
        found.append(Explanation("old velocities", undo, mended=mended))
    for rate in RATES:
        lasts = f"a row lasts about {rate:g} time steps of {family.name}{step}"
        found.append(
            Explanation(
                "another rate",
                _as_it_is,
                rate,
                mended=lasts if NEAR_RATES[0] <= rate <= NEAR_RATES[1] else "",
                remedy=f"{lasts}; log at that rate, or resample (hold actions, do not look ahead)",
            )
        )
    for some in (*itertools.combinations(dims, 1), *itertools.combinations(dims, 2)):
        if len(some) == len(dims):  # all mirrored is the mirrored plant
            continue
        which = ", ".join(names[i] for i in some)
        undo, remedy = partial(_scaled, dims=some, factor=-1.0), "is the other way round"
        found.append(Explanation(MIRRORED, undo, remedy=f"the sign of {which} {remedy}"))
        for unit, factor in UNITS.items():
            found.append(
                Explanation(
                    "another unit",
                    partial(_scaled, dims=some, factor=factor),
                    stretch=len(some) * math.log(factor),
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
    follows = ~log.reset[:, 0, 0]
    follows[:1] = False
    return follows


def _is_followed(log: Rollout) -> Tensor:
    """Whether the step after each one goes on from it, shape (T,)."""
    follows = _follows(log)
    return torch.cat([follows[1:], follows[:1]])


def _late_action(log: Rollout) -> tuple[Rollout, Tensor]:
    """Each action stood one row late: it belongs to the row before."""
    keep = _is_followed(log)
    return kept(replace(log, action=log.action.roll(-1, 0)), keep), keep


def _delayed_plant(log: Rollout, delay: int) -> tuple[Rollout, Tensor]:
    """The action that acts in a step is the one of ``delay`` steps before."""
    follows, keep = _follows(log), torch.ones(log.num_steps, dtype=torch.bool)
    for ago in range(delay):
        keep = keep & torch.cat([torch.zeros(ago, dtype=torch.bool), follows])[: len(follows)]
    return kept(replace(log, action=log.action.roll(delay, 0)), keep), keep


def _old_columns(log: Rollout, dims: list[int]) -> tuple[Rollout, Tensor]:
    """Some columns stood one row late: each value belongs to the row before."""
    obs, after, keep = log.obs.clone(), log.next_obs.clone(), _is_followed(log)
    obs[..., dims] = log.next_obs[..., dims]
    after[:-1, ..., dims] = log.next_obs[1:, ..., dims]
    return kept(replace(log, obs=obs, next_obs=after), keep), keep


def _reversed(log: Rollout) -> tuple[Rollout, Tensor]:
    """Time ran backwards."""
    return _as_it_is(replace(log, obs=log.next_obs, next_obs=log.obs))


def _scaled(log: Rollout, dims: Sequence[int], factor: float) -> tuple[Rollout, Tensor]:
    """Some columns were in another unit, or had another sign."""
    scale = torch.ones(log.obs.shape[-1], dtype=log.obs.dtype)
    scale[list(dims)] = factor
    return _as_it_is(replace(log, obs=log.obs * scale, next_obs=log.next_obs * scale))


def _as_it_is(log: Rollout) -> tuple[Rollout, Tensor]:
    return log, torch.ones(log.num_steps, dtype=torch.bool)
