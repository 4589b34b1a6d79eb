"""What adapting is worth, on returns whose answer is known."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from ssm_metarl.action_space import Discrete
from ssm_metarl.evaluation.episodes import Episodes
from ssm_metarl.evaluation.score import Score, Table
from ssm_metarl.evaluation.worth import measure_worth
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.frozen import Frozen, InContext
from ssm_metarl.methods.method import Method
from ssm_metarl.methods.registry import yardsticks
from ssm_metarl.methods.standard import Both, Hybrid, Standard
from ssm_metarl.tasks.cartpole import CARTPOLE

K = 60


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Frozen(), Standard(), Hybrid(), InContext(), Both(), *yardsticks(CARTPOLE),
        FixedPolicy(torch.zeros(8, 1), torch.ones(4), Discrete(2), 0.0, 0),
    )
}  # fmt: skip


def table(returns: dict[str, np.ndarray]) -> Table:
    return Table({
        arm: Score(METHODS[arm], Episodes(r, np.ones_like(r, int)), [], np.zeros(K, int))
        for arm, r in returns.items()
    })  # fmt: skip


def returns(**means: float) -> dict[str, np.ndarray]:
    """Returns of two episodes: each task adds its own difficulty to all arms."""
    rng = np.random.default_rng(0)
    task = rng.normal(0, 30, size=(K, 1))
    return {arm: m + task + rng.normal(0, 1, size=(K, 2)) for arm, m in means.items()}


def test_the_share_of_the_gap() -> None:
    means = {"frozen": 80, "sign_probe": 200, "standard": 400, "hybrid": 300}
    worth = measure_worth(table(returns(**means, fixed=100, lqr=500)), seed=0)
    assert worth["gap"]["mean"] == pytest.approx(400, abs=1)
    expected = {"frozen": -0.05, "sign_probe": 0.25, "standard": 0.75, "hybrid": 0.5}
    assert list(worth["arms"]) == list(expected)
    for arm, share in expected.items():
        found = worth["arms"][arm]
        assert found["share"]["mean"] == pytest.approx(share, abs=0.01)
        low, high = found["share"]["ci95"]
        # Paired: the tasks' own difficulty, thirty times the noise, cancels.
        assert share - 0.01 < low < high < share + 0.01
        assert found["over_fixed"]["mean"] == pytest.approx(400 * share, abs=2)
    assert worth["best"] == "standard" and worth["told"] == "lqr" and worth["worth_it"]
    assert worth["verdict"].startswith("worth it here: standard closes 75% (75% to 75%) of the 400")
    assert "frozen" not in worth["verdict"] and "sign_probe" not in worth["verdict"]
    json.dumps(worth, allow_nan=False)


@pytest.mark.parametrize(
    ("means", "worth_it", "words"),
    [
        ({"frozen": 90, "standard": 95, "fixed": 100, "lqr": 99}, False, "being told everything"),
        ({"frozen": 90, "standard": 95, "fixed": 100, "lqr": 500}, False, "gets less than"),
        ({"frozen": 90, "fixed": 100, "lqr": 500}, False, "no arm that adapts"),
        ({"frozen": 90, "in_context": 300, "fixed": 100}, True, r"in_context gains \+(199|20)"),
        (
            {"frozen": 90, "hybrid": 480, "sign_probe": 490, "fixed": 100, "lqr": 500},
            True,
            r"of the 400 points.*reading one bit off the same data \(sign_probe\) gains more$",
        ),
        (
            {"frozen": 300, "both": 480, "fixed": 100, "lqr": 500},
            True,
            r"without adapting \(frozen\) it gains \+(199|200|201)",
        ),
    ],
)
def test_the_verdict(means: dict[str, float], worth_it: bool, words: str) -> None:
    worth = measure_worth(table(returns(**means)), seed=0)
    assert worth["worth_it"] is worth_it
    assert worth["verdict"].startswith("worth it here: " if worth_it else "not worth it here: ")
    assert "\n" not in worth["verdict"]
    assert re.search(words, worth["verdict"]), worth["verdict"]
    json.dumps(worth, allow_nan=False)


def test_an_arm_that_equals_the_fixed_policy_is_not_worth_it() -> None:
    scores = returns(frozen=90, fixed=100, lqr=500)
    scores["standard"] = scores["fixed"] + np.where(np.arange(K)[:, None] % 2, 5.0, -5.0)
    worth = measure_worth(table(scores), seed=0)
    assert not worth["worth_it"] and "gets no more than" in worth["verdict"]


def test_without_a_gap_there_is_no_share() -> None:
    for told in ({}, {"lqr": 100.0}):
        worth = measure_worth(table(returns(frozen=90, standard=120, fixed=100, **told)), seed=0)
        assert worth["arms"]["standard"]["share"] is None
        assert (worth["gap"] is None) == (not told)
