"""Two models on the same tasks: the paired test on its own."""

from dataclasses import replace

import numpy as np
import pytest

from ssm_metarl.checkpoint import load_checkpoint
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.recursive_self_improvement import comparison
from ssm_metarl.recursive_self_improvement.comparison import compare_models, e_value
from ssm_metarl.tasks.registry import family_of_env

FAMILY = family_of_env("cartpole")
CONFIG = EvaluationConfig(num_tasks=40, episodes_per_task=1, support_steps=10)


@pytest.fixture(scope="module")
def model(generation_zero):
    checkpoint = load_checkpoint(generation_zero)
    return checkpoint.policy(), MetaTrained.from_training(checkpoint.training)


def test_a_model_against_itself(model):
    result = compare_models((model, model), ("a", "b"), FAMILY, CONFIG)
    assert result["difference"] == {"mean": 0.0, "ci95": [0.0, 0.0], "spread": 0.0}
    assert result["e_value"] == result["e_value_reversed"] == 1
    assert result["means"][0] == result["means"][1] > 5 and result["models"] == ["a", "b"]


def test_the_order_of_two_models_turns_everything_round(model, monkeypatch):
    returns = {"good": np.linspace(200, 400, 40), "bad": np.linspace(150, 300, 40)}
    monkeypatch.setattr(
        comparison, "adapted_returns", lambda policy, trained, family, config: returns[policy]
    )
    good, bad = ("good", model[1]), ("bad", model[1])
    here = compare_models((good, bad), ("good", "bad"), FAMILY, CONFIG)
    there = compare_models((bad, good), ("bad", "good"), FAMILY, CONFIG)
    assert here["difference"]["mean"] == pytest.approx(75) == -there["difference"]["mean"]
    assert here["e_value"] == there["e_value_reversed"] > 20 > 1 > here["e_value_reversed"]
    low, high = here["difference"]["ci95"]
    assert 0 < low < 75 < high


def test_a_family_without_bounds_is_refused(model):
    unbounded = replace(FAMILY, return_bounds=None)
    with pytest.raises(ValueError, match="declares its return_bounds, received 'cartpole'"):
        compare_models((model, model), ("a", "b"), unbounded, CONFIG)


def test_an_e_value_grows_with_a_difference_and_shrinks_with_its_reverse():
    d = np.random.default_rng(0).normal(0.1, 0.25, 300).clip(-1, 1)
    assert e_value(d) > 20 and e_value(-d) < 1
    assert e_value(np.zeros(50)) == 1
