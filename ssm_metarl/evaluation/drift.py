"""The plant changes inside an episode, at a random moment, without a reset: who still holds it?

Place in the flow: stage 7, beside `meta_evaluator`; ``ssm-metarl evaluate --drift`` prints it.

Two changes: ``flip`` turns the actuator round at once; ``parameters`` moves all other parameters to
those of another task of the split, within 200 steps. All arms (see `DEFINITIONS`) meet the same
plants, the same changes and the same initial states. Which there are depends on the model: frozen,
standard and online where it sees observations only; in_context and in_context_restarted where it
remembers, and ``both`` where it was trained for a gradient step as well. A model that remembers has
no frozen arm: cleared at every episode's start, its memory does in the one episode that counts what
in_context does.

A task counts as up while its first episode lasts. Shares are of all tasks: one that fell before
its plant changed has not survived the change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from ssm_metarl import seeding
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import EvaluationConfig, OnlineAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.changing_task_batch import ChangingTaskBatch
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.evaluation.episodes import PURPOSE, MetaTrained, collect_support
from ssm_metarl.evaluation.statistics import share_interval
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor
from ssm_metarl.version import __version__

Drift = Literal["flip", "parameters"]

HORIZON = 1000
EARLIEST, LATEST = 100, 600  # the step at which a plant changes, uniform in between
DRIFT_STEPS = 200  # that parameters take to move
LOOK_AFTER = 300
CONTROL_PERIOD_MS = 20.0

DEFINITIONS = {
    "frozen": "the meta-parameters, never adapted",
    "standard": "adapted before the episode, to support data of the plant as it then was",
    "online": "begins unadapted; notices changes, takes gradient steps on the transitions since",
    "in_context": "no gradient; memory carried through the episode, whatever happens",
    "in_context_restarted": "no gradient; where what least squares has found in the trial stops "
    "predicting, the memory is cleared: a new trial, inside the episode",
    "both": "in_context_restarted, and a gradient step on the transitions since, the hidden state "
    "recomputed from zero at the first of them",
    "up_at_change": "share of tasks whose first episode lasts to the change",
    "up_after": f"share of tasks whose first episode lasts {LOOK_AFTER} steps beyond its beginning",
    "ci95": "95 % interval of up_after (Wilson's score)",
    "notice_steps": "steps from a change to its being noticed, median over tasks where it was",
    "false_alarms": "changes noticed before there was one, per 1,000 steps",
    "adaptations": "adaptations by gradient of a task in its whole episode, mean over those up to "
    "the end",
    "control_step_ms": "time of one action of one plant in the last arm, median and 99 % quantile, "
    "in steps that adapt by gradient and in those that do not",
}


@usual_modes()
def measure_drift(
    policy: Policy,
    family: TaskFamily,
    drift: Drift,
    config: EvaluationConfig,
    trained: MetaTrained,
    *,
    online: OnlineAdaptationConfig | None = None,
    on_step: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Let plants change inside an episode, and see who holds them.

    Args:
        policy: Under evaluation; stays untouched.
        family: Whose held-out tasks are drawn; it needs batched physics.
        drift: What changes.
        config: Split, tasks, seed, and how the standard arm adapts beforehand.
        trained: How the model was meta-trained.
        online: Settings of the arms that adapt inside the episode; None for what the model was
            trained for.
        on_step: Called with the share done and what comes next.

    Returns:
        A JSON-ready object: ``arms``, ``control_step_ms``, ``definitions``, and what was asked.

    Raises:
        ValueError: A family without batched physics, or to be flipped, without ``sign``.
    """
    if family.dynamics is None or (drift == "flip" and "sign" not in family.default_task):
        needed = "batched physics" + (" and a parameter 'sign'" if drift == "flip" else "")
        raise ValueError(f"drift: expected a family with {needed}, received {family.name!r}")
    tell = on_step or (lambda share, what: None)
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    later, at = changes(tasks, drift, config)
    actors = _actors(policy, tasks, config, trained, online or trained.online())
    last = list(actors.values())[-1]
    assert isinstance(last, OnlineAdapter)
    arms: dict[str, dict[str, Any]] = {}
    for name, actor in actors.items():
        tell(len(arms) / (len(actors) + 1), name)
        rollout = collect_rollout(_worlds(tasks, later, at, drift, config), actor, HORIZON)
        lives = rollout.mask[:, :, 0].sum(dim=0).numpy()  # (K,)
        arms[name] = _survival(lives, at.numpy())
        if isinstance(actor, OnlineAdapter):
            arms[name] |= _noticed(actor, lives, at.numpy())
    tell(len(arms) / (len(actors) + 1), "time of a control step")
    return {
        "family": family.name,
        "split": config.split,
        "num_tasks": len(tasks),
        "seed": config.seed,
        "version": __version__,
        "drift": drift,
        "horizon": HORIZON,
        "trained_on_changes": False,  # no training changes a task inside an episode
        "arms": arms,
        "control_step_ms": _control_step_ms(
            policy, tasks[:1], later[:1], drift, config, last.config
        ),
        "control_period_ms": CONTROL_PERIOD_MS,
        "definitions": DEFINITIONS,
    }


