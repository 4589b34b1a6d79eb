"""The one loop: methods x tasks x data -> returns, with reports and what they cost.

Place in the flow: stage 7. Evaluations, worth, drift, safety, calibration, learning curves, the
comparison and self-improvement's metrics are questions to a table that is made here:

    support data of each task  ->  method.prepare  ->  actor  ->  its episodes  ->  a row

All methods meet the same tasks, support data and initial states (`episodes`).

The trap: `score` runs what it is given. Whether a method applies, `registry.applying` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.config import EvaluationConfig, StandardAdaptationConfig
from ssm_metarl.evaluation.episodes import (
    PURPOSE,
    Episodes,
    collect_support,
    run_episodes,
    run_trial_episodes,
    shuffle_actions,
)
from ssm_metarl.methods.method import Data, Method, Model, env_steps
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Actor, Rollout


@dataclass(frozen=True)
class Score:
    """What one method came to on K tasks."""

    method: Method
    episodes: Episodes
    """Returns and lengths, shape (K, E) each."""
    reports: Sequence[AdaptationReport]
    """Of adapting, one a task; empty for a method that does nothing beforehand."""
    env_steps: np.ndarray
    """Environment steps spent on each task beforehand, shape (K,), int64."""

    @property
    def returns(self) -> np.ndarray:
        """Shape (K, E)."""
        return self.episodes.returns

    @property
    def per_task(self) -> np.ndarray:
        """A task's score, the mean of its episodes, shape (K,)."""
        mean: np.ndarray = self.returns.mean(axis=1)
        return mean


class Table(dict[str, Score]):
    """One score a method, by name, in the order in which they ran."""

    @property
    def scores(self) -> list[Score]:
        """Without their names."""
        return list(self.values())

    @property
    def returns(self) -> np.ndarray:
        """Shape (methods, K, E)."""
        return np.stack([score.returns for score in self.values()])


Play = Callable[[Method, Actor], Episodes]
"""Runs a method's actor in whatever its tasks meet."""


def score(
    methods: Iterable[Method],
    model: Model,
    tasks: Tasks,
    support: Rollout | None,
    *,
    num_episodes: int = 1,
    seed: int,
    purpose: str = PURPOSE,
    play: Play | None = None,
    on_method: Callable[[str], None] | None = None,
) -> Table:
    """Prepare each method for K tasks, and let it act in them.

    Args:
        methods: They apply to the model and the tasks' family.
        model: Stays untouched.
        tasks: K tasks.
        support: Steps of each, (T, K, N'), shared by all methods that use any; None for none.
        num_episodes: E, greedy full-length episodes a task.
        seed: Names the initial states and the methods' own draws.
        purpose: Names the initial states, too.
        play: Runs an actor; None for E episodes of each task, side by side, or in one trial.
        on_method: Called with the name of each method before it runs.
    """

    def usual(method: Method, actor: Actor) -> Episodes:
        run = run_trial_episodes if method.trial else run_episodes
        return run(tasks, actor, num_episodes, seed=seed, purpose=purpose)

    table = Table()
    for method in methods:
        if on_method is not None:
            on_method(method.name)
        data = Data(support, 1 if method.trial else num_episodes, seed)
        actor, reports = method.prepare(model, tasks, data)
        episodes = (play or usual)(method, actor)
        cost = env_steps(method, data, len(tasks))
        table[method.name] = Score(method, episodes, reports, cost)
    return table


def support_for(model: Model, tasks: Tasks, config: EvaluationConfig) -> Rollout:
    """The support data of an evaluation: by whom it is asked for, or as the model was trained."""
    support = collect_support(
        model.policy,
        tasks,
        config.support_steps,
        config.support_policy or model.trained.support_policy,
        seed=config.seed,
    )
    return shuffle_actions(support, seed=config.seed) if config.shuffle_actions else support


def support_if_used(
    methods: Iterable[Method], model: Model, tasks: Tasks, config: EvaluationConfig
) -> Rollout | None:
    """The same, where any of the methods adapts from it."""
    used = any(method.cost.support for method in methods)
    return support_for(model, tasks, config) if used else None


def step_for(model: Model, config: EvaluationConfig) -> StandardAdaptationConfig:
    """The gradient step of an evaluation: as it is asked for, or as the model was trained."""
    return model.trained.adaptation(
        objective=config.objective,
        num_adapt_steps=config.num_adapt_steps,
        adapt_lr=config.adapt_lr,
        rollback=config.rollback,
    )
