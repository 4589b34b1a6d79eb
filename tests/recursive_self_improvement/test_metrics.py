"""Measurements: paired, apart from each other, and nothing that crashes is lost."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ssm_metarl.checkpoint import load_checkpoint, pack
from ssm_metarl.evaluation import episodes
from ssm_metarl.recursive_self_improvement import metrics
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import PRIMARY
from ssm_metarl.recursive_self_improvement.metrics import (
    CURVE_METRICS,
    Measurement,
    area,
    bounds_of,
    differences,
)
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily, Uniform

FAMILY = family_of_env("cartpole")
BOUNDS = (0.0, 500.0)


@pytest.fixture(scope="module")
def weights(generation_zero):
    return pack(load_checkpoint(generation_zero))


def measurement(weights, **settings):
    defaults = {"family": FAMILY, "stream": "confirm", "seed": 0, "start": 0, "count": 10,
                "with_curve": True, "support_steps": 20, "curve_steps": (5, 10, 20)}  # fmt: skip
    return Measurement(weights=weights, **(defaults | settings))


def test_the_same_policy_twice_differs_by_exactly_nothing(weights):
    first, second = measurement(weights)(), measurement(weights)()
    assert first == second
    assert set(first.scores) == {PRIMARY, *CURVE_METRICS}
    for values in differences(first.scores, second.scores, BOUNDS, stability_cap=20.0).values():
        assert values == [0.0] * 10
    assert all(0 <= s <= 500 for values in first.scores.values() for s in values)
    assert len(set(first.scores[PRIMARY])) > 1, "tasks differ, or this proves nothing"
    assert first.env_steps > sum(first.scores[PRIMARY]) + 10 * (20 + 5 + 10 + 20)


def test_a_task_does_not_depend_on_those_beside_it(weights):
    whole = measurement(weights)().scores
    parts = [measurement(weights, start=s, count=5)().scores for s in (0, 5)]
    for name, values in whole.items():
        assert values == parts[0][name] + parts[1][name], name
    assert parts[0] != parts[1]


@pytest.mark.parametrize("change", [{"stream": "vault"}, {"seed": 1}, {"start": 10}])
def test_streams_seeds_and_indices_have_tasks_of_their_own(weights, change):
    here, there = measurement(weights)().scores, measurement(weights, **change)().scores
    assert here[PRIMARY] != there[PRIMARY]
    names = ["confirm", "screen", "vault", "canary", "attribute", "baseline"]
    drawn = [
        v
        for n in ["", *(f"rsi-{n}" for n in names)]
        for s in ("id", "ood", "train")
        for v in FAMILY.sample(s, 50, seed=0, stream=n).values["length"].tolist()
    ]
    assert len(set(drawn)) == len(drawn)


def test_without_a_curve_only_the_primary_is_measured_and_it_is_the_same(weights):
    alone, whole = measurement(weights, with_curve=False)(), measurement(weights)()
    assert set(alone.scores) == {PRIMARY} and alone.scores[PRIMARY] == whole.scores[PRIMARY]
    assert alone.env_steps < whole.env_steps


@pytest.mark.parametrize("error", [KeyError, AssertionError, RuntimeError, ZeroDivisionError])
def test_one_environment_that_raises_loses_its_own_pair_alone(weights, monkeypatch, error):
    whole = measurement(weights)().scores
    make = episodes.make_worlds

    def breaks(tasks, *args, **kwargs):
        if 3 in tasks.indices:
            raise error("broken")
        return make(tasks, *args, **kwargs)

    monkeypatch.setattr(episodes, "make_worlds", breaks)
    found = measurement(weights)().scores
    for name, values in found.items():
        assert math.isnan(values[3]), name
        assert values[:3] + values[4:] == whole[name][:3] + whole[name][4:], name
    d = differences(whole, found, BOUNDS)
    assert all(values[3] == -1 and np.abs(np.delete(values, 3)).max() == 0 for values in d.values())


def test_a_policy_of_nan_scores_nan(weights, generation_zero):
    checkpoint = load_checkpoint(generation_zero)
    name = next(n for n in checkpoint.tensors if n.endswith("heads.action.weight"))
    broken = replace(checkpoint, tensors=checkpoint.tensors | {
        name: checkpoint.tensors[name] * math.nan})  # fmt: skip
    scores = measurement(pack(broken), with_curve=False)().scores[PRIMARY]
    assert all(math.isnan(s) for s in scores)


def test_known_areas():
    curve = np.array([[0.0, 5.0], [10.0, 5.0], [10.0, 5.0]])
    assert area(curve, (5, 10, 20)).tolist() == [pytest.approx((25 + 100) / 15), 5.0]
    assert area(curve[1:2], (20,)).tolist() == [10.0, 5.0]


def test_known_differences():
    new, old = {PRIMARY: [300.0, 100.0, 20.0]}, {PRIMARY: [200.0, 150.0, 10.0]}
    found = differences(new, old, BOUNDS, stability_cap=120.0)
    assert found == {PRIMARY: pytest.approx([0.2, -0.1, 0.02]),
                     "stability": pytest.approx([0.0, -0.04, 0.02])}  # fmt: skip
    shifted = differences({PRIMARY: [-50.0]}, {PRIMARY: [-100.0]}, (-200.0, 0.0))
    assert shifted == {PRIMARY: [0.25]}
    assert "average_reward" not in differences(new | {"average_reward": [1.0]}, old, BOUNDS)


@pytest.mark.parametrize("both", [False, True])
def test_a_crash_of_either_side_is_the_worst(both):
    nan = math.nan
    new, old = [nan, 500.0], [nan if both else 0.0, nan]
    found = differences({PRIMARY: new}, {PRIMARY: old}, BOUNDS, stability_cap=10.0)
    assert found == {PRIMARY: [-1.0, -1.0], "stability": [-1.0, -1.0]}


@pytest.mark.parametrize("side", ["new", "old"])
@pytest.mark.parametrize("value", [-0.5, 500.5, math.inf])
def test_out_of_bounds_is_an_error(side, value):
    scores = {"new": {PRIMARY: [1.0]}, "old": {PRIMARY: [1.0]}} | {side: {PRIMARY: [value]}}
    with pytest.raises(ValueError, match="expected returns from 0 to 500"):
        differences(scores["new"], scores["old"], BOUNDS)


def test_bounds_must_be_declared():
    assert bounds_of(FAMILY, RSIConfig()) == BOUNDS
    assert bounds_of(FAMILY, RSIConfig(return_bounds=(0.0, 1.0))) == (0.0, 1.0)
    pendulum = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15)})
    with pytest.raises(ValueError, match="expected the least and the greatest return"):
        bounds_of(pendulum, RSIConfig())
    with pytest.raises(ValueError, match="return_bounds"):
        RSIConfig(return_bounds=(0.0, math.inf))
    assert metrics.CRASHED == -1
