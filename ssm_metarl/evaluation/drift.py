"""The plant changes inside an episode, at a random moment, without a reset: who still controls it?

Place in the flow: stage 7, a question to `score`; ``ssm-metarl evaluate --drift`` prints it. A
change is one of the family's own `disturbances`, or ``parameters`` that move to another task's
values. All arms meet the same plants, changes and initial states. Where an episode that ends has
failed, and chance ends some, an arm holds a task while its first episode lasts; everywhere, what it
earned after the change is placed between chance and the expert, who is told of it as it comes.

A model that remembers has no frozen arm: cleared at every episode's start, its memory does in the
one episode that counts what in_context does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.env_runner.changing_task_batch import ChangingTaskBatch
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.evaluation.episodes import PURPOSE, Episodes
from ssm_metarl.evaluation.score import score, step_for, support_if_used
from ssm_metarl.evaluation.statistics import share_interval
from ssm_metarl.methods.frozen import Frozen, InContext
from ssm_metarl.methods.method import Data, Method, Model, Prepared
from ssm_metarl.methods.online import BothOnline, Online, Restarted
from ssm_metarl.methods.random import Random
from ssm_metarl.methods.registry import applying
from ssm_metarl.methods.standard import Standard
from ssm_metarl.methods.told import Told
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, Rollout
from ssm_metarl.version import __version__

PARAMETERS = "parameters"
"""The drift that every family has; the others are its disturbances."""

DEFINITIONS = {
    "up_at_change": "share of tasks whose first episode lasts to the change; null where no episode "
    "ends, or an end is no failure",
    "up_after": "share of tasks whose first episode lasts look_after steps beyond its beginning",
    "ci95": "95 % interval of up_after (Wilson's score)",
    "mean_return": "return of the whole episode",
    "reward_before": "mean reward of a step in the last look_after steps before the change, mean "
    "over tasks",
    "reward_after": "mean reward of a step in the first look_after steps of the change; 0 after an "
    "end",
    "of_told": "how far reward_after is on the way from random to the expert, which is told of the "
    "change as it comes; null without an expert that is better",
    "notice_steps": "steps from a change to its being noticed, median over tasks where it was",
    "false_alarms": "changes noticed before there was one, per 1,000 steps",
    "adaptations": "adaptations by gradient of a task in its whole episode, mean over those up to "
    "the end",
    "control_step_ms": "time of one action of one plant in the last arm that adapts inside the "
    "episode, median and 99 % quantile, in steps that adapt by gradient and in those that do not",
}
"""Beside these stand those of the methods."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a plant changes, in steps."""

    horizon: int
    """Length of the one episode."""
    earliest: int
    """First step at which a plant may change; uniform from here ..."""
    latest: int
    """... to here."""
    moving: int
    """Steps that parameters take to move."""
    look_after: int
    """Steps that are looked at from the change on."""

    @classmethod
    def of(cls, episode: int) -> Schedule:
        """For a family whose episodes have so many steps: one episode of twice as many."""
        return cls(
            horizon=2 * episode,
            earliest=episode // 5,
            latest=episode * 6 // 5,
            moving=max(1, episode * 2 // 5),
            look_after=max(1, episode * 3 // 5),
        )


@dataclass(frozen=True)
class Change:
    """What becomes of K tasks."""

    tasks: Tasks
    later: Tasks
    at: Tensor
    """Steps that each of them takes before it changes, shape (K,)."""
    over: int
    """Steps that the change takes."""
    schedule: Schedule
    seed: int

    def worlds(self) -> ChangingTaskBatch:
        """The plants, from their initial states."""
        return ChangingTaskBatch(
            self.tasks,
            self.later,
            self.at,
            over=self.over,
            seed=self.seed,
            purpose=f"{PURPOSE}-drift",
            max_episode_steps=self.schedule.horizon,
        )


@dataclass(frozen=True)
class ToldOfChange(Told):
    """The expert, told the task as it is at each moment: of a change that takes time, its end."""

    later: Tasks
    at: Tensor

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The experts of both plants; the second one acts from the change on."""
        first = super().prepare(model, tasks, data).actor
        second = super().prepare(model, self.later, data).actor
        step = 0

        def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal step
            (before, log_prob), (after, _) = first(obs, reset), second(obs, reset)
            changed = (self.at <= step).view(-1, *(1,) * (before.dim() - 1))
            step += 1
            return torch.where(changed, after, before), log_prob

        return Prepared(act, [])


@usual_modes()
def measure_drift(
    model: Model,
    family: TaskFamily,
    drift: str,
    config: EvaluationConfig,
    *,
    schedule: Schedule | None = None,
    on_step: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Let plants change inside an episode, and see who controls them.

    Args:
        model: Under evaluation; stays untouched.
        family: Whose held-out tasks are drawn; it needs batched physics.
        drift: What changes: a disturbance of the family, or ``parameters``.
        config: Split, tasks, seed, and how the standard arm adapts beforehand.
        schedule: When it changes; None for what suits the family's episodes.
        on_step: Called with the share done and what comes next.

    Returns:
        A JSON-ready object: ``arms``, ``control_step_ms``, ``definitions``, and what was asked.

    Raises:
        ValueError: A family without batched physics, or without that disturbance.
    """
    if family.dynamics is None:
        raise ValueError(f"drift: expected a family with batched physics, received {family.name!r}")
    kinds = (*family.disturbances, PARAMETERS)
    if drift not in kinds:
        raise ValueError(
            f"drift: expected one of {', '.join(kinds)} for {family.name!r}, received {drift!r}"
        )
    tell = on_step or (lambda share, what: None)
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    schedule = schedule or Schedule.of(family.dynamics.max_episode_steps)
    change = change_of(tasks, drift, config, schedule)
    methods = _methods(model, config, change)
    support = support_if_used(methods, model, tasks, config)
    rollouts: dict[str, Rollout] = {}
    actors: dict[str, Actor] = {}

    def play(method: Method, actor: Actor) -> Episodes:
        actors[method.name] = actor
        rollouts[method.name] = collect_rollout(change.worlds(), actor, schedule.horizon)
        return Episodes.of(rollouts[method.name])

    def on_method(name: str) -> None:
        tell(len(rollouts) / (len(methods) + 1), name)

    table = score(methods, model, tasks, support, seed=config.seed, play=play, on_method=on_method)
    can_end = family.end_is_failure and bool(rollouts[Random.name].terminated.any())
    rewards = {name: _rewards(rollout, change) for name, rollout in rollouts.items()}
    after = {name: later for name, (_, later) in rewards.items()}
    told = next((after[method.name] for method in methods if method.cost.told), None)
    arms: dict[str, dict[str, Any]] = {}
    for name, row in table.items():
        lives, actor = row.episodes.steps[:, 0], actors[name]
        arms[name] = {
            **_held(lives, change, can_end),
            "mean_return": float(row.returns.mean()),
            "reward_before": rewards[name][0],
            "reward_after": after[name],
            "of_told": _of_told(after[name], after[Random.name], told),
            **(_noticed(actor, lives, change) if isinstance(actor, OnlineAdapter) else {}),
        }
    tell(len(methods) / (len(methods) + 1), "time of a control step")
    return {
        "family": family.name,
        "split": config.split,
        "num_tasks": len(tasks),
        "seed": config.seed,
        "version": __version__,
        "drift": drift,
        "horizon": schedule.horizon,
        "look_after": schedule.look_after,
        "trained_on_changes": False,  # no training changes a task inside an episode
        "arms": arms,
        "control_step_ms": _control_step_ms(model, change, methods),
        "control_period_ms": None if family.time_step is None else 1000 * family.time_step,
        "definitions": DEFINITIONS | {method.name: method.definition for method in methods},
    }


def change_of(tasks: Tasks, drift: str, config: EvaluationConfig, schedule: Schedule) -> Change:
    """What each task becomes, and when."""
    draws = [seeding.generator(config.seed, f"{PURPOSE}-change", k) for k in tasks.indices]
    at = torch.tensor([int(rng.integers(schedule.earliest, schedule.latest)) for rng in draws])
    if drift != PARAMETERS:
        later, over = tasks.family.disturbances[drift](tasks), 1
    else:
        others = tasks.family.sample(config.split, len(tasks), seed=config.seed, stream="change")
        ranges = [p.name for p in tasks.family.parameters if not p.is_category]
        later, over = tasks.changed(**{n: others.values[n] for n in ranges}), schedule.moving
    return Change(tasks, later, at, over, schedule, config.seed)


def _methods(model: Model, config: EvaluationConfig, change: Change) -> tuple[Method, ...]:
    """The arms that apply; what adapts most comes last of the model's own."""
    family, online = change.tasks.family, model.trained.online()
    own: tuple[Method, ...] = (Frozen(), Standard(step_for(model, config)), Online(online))
    if model.policy.in_context:
        own = (InContext(), Restarted(online), BothOnline(online))
    experts = [ToldOfChange(name, change.later, change.at) for name in family.experts]
    methods, _ = applying((*own, Random(), *experts), model, family)
    return methods


def _held(lives: np.ndarray, change: Change, can_end: bool) -> dict[str, Any]:
    """How long the first episodes last (K,), against the moments of change."""
    if not can_end:
        return {"up_at_change": None, "up_after": None, "ci95": None}
    at = change.at.numpy()
    up = lives >= at + change.schedule.look_after
    return {
        "up_at_change": float((lives >= at).mean()),
        "up_after": float(up.mean()),
        "ci95": list(share_interval(int(up.sum()), len(up))),
    }


def _rewards(rollout: Rollout, change: Change) -> tuple[float, float]:
    """Mean reward of a step before the change, and after it began."""
    window = change.schedule.look_after
    reward = torch.where(rollout.mask, rollout.reward, 0.0)[:, :, 0].double()  # (T, K)
    step = torch.arange(len(reward))[:, None]
    before = (step < change.at) & (step >= change.at - window)
    after = (step >= change.at) & (step < change.at + window)
    lengths = change.at.clamp(max=window)  # a rollout may be shorter: everything has ended
    return (
        float(((reward * before).sum(dim=0) / lengths.clamp(min=1)).mean()),
        float(((reward * after).sum(dim=0) / window).mean()),
    )


def _of_told(reward: float, chance: float, told: float | None) -> float | None:
    return None if told is None or told <= chance else (reward - chance) / (told - chance)


def _noticed(adapter: OnlineAdapter, lives: np.ndarray, change: Change) -> dict[str, Any]:
    """What the online arm noticed, while its episodes lasted (K,)."""
    at, first, false_alarms = change.at.tolist(), dict[int, int](), 0
    for event in adapter.events:
        if event.kind != "changed" or event.step > lives[event.task]:
            continue
        if event.step <= at[event.task]:
            false_alarms += 1
        else:
            first.setdefault(event.task, event.step - at[event.task])
    # the adapter goes on looking after an end
    to_the_end = adapter.num_adaptations[torch.from_numpy(lives >= change.schedule.horizon)]
    return {
        "notice_steps": float(np.median(list(first.values()))) if first else None,
        "noticed": len(first) / len(at),
        "false_alarms": 1000 * false_alarms / float(np.minimum(lives, at).sum()),
        "adaptations": float(to_the_end.double().mean()) if len(to_the_end) else None,
    }


class _Timed:
    """An adapter of one plant, and how long its steps take, in milliseconds."""

    def __init__(self, adapter: OnlineAdapter) -> None:
        self.adapter, self.rewarded = adapter, adapter.rewarded
        self.milliseconds: dict[str, list[float]] = {"adapting": [], "quiet": []}

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        before, began = int(self.adapter.num_adaptations), time.perf_counter()
        action = self.adapter(obs, reset)
        milliseconds = 1000 * (time.perf_counter() - began)
        kind = "quiet" if int(self.adapter.num_adaptations) == before else "adapting"
        self.milliseconds[kind].append(milliseconds)
        return action


def _control_step_ms(
    model: Model, change: Change, methods: tuple[Method, ...]
) -> dict[str, dict[str, float]]:
    """Time of one plant's actions, with a change after half of them."""
    watching = [method for method in methods if isinstance(method, Online)]
    if not watching:
        return {}
    steps = change.schedule.look_after
    alone = replace(
        change, tasks=change.tasks[:1], later=change.later[:1], at=torch.tensor([steps])
    )
    adapter = watching[-1].prepare(model, alone.tasks, Data(None)).actor
    assert isinstance(adapter, OnlineAdapter)
    timed = _Timed(adapter)
    collect_rollout(alone.worlds(), timed, 2 * steps, autoreset=True)
    return {
        kind: {"median": float(np.median(ms)), "p99": float(np.quantile(ms, 0.99))}
        for kind, ms in timed.milliseconds.items()
        if ms
    }