def changes(tasks: Tasks, drift: Drift, config: EvaluationConfig) -> tuple[Tasks, torch.Tensor]:
    """What each task becomes, and after how many steps, (K,)."""
    at = [
        int(seeding.generator(config.seed, f"{PURPOSE}-change", k).integers(EARLIEST, LATEST))
        for k in tasks.indices
    ]
    values = dict(tasks.values)
    if drift == "flip":
        values["sign"] = -values["sign"]
    else:
        others = tasks.family.sample(config.split, len(tasks), seed=config.seed, stream="change")
        values |= {name: v for name, v in others.values.items() if name != "sign"}
    return Tasks(tasks.family, values, tasks.indices), torch.tensor(at)


def _worlds(
    tasks: Tasks, later: Tasks, at: torch.Tensor, drift: Drift, config: EvaluationConfig
) -> ChangingTaskBatch:
    return ChangingTaskBatch(
        tasks,
        later,
        at,
        over=1 if drift == "flip" else DRIFT_STEPS,
        seed=config.seed,
        purpose=f"{PURPOSE}-drift",
        max_episode_steps=HORIZON,
    )


def _actors(
    policy: Policy,
    tasks: Tasks,
    config: EvaluationConfig,
    trained: MetaTrained,
    online: OnlineAdaptationConfig,
) -> dict[str, Actor]:
    """The arms that apply; what adapts most comes last."""
    num_tasks = len(tasks)
    as_it_is = policy.actor(policy.meta_params(), num_tasks, 1)
    if not policy.in_context:
        return {
            "frozen": as_it_is,
            "standard": _adapted_actor(policy, tasks, config, trained),
            "online": OnlineAdapter(policy, online, num_tasks=num_tasks),
        }
    restarting = replace(online, num_adapt_steps=0)
    actors: dict[str, Actor] = {
        "in_context": as_it_is,
        "in_context_restarted": OnlineAdapter(policy, restarting, num_tasks=num_tasks),
    }
    if trained.gradient:
        actors["both"] = OnlineAdapter(policy, online, num_tasks=num_tasks)
    return actors


def _adapted_actor(
    policy: Policy, tasks: Tasks, config: EvaluationConfig, trained: MetaTrained
) -> Actor:
    support = collect_support(
        policy,
        tasks,
        config.support_steps,
        config.support_policy or trained.support_policy,
        seed=config.seed,
    )
    settings = trained.adaptation(
        objective=config.objective,
        num_adapt_steps=config.num_adapt_steps,
        adapt_lr=config.adapt_lr,
        rollback=config.rollback,
    )
    params, _ = StandardAdapter(settings).adapt_tasks(policy, support)
    return policy.actor(params, len(tasks), 1)


def _survival(lives: np.ndarray, at: np.ndarray) -> dict[str, Any]:
    """How long the first episodes last (K,), against the moments of change (K,)."""
    up = lives >= at + LOOK_AFTER
    return {
        "up_at_change": float((lives >= at).mean()),
        "up_after": float(up.mean()),
        "ci95": list(share_interval(int(up.sum()), len(up))),
        "mean_return": float(lives.mean()),
    }


def _noticed(adapter: OnlineAdapter, lives: np.ndarray, at: np.ndarray) -> dict[str, Any]:
    """What the online arm noticed, while its episodes lasted."""
    first: dict[int, int] = {}
    false_alarms = 0
    to_the_end = torch.from_numpy(lives >= HORIZON)  # the adapter goes on looking at a fallen pole
    for event in adapter.events:
        if event.kind != "changed" or event.step > lives[event.task]:
            continue
        if event.step <= at[event.task]:
            false_alarms += 1
        else:
            first.setdefault(event.task, event.step - int(at[event.task]))
    return {
        "notice_steps": float(np.median(list(first.values()))) if first else None,
        "noticed": len(first) / len(at),
        "false_alarms": 1000 * false_alarms / float(np.minimum(lives, at).sum()),
        "adaptations": float(adapter.num_adaptations[to_the_end].double().mean())
        if to_the_end.any()
        else None,
    }


class _Timed:
    """An `OnlineAdapter` of one plant, and how long its steps take.

    Args:
        adapter: Which.
    """

    def __init__(self, adapter: OnlineAdapter) -> None:
        self.adapter = adapter
        self.milliseconds: dict[str, list[float]] = {"adapting": [], "quiet": []}

    def __call__(self, obs: torch.Tensor, reset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The adapter's action."""
        before, began = int(self.adapter.num_adaptations), time.perf_counter()
        action = self.adapter(obs, reset)
        milliseconds = 1000 * (time.perf_counter() - began)
        kind = "quiet" if int(self.adapter.num_adaptations) == before else "adapting"
        self.milliseconds[kind].append(milliseconds)
        return action

    def rewarded(self, reward: torch.Tensor) -> None:
        """Passed on."""
        self.adapter.rewarded(reward)


def _control_step_ms(
    policy: Policy,
    task: Tasks,
    later: Tasks,
    drift: Drift,
    config: EvaluationConfig,
    online: OnlineAdaptationConfig,
) -> dict[str, dict[str, float]]:
    """Time of one plant's actions, with a change after half of them."""
    timed = _Timed(OnlineAdapter(policy, online))
    worlds = _worlds(task, later, torch.tensor([LOOK_AFTER]), drift, config)
    collect_rollout(worlds, timed, 2 * LOOK_AFTER, autoreset=True)
    return {
        kind: {"median": float(np.median(ms)), "p99": float(np.quantile(ms, 0.99))}
        for kind, ms in timed.milliseconds.items()
        if ms
    }
