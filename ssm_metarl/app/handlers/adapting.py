"""Tab 2: set a plant, adapt a model to it, look at before and after.

Place in the flow: stage 10, over `OpenedModel.adapt` and `evaluation.episodes`, as ``ssm-metarl
adapt`` is. A press adds data and gradient steps to the presses before: the n-th adapts, from the
model's own weights, to n times the data in n times the steps, so it equals one press with larger
numbers. The data of the first presses are the beginning of those of the later ones. A model that
remembers may also run on: what it does after the n-th press is episode n + 1 of a trial.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.app.handlers.drawing import drawing
from ssm_metarl.app.handlers.models import WITHOUT, Models
from ssm_metarl.app.handlers.plants import FieldError, Plant, fields, number, rounded
from ssm_metarl.app.kernels import Kernels
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.command_line import PROGRAM
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import (
    PURPOSE,
    Episodes,
    collect_support,
)
from ssm_metarl.evaluation.opened_model import OpenedModel
from ssm_metarl.evaluation.score import score
from ssm_metarl.methods.frozen import AdaptedTo
from ssm_metarl.methods.method import Method
from ssm_metarl.tasks.task_family import (
    Split,
    TaskFamily,
    Tasks,
)
from ssm_metarl.types import Actor, EnvStep, Params, Rollout, Worlds

EPISODES = 4
"""Greedy episodes before and after, from the same initial states."""
SUPPORT_STEPS, MAX_SUPPORT = (5, 200), 1000
"""Data that one press may ask for, and all presses together, in environment steps."""
ADAPT_STEPS, MAX_STEPS = (1, 5), 20
"""Gradient steps, likewise."""
REMEMBERING = ("in_context", "both")
"""Modes whose memory runs on through the episodes of a trial."""
SEED = 0
STREAM = "app"
"""Tasks that the surprise buttons draw: a stream that nothing else uses."""


@dataclass(frozen=True)
class Side:
    """The episodes of one policy."""

    returns: list[float]
    failed: list[bool]
    """Whether its end was a failure."""
    states: list[NDArray[np.float32]] = field(compare=False)
    """Of each, what a sketch draws, before every step and at the end, shape (T + 1, S)."""


@dataclass(frozen=True)
class Adaptation:
    """What the presses so far have come to."""

    presses: int
    mode: str
    support_steps: int
    """Asked for by all presses together."""
    num_adapt_steps: int
    asked: tuple[int, int]
    """Data and steps of the last press alone."""
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


def adapt(
    visitor: Visitor,
    models: Models,
    kernels: Kernels,
    plant: Plant,
    *,
    mode: object,
    support_steps: object,
    num_adapt_steps: object,
) -> Adaptation:
    """Press *adapt*: the first time, or on from the last press on this plant in this mode.

    Raises:
        FieldError: A field holds what it may not; nothing has changed.
    """
    opened = models.of(visitor)
    if mode not in (WITHOUT, *opened.modes):
        raise FieldError("mode", f"expected {' or '.join((WITHOUT, *opened.modes))}")
    data = int(number("support_steps", support_steps, *SUPPORT_STEPS))
    steps = int(number("num_adapt_steps", num_adapt_steps, *ADAPT_STEPS))
    asked = data, steps
    tasks = plant.tasks(opened.family, models.expects_disturbed(visitor))
    with visitor.lock, kernels.operations():
        last, presses = visitor.adaptation, 1
        if last is not None and (last.plant, last.mode) == (plant, mode):
            presses, data, steps = (
                last.presses + 1,
                last.support_steps + data,
                last.num_adapt_steps + steps,
            )
        if data > MAX_SUPPORT:
            raise FieldError("support_steps", f"at most {MAX_SUPPORT} in all: start over")
        if steps > MAX_STEPS:
            raise FieldError("num_adapt_steps", f"at most {MAX_STEPS} in all: start over")
        visitor.plant = plant
        done = _adapted(opened, tasks, str(mode), data, steps, plant, presses)
        visitor.adaptation = replace(done, asked=asked)
        return visitor.adaptation


def problems(
    plant: Plant, family: TaskFamily, support_steps: object, num_adapt_steps: object
) -> dict[str, str]:
    """What is wrong with what was entered, by field; empty where nothing is."""
    found = plant.problems(family)
    for name, value, limits in (
        ("support_steps", support_steps, SUPPORT_STEPS),
        ("num_adapt_steps", num_adapt_steps, ADAPT_STEPS),
    ):
        try:
            number(name, value, *limits)
        except FieldError as error:
            found[name] = error.message
    return found


def keep(visitor: Visitor, plant: Plant, family: TaskFamily) -> None:
    """Remember a plant as it is being set, if it is one."""
    if not plant.problems(family):
        visitor.plant = plant


def start_over(visitor: Visitor) -> None:
    """Forget the presses so far."""
    with visitor.lock:
        visitor.adaptation = None


def surprise(visitor: Visitor, models: Models, split: Split) -> Plant:
    """The next plant of a split, from the visitor's own sequence of draws."""
    family, expects = models.of(visitor).family, models.expects_disturbed(visitor)
    with visitor.lock:
        draw, visitor.draws = visitor.draws, visitor.draws + 1
        tasks = family.sample(split, 1, seed=visitor.seed, start=draw, stream=STREAM)
        values, own = tasks.as_dicts()[0], {p.name for p in fields(family)}
        near = {n: rounded(family, n, v) for n, v in values.items() if n in own}
        set_by_disturbance = {n: v for n, v in values.items() if n not in own}
        disturbed = any(v != family.default_task[n] for n, v in set_by_disturbance.items())
        visitor.plant = Plant(near, bool(set_by_disturbance) and disturbed != expects)
        return visitor.plant


