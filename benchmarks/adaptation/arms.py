"""What a model scores on held-out tasks, after so much data of each.

Place in the flow: after `training`; `scoring` runs it and keeps the numbers. An arm is a way to
adapt, `after` says to how much data of the task:

    nothing       as the model comes
    20 steps      one short episode
    1 episode     and so on, up to `Protocol.episodes`

Every score is the return of one greedy full-length episode a task, so an arm's scores are (K,).
Gradient arms adapt from the meta-parameters to whole episodes that the support policy collected; an
arm that remembers plays its own episodes, one after the other, and is scored on the next one. So
both have had the same number of episodes; a policy that keeps the pole up has seen longer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.adaptation.fine_tuning import FineTuningConfig, fine_tune
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import EvaluationConfig, ReplayWeights
from ssm_metarl.core.policy import build_policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import PURPOSE, collect_support, run_arm, run_trials
from ssm_metarl.evaluation.opened_model import OpenedModel
from ssm_metarl.methods.least_squares import LeastSquaresActor
from ssm_metarl.methods.random import uniform_actor
from ssm_metarl.methods.told import ExpertActor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.settings import require
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.types import Actor, Params, Rollout

NOTHING, SHORT = "nothing", "20 steps"
SHORT_STEPS = 20
GOAL = 475.0
"""Return that counts as reached."""
TO_GOAL = "env steps to 475"
"""In place of an amount of data: the scores are the environment steps of data after which a task's
return was `GOAL` for the first time, inf where it never was. Gradient arms are looked at after each
of `BUDGETS`, fine-tuning after every episode."""
BUDGETS = (NOTHING, SHORT, "1 episode", "3 episodes", "10 episodes")
"""Amounts of data at which all arms are compared; `standard` and those that remember are scored
after every episode."""

FINE_TUNING = {
    "fine_tuned": {"cartpole": 3e-4, "cartpole_scrambled": 3e-3},
    "scratch": {"cartpole": 3e-3, "cartpole_scrambled": 3e-3},
}
"""Learning rate of fine-tuning by policy gradient: the best after ten episodes of 24 to 100 tasks
of another seed, with both neighbours on a grid of half decades worse. (Of the training range; for
`fine_tuned` on `cartpole`, out of it: in range nothing is left to improve, and no rate does.) An
update after each episode was better than fewer ones, 5 gradient steps than 20."""
BY_PREDICTION = FineTuningConfig(
    lr=0.1, optimizer="sgd", objective="prediction", behaviour="random", update_epochs=5
)
"""None of the rates that were tried helps: 0.1 and 1 by gradient descent, 1e-4 and 1e-3 by Adam."""

Scores = dict[tuple[str, str], np.ndarray]
"""Returns (K,) by arm and `after`."""


@dataclass(frozen=True)
class Protocol:
    """On which tasks, and after how much data of each, everything is scored."""

    num_tasks: int = 200
    """Held-out tasks of a split."""
    seed: int = 30_000
    """Names the tasks and episodes; final figures have one from 10,000 on."""
    episodes: int = 10
    """The most episodes of a task that are adapted to."""
    fine_tuned_tasks: int = 50
    """The first tasks, which fine-tuning is tried on: it costs a hundred times as much."""
    long_tasks: int = 10
    """The first tasks, which it goes on with until they reach the goal."""
    long_episodes: int = 200
    """Episodes after which it gives up."""

    def __post_init__(self) -> None:
        for name in (
            "num_tasks", "episodes", "fine_tuned_tasks", "long_tasks", "long_episodes"
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))

    def tasks(self, family: TaskFamily, split: Split) -> Tasks:
        """The held-out tasks, the same for every model."""
        return family.sample(split, self.num_tasks, seed=self.seed)

    def test(self, tasks: Tasks, actor: Actor) -> np.ndarray:
        """Return of one episode a task, (K,)."""
        return run_arm(tasks, actor, self._episodes(1))[:, 0]

    def trial(self, tasks: Tasks, actor: Actor, *, first_steps: int | None = None) -> np.ndarray:
        """Returns of one trial a task: of one episode more than are adapted to, (K, episodes + 1).

        Args:
            tasks: K tasks.
            actor: Remembers from episode to episode.
            first_steps: Cut the first episode there, and run only one more.
        """
        count = self.episodes + 1 if first_steps is None else 2
        return run_trials(tasks, actor, self._episodes(count), first_steps=first_steps)

    def _episodes(self, count: int) -> EvaluationConfig:
        return EvaluationConfig(seed=self.seed, episodes_per_task=count)


def episodes_label(count: int) -> str:
    """How many episodes, in words."""
    return NOTHING if count == 0 else f"{count} episode{'s' if count > 1 else ''}"


def gradient_scores(
    opened: OpenedModel, tasks: Tasks, protocol: Protocol, *, ablation: bool = True
) -> Scores:
    """Arms of a model meta-trained for a gradient step, without memory between episodes.

    Args:
        opened: The model.
        tasks: K tasks.
        protocol: How it is scored.
        ablation: Score uniform replay, too.
    """
    policy, trained = opened.policy, opened.trained
    standard = trained.adaptation()
    hybrid = trained.hybrid(standard, seed=protocol.seed)

    def adapted(arm: str, support: Rollout) -> Params:
        if arm == "standard":
            return StandardAdapter(standard).adapt_tasks(policy, support)[0]
        assert opened.buffer is not None
        replay: ReplayWeights = "uniform" if arm == "hybrid_uniform" else "propensity"
        adapter = HybridAdapter(replace(hybrid, replay=replay))
        return adapter.adapt_tasks(policy, support, opened.buffer)[0]

    actor = _actor(opened, policy.meta_params(), tasks)
    scores = {("frozen", NOTHING): protocol.test(tasks, actor)}
    for after, support in supports(opened, tasks, protocol):
        cost = support.steps_taken().double().numpy()
        replaying = opened.buffer is not None and after in BUDGETS
        hybrids = ("hybrid", "hybrid_uniform") if ablation else ("hybrid",)
        for arm in ("standard", *hybrids) if replaying else ("standard",):
            actor = _actor(opened, adapted(arm, support), tasks)
            scores[arm, after] = protocol.test(tasks, actor)
            if after in BUDGETS:  # as often for each arm: who is looked at more often gets there
                reached = np.where(scores[arm, after] >= GOAL, cost, np.inf)
                scores[arm, TO_GOAL] = np.minimum(scores.get((arm, TO_GOAL), np.inf), reached)
    return scores


def in_context_scores(opened: OpenedModel, tasks: Tasks, protocol: Protocol) -> Scores:
    """The arm of a model that remembers."""
    return trial_scores("in_context", lambda: _trial_actor(opened, tasks), tasks, protocol)


def both_scores(opened: OpenedModel, tasks: Tasks, protocol: Protocol) -> Scores:
    """A gradient step on the short episode, then a trial; and the same trial without the step."""
    policy, trained = opened.policy, opened.trained
    support = _short(opened, tasks, protocol)
    params, _ = StandardAdapter(trained.adaptation()).adapt_tasks(policy, support)
    counts = range(protocol.episodes + 1)
    scores: Scores = {}
    for arm, start in (("both", params), ("without_step", policy.meta_params())):
        returns = protocol.trial(tasks, policy.actor(start, len(tasks), 1))
        scores |= {(arm, episodes_label(n)): returns[:, n] for n in counts}
    scores["both", SHORT] = scores.pop(("both", NOTHING))  # it has had the step's data
    return scores


def multi_task_scores(opened: OpenedModel, tasks: Tasks, protocol: Protocol) -> Scores:
    """One policy for all tasks, fine-tuned to each; and the same from fresh weights."""
    policy, family = opened.policy, opened.family
    assert policy.config is not None
    seed = int(opened.checkpoint.training["seed"])
    fresh = build_policy(policy.config, seed=seed, inner_lr=0.01).meta_params()
    scores = frozen_scores(opened, tasks, protocol)
    tried, few = tasks[: protocol.fine_tuned_tasks], tasks[: protocol.long_tasks]
    one_by_one = (1,) * protocol.episodes
    for arm, start in (("fine_tuned", None), ("scratch", fresh)):
        lr = FINE_TUNING[arm][family.name]
        config = FineTuningConfig(rounds=one_by_one, lr=lr, update_epochs=5, seed=protocol.seed)
        curve = fine_tune(policy, tried, config, start=start)
        scores |= {(arm, episodes_label(int(n))): curve.after(int(n)) for n in curve.episodes}
        config = replace(config, rounds=(1,) * protocol.long_episodes, stop_return=GOAL)
        scores[arm, TO_GOAL] = fine_tune(policy, few, config, start=start).steps_to(GOAL)
    config = replace(BY_PREDICTION, rounds=one_by_one, seed=protocol.seed)
    curve = fine_tune(policy, tried, config)
    scores |= {
        ("fine_tuned_by_prediction", episodes_label(int(n))): curve.after(int(n))
        for n in curve.episodes[1:]
    }
    return scores


def frozen_scores(opened: OpenedModel, tasks: Tasks, protocol: Protocol) -> Scores:
    """A model that does not adapt."""
    actor = _actor(opened, opened.policy.meta_params(), tasks)
    return {("frozen", NOTHING): protocol.test(tasks, actor)}


def yardstick_scores(family: TaskFamily, tasks: Tasks, protocol: Protocol) -> Scores:
    """What needs no training: chance, and controllers that are told something or identify it."""
    actor = uniform_actor(tasks, 1, protocol.seed)
    scores = {("random", NOTHING): protocol.test(tasks, actor)}
    for name, expert in family.experts.items():
        actor = ExpertActor(expert(tasks), tasks, 1)
        scores[name, NOTHING] = protocol.test(tasks, actor)
    if family.experts:
        scores |= trial_scores(
            "least_squares", lambda: LeastSquaresActor(family, len(tasks), 1), tasks, protocol
        )
    for probe in family.probes:
        with closing(
            make_worlds(tasks, 1, seed=protocol.seed, purpose=f"{PURPOSE}-support")
        ) as worlds:
            noise = TaskNoise(protocol.seed, f"{PURPOSE}-support-action", tasks.indices)
            support = collect_rollout(
                worlds, random_actor(worlds, noise, SHORT_STEPS), SHORT_STEPS, autoreset=True
            )
        scores[probe.name, SHORT] = protocol.test(tasks, probe.controller(support, 1))
    return scores


def trial_scores(
    arm: str, make_actor: Callable[[], Actor], tasks: Tasks, protocol: Protocol
) -> Scores:
    """An arm that remembers: each episode of a trial, and the one after a short first one."""
    returns = protocol.trial(tasks, make_actor())
    scores = {(arm, episodes_label(n)): returns[:, n] for n in range(protocol.episodes + 1)}
    scores[arm, SHORT] = protocol.trial(tasks, make_actor(), first_steps=SHORT_STEPS)[:, 1]
    return scores


def supports(
    opened: OpenedModel, tasks: Tasks, protocol: Protocol
) -> Iterator[tuple[str, Rollout]]:
    """The data to adapt to: the short episode, then the first whole episode, the first two, ..."""
    yield SHORT, _short(opened, tasks, protocol)
    policy, seed = opened.policy, protocol.seed
    with closing(
        make_worlds(tasks, protocol.episodes, seed=seed, purpose=f"{PURPOSE}-episodes")
    ) as worlds:
        noise = TaskNoise(seed, f"{PURPOSE}-episodes-action", tasks.indices)
        steps = worlds.max_episode_steps
        actor = (
            random_actor(worlds, noise, steps)
            if opened.trained.support_policy == "random"
            else policy.actor(
                policy.meta_params(), len(tasks), protocol.episodes, noise=noise, num_steps=steps
            )
        )
        rollout = collect_rollout(worlds, actor, steps)
    for count in range(1, protocol.episodes + 1):
        longest = int(rollout.mask[:, :, :count].sum(dim=0).max())
        yield episodes_label(count), rollout.map(lambda x, n=longest, c=count: x[:n, :, :c])  # type: ignore[misc]


def _short(opened: OpenedModel, tasks: Tasks, protocol: Protocol) -> Rollout:
    return collect_support(
        opened.policy, tasks, SHORT_STEPS, opened.trained.support_policy, seed=protocol.seed
    )


def _actor(opened: OpenedModel, params: Params, tasks: Tasks) -> Actor:
    return opened.policy.actor(params, len(tasks), 1)


def _trial_actor(opened: OpenedModel, tasks: Tasks) -> Actor:
    return opened.policy.actor(opened.policy.meta_params(), len(tasks), 1)
