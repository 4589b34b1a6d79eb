"""One adaptation as tab 2 shows it: the episodes of the policy before and after, and its film.

Place in the flow: stage 10, under `adapting`, over `OpenedModel.adapt` and `evaluation.score`, as
``ssm-metarl adapt`` is. A model that remembers runs on: what it does after the n-th press is
episode n + 1 of a trial.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.app.handlers.drawing import drawing
from ssm_metarl.app.handlers.plants import Plant
from ssm_metarl.command_line import PROGRAM
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import PURPOSE, Episodes, collect_support
from ssm_metarl.evaluation.opened_model import OpenedModel
from ssm_metarl.evaluation.score import score
from ssm_metarl.methods.frozen import AdaptedTo
from ssm_metarl.methods.method import Method
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, EnvStep, Params, Rollout, Worlds

EPISODES = 4
"""Greedy episodes before and after, from the same initial states."""
REMEMBERING = ("in_context", "both")
"""Modes whose memory runs on through the episodes of a trial."""
SEED = 0


@dataclass(frozen=True)
class Amount:
    """How much to adapt."""

    support_steps: int
    """Data, in environment steps."""
    num_adapt_steps: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.support_steps + other.support_steps, self.num_adapt_steps + other.num_adapt_steps
        )


@dataclass(frozen=True)
class Side:
    """The episodes of one policy."""

    returns: list[float]
    failed: list[bool]
    """Whether its end was a failure."""
    states: list[NDArray[np.float32]] = field(compare=False)
    """Of each, what a sketch draws, before every step and at the end, shape (T + 1, S)."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What the presses so far have come to."""

    presses: int
    mode: str
    asked: Amount
    """By the last press alone."""
    total: Amount
    plant: Plant
    tasks: Tasks
    """The one task."""
    before: Side
    after: Side
    report: AdaptationReport | None
    """None where no gradient step was to be taken."""
    command: str
    """What does the same on the command line; empty where nothing does."""

    @property
    def task(self) -> dict[str, float]:
        """Its parameters."""
        return self.tasks.as_dicts()[0]

    @property
    def seconds(self) -> float | None:
        """Time that collecting the data takes on the plant; None where it has no time step."""
        step = self.tasks.family.time_step
        return None if step is None else (self.report.env_steps if self.report else 0) * step


def before_after(
    opened: OpenedModel, tasks: Tasks, mode: str, amount: Amount, presses: int
) -> dict[str, Any]:
    """Adapt a model to one task, and run it before and after: fields of an `Adaptation`."""
    params, report = [opened.policy.meta_params()], None
    step = "standard" if mode == "both" else mode
    gradient = next((m for m in opened.gradient_modes if m == step), None)
    if gradient is not None:
        support = collect_support(
            opened.policy, tasks, amount.support_steps, opened.trained.support_policy, seed=SEED
        )
        config = opened.trained.adaptation(num_adapt_steps=amount.num_adapt_steps)
        adapted = opened.adapt(support, gradient, config, seed=SEED)
        params, report = [*params, adapted.meta_params()], adapted.report
    remembers = mode in REMEMBERING
    if remembers:
        params = [params[0], params[-1]]
    sides = _sides(opened, params, tasks, presses if remembers else 0)
    return {
        "before": sides[0],
        "after": sides[-1],
        "report": report,
        "command": "" if mode != gradient else _command(opened, tasks, mode, amount),
    }


class _Watched(TaskBatch):
    """Worlds that keep their states (K, N, S) before and after every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.states: list[tuple[Tensor, Tensor]] = []

    def step(self, action: Tensor) -> EnvStep:
        """As `TaskBatch.step`."""
        before = self._state
        result = super().step(action)
        self.states.append((before, self._state))
        return result


def _sides(opened: OpenedModel, params: Sequence[Params], tasks: Tasks, number: int) -> list[Side]:
    """The episodes of each set of parameters, from the same initial states.

    Args:
        opened: The model.
        params: The first ones run the first episode of a trial.
        tasks: One task.
        number: Which episode of a trial the others run, their memory running through.
    """
    sides: list[Side] = []

    def play(method: Method, actor: Actor) -> Episodes:
        later = number if sides else 0
        make = make_worlds if tasks.family.dynamics is None else _Watched
        with closing(make(tasks, EPISODES, seed=SEED, purpose=PURPOSE)) as worlds:
            steps = (later + 1) * worlds.max_episode_steps
            rollout = collect_rollout(worlds, actor, steps, autoreset=later > 0)
        side = _side(rollout, worlds, later, tasks.family)
        sides.append(side)
        return Episodes(
            np.array([side.returns]), np.array([[len(states) - 1 for states in side.states]])
        )

    methods = [AdaptedTo(str(i), each) for i, each in enumerate(params)]
    score(methods, opened, tasks, None, num_episodes=EPISODES, seed=SEED, play=play)
    return sides


def _side(rollout: Rollout, worlds: Worlds, number: int, family: TaskFamily) -> Side:
    """Episode ``number`` of each environment of a rollout (T, 1, N), the first one being 0.

    Where a family has no batched physics, its sketch draws what is observed.
    """
    seen = list(zip(rollout.obs, rollout.next_obs, strict=True))
    pairs = worlds.states if isinstance(worlds, _Watched) else seen
    inside = (rollout.reset.cumsum(0) - 1 == number) & rollout.mask
    side = Side([], [], [])
    for e in range(rollout.num_envs):
        taken = inside[:, 0, e].nonzero()[:, 0].tolist()
        side.returns.append(float(rollout.reward[taken, 0, e].sum()))
        side.failed.append(family.end_is_failure and bool(rollout.terminated[taken[-1], 0, e]))
        shown = [*(pairs[t][0][0, e] for t in taken), pairs[taken[-1]][1][0, e]]
        side.states.append(torch.stack(shown).numpy())
    return side


def _command(opened: OpenedModel, tasks: Tasks, mode: str, amount: Amount) -> str:
    words = [PROGRAM, "adapt", "--model", opened.name, "--task", json.dumps(tasks.as_dicts()[0])]
    words += ["--mode", mode, "--support-steps", str(amount.support_steps)]
    return shlex.join([*words, "--num-adapt-steps", str(amount.num_adapt_steps)])


def film(adaptation: Adaptation) -> dict[str, Any]:
    """What the browser's player takes; empty where there is nothing to draw."""
    family, sides = adaptation.tasks.family, (adaptation.before, adaptation.after)
    if family.sketch is None:
        return {}
    takes = [states.tolist() for side in sides for states in side.states]
    sketch, frames = drawing(family, adaptation.task, takes)
    before, after = (
        {"episodes": frames[i : i + EPISODES], "failed": side.failed}
        for i, side in zip((0, EPISODES), sides, strict=True)
    )
    return {"sketch": sketch, "before": before, "after": after}