def _adapted(
    opened: OpenedModel,
    tasks: Tasks,
    mode: str,
    support_steps: int,
    num_adapt_steps: int,
    plant: Plant,
    presses: int,
) -> Adaptation:
    policy, report = opened.policy, None
    params: list[Params] = [policy.meta_params()]
    step = "standard" if mode == "both" else mode
    known = next((m for m in opened.gradient_modes if m == step), None)
    if known is not None:
        support = collect_support(
            policy, tasks, support_steps, opened.trained.support_policy, seed=SEED
        )
        config = opened.trained.adaptation(num_adapt_steps=num_adapt_steps)
        adapted = opened.adapt(support, known, config, seed=SEED)
        report = adapted.report
        params.append(adapted.meta_params())
    remembers = mode in REMEMBERING
    sides = _sides(
        opened, [params[0], params[-1]] if remembers else params, tasks, presses * remembers
    )
    return Adaptation(
        presses=presses,
        mode=mode,
        support_steps=support_steps,
        num_adapt_steps=num_adapt_steps,
        asked=(support_steps, num_adapt_steps),
        plant=plant,
        tasks=tasks,
        before=sides[0],
        after=sides[-1],
        report=report,
        command=_command(opened, tasks, mode, support_steps, num_adapt_steps),
    )


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
        sides.append(_side(rollout, worlds, later, tasks.family))
        steps_taken = [len(states) - 1 for states in sides[-1].states]
        return Episodes(np.array([sides[-1].returns]), np.array([steps_taken]))

    methods = [AdaptedTo(str(number), each) for number, each in enumerate(params)]
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


def _command(
    opened: OpenedModel, tasks: Tasks, mode: str, support_steps: int, num_adapt_steps: int
) -> str:
    if mode not in opened.gradient_modes:
        return ""
    words = [PROGRAM, "adapt", "--model", opened.name, "--task", json.dumps(tasks.as_dicts()[0])]
    words += ["--mode", mode, "--support-steps", str(support_steps)]
    words += ["--num-adapt-steps", str(num_adapt_steps)]
    return shlex.join(words)


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
