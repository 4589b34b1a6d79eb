"""What every method owes, on every family that comes with the package: one suite for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

from ssm_metarl.config import (
    HybridAdaptationConfig,
    MetaTrainingConfig,
    OnlineAdaptationConfig,
    StandardAdaptationConfig,
)
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.evaluation.score import Score, score
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.fixed_policy import Effort, search_fixed_policy
from ssm_metarl.methods.frozen import Frozen, InContext
from ssm_metarl.methods.method import Data, Method, Model
from ssm_metarl.methods.online import BothOnline, Online, Restarted
from ssm_metarl.methods.random import Random
from ssm_metarl.methods.registry import applying, in_order, known_methods, yardsticks
from ssm_metarl.methods.standard import Both, Hybrid, Standard
from ssm_metarl.tasks.registry import FAMILIES
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Rollout

K, E, SUPPORT = 3, 2, 12
STEP = {"rollback": False}


@cache
def models(family_name: str) -> dict[str, Model]:
    """An untrained model that remembers nothing, and one that does, with steps that show."""
    family = FAMILIES[family_name]
    plain = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    trial = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    made = {
        "plain": architecture(plain, family), "remembering": architecture(trial, family)
    }  # fmt: skip
    found = {}
    for name, config in made.items():
        policy = build_policy(config, seed=3, inner_lr=0.3)
        with torch.no_grad():
            policy.heads.action.weight.mul_(100)
        tasks = family.sample("train", 4, seed=0)
        buffer = ExperienceBuffer(200)
        buffer.add(collect_support(policy, tasks, SUPPORT, "random", seed=0), tasks.indices)
        buffer.family = family.name
        found[name] = Model(policy, buffer=buffer)
    return found


@cache
def methods(family_name: str) -> tuple[Method, ...]:
    family = FAMILIES[family_name]
    effort = Effort(starts=1, generations=1, population=3, elites=2, tasks=2, judged_on=2)
    short = OnlineAdaptationConfig(window=6)
    return (
        Frozen(), InContext(), Standard(StandardAdaptationConfig(**STEP)),
        Hybrid(HybridAdaptationConfig(**STEP)), Both(StandardAdaptationConfig(**STEP)),
        Online(short), Restarted(short), BothOnline(short), Random(), *yardsticks(family),
        search_fixed_policy(family, seed=0, effort=effort),
    )  # fmt: skip


PLAIN = {"frozen", "standard", "hybrid", "online", "random", "fixed"}
REMEMBERING = {
    "frozen", "in_context", "standard", "hybrid", "both", "in_context_restarted", "random", "fixed",
}  # fmt: skip
OWN = {
    ("cartpole", "plain"): {"lqr", "sign_probe"},
    ("cartpole", "remembering"): {"lqr", "sign_probe", "least_squares"},
    ("cartpole_scrambled", "plain"): {"lqr"},
    ("cartpole_scrambled", "remembering"): {"lqr", "least_squares"},
    ("pendulum", "plain"): {"energy"},
    ("pendulum", "remembering"): {"energy"},
}
CASES = [
    pytest.param(family, kind, name, id=f"{family}-{kind}-{name}")
    for (family, kind), own in OWN.items()
    for name in sorted((PLAIN if kind == "plain" else REMEMBERING) | own)
]


def method_of(family: str, name: str) -> Method:
    return next(m for m in methods(family) if m.name == name)


@contextmanager
def counted_steps() -> Iterator[list[tuple[TaskBatch, int]]]:
    """Every step that any worlds take: which, and how many environments were running."""
    steps: list[tuple[TaskBatch, int]] = []
    step = TaskBatch.step

    def counting(worlds: TaskBatch, action: torch.Tensor) -> object:
        steps.append((worlds, int((~worlds._ended).sum())))
        return step(worlds, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskBatch, "step", counting)
        yield steps


def run(family: str, kind: str, name: str, tasks: Tasks, support: Rollout | None) -> Score:
    model, method = models(family)[kind], method_of(family, name)
    return score((method,), model, tasks, support, num_episodes=E, seed=5).scores[0]


def drawn(family: str, kind: str) -> tuple[Tasks, Rollout]:
    tasks = FAMILIES[family].sample("id", K, seed=7)
    policy = models(family)[kind].policy
    return tasks, collect_support(policy, tasks, SUPPORT, "random", seed=7)


@pytest.mark.parametrize(("family", "kind"), OWN)
def test_it_applies_or_says_why_not(family: str, kind: str) -> None:
    model = models(family)[kind]
    found, absent = applying(methods(family), model, FAMILIES[family])
    expected = (PLAIN if kind == "plain" else REMEMBERING) | OWN[family, kind]
    assert {m.name for m in found} == expected
    names = {m.name for m in methods(family)}
    assert absent.keys() >= names - expected
    assert all(reason and not reason.endswith(".") for reason in absent.values())
    adapted = copy.deepcopy(model.policy)
    adapted.adapted = True
    _, absent = applying(methods(family), Model(adapted, buffer=model.buffer), FAMILIES[family])
    assert "adapted already" in absent["standard"] and "adapted already" in absent["hybrid"]
    bare = Model(model.policy, buffer=None)
    assert "no experience" in (method_of(family, "hybrid").applies(bare, FAMILIES[family]) or "")


@pytest.mark.parametrize(("family", "kind", "name"), CASES)
def test_the_contract(family: str, kind: str, name: str) -> None:
    tasks, support = drawn(family, kind)
    model, method = models(family)[kind], method_of(family, name)
    policy: Policy = model.policy
    before = {n: v.clone() for n, v in policy.state_dict().items()}
    assert method.label and method.definition and method.color.startswith("#")
    with counted_steps() as steps:
        first = run(family, kind, name, tasks, support if method.cost.support else None)
    # The policy is left bitwise as it was.
    assert all(torch.equal(v, before[n]) for n, v in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    # It is deterministic, whatever the global generator holds.
    torch.manual_seed(1)
    again = run(family, kind, name, tasks, support if method.cost.support else None)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert first.returns.shape == first.episodes.steps.shape == (K, E)
    low, high = FAMILIES[family].return_bounds or (-np.inf, np.inf)
    assert (first.returns >= low).all() and (first.returns <= high).all()
    # The order of tasks changes nothing.
    order = [2, 0, 1]
    turned = run(
        family, kind, name, tasks[order], support.map(lambda x: x[:, order]) if
        method.cost.support else None,
    )  # fmt: skip
    # But for rounding, which a swing makes more of: rows of one product add up in another order.
    tolerance = 1e-3 if family == "pendulum" else 0
    np.testing.assert_allclose(turned.returns, first.returns[order], rtol=tolerance)
    # Costs are true: what it took beforehand, and nothing in secret.
    scored = int(first.episodes.steps.sum())
    in_worlds = sum(count for _, count in steps)
    if method.trial:  # whoever is through with its trial goes on until all are
        assert in_worlds >= scored and first.env_steps.max() == SUPPORT * method.cost.support
    else:
        assert in_worlds == scored
        assert first.env_steps.tolist() == [SUPPORT * method.cost.support] * K
    assert len(first.reports) in (0, K)


@pytest.mark.parametrize(("family", "kind", "name"), CASES)
def test_only_who_is_told_looks_at_the_tasks(family: str, kind: str, name: str) -> None:
    """Given other parameters, an arm that is not told them chooses the same first actions."""
    tasks, support = drawn(family, kind)
    model, method = models(family)[kind], method_of(family, name)
    others = FAMILIES[family].sample("id", K, seed=99)
    lied = Tasks(tasks.family, others.values, tasks.indices)
    obs = support.obs[:4, :, :1]
    chosen = []
    for each in (tasks, lied):
        actor = method.prepare(model, each, Data(support, 1, 0)).actor
        actions = []
        for t in range(4):
            reset = torch.full((K, 1), t == 0)
            actions.append(actor(obs[t], reset)[0])
            if hasattr(actor, "rewarded"):
                actor.rewarded(torch.zeros(K, 1))
        chosen.append(torch.stack(actions))
    if method.cost.told:
        assert not torch.equal(*chosen)
    else:
        assert torch.equal(*chosen)


def test_every_method_has_a_name_and_a_label_of_its_own() -> None:
    known = known_methods()
    labels = [str(m.label) for m in known.values()]
    assert len(set(labels)) == len(labels)
    shown = in_order(["mine", "sign_probe", "energy", "standard", "random", "lqr"])
    assert shown == ["random", "standard", "lqr", "energy", "sign_probe", "mine"]
    for family in FAMILIES.values():
        for method in yardsticks(family):
            assert str(known[method.name].label) == method.label


def test_in_a_family_of_ones_own_the_yardsticks_are_its_own() -> None:
    family = TaskFamily(name="mine", parameters=(), dynamics=FAMILIES["pendulum"].dynamics)
    assert [m.name for m in yardsticks(family)] == ["least_squares"]
