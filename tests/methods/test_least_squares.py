"""The self-tuning regulator: the gain of a known plant, and what it scores told nothing."""

import pytest
import torch

from ssm_metarl.config import EvaluationConfig
from ssm_metarl.evaluation.episodes import run_trials
from ssm_metarl.methods.least_squares import PUSH_COST, LeastSquaresActor, regulator_gain
from ssm_metarl.tasks.cartpole import CARTPOLE, linearised_cartpole
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.control import solve_riccati


def test_the_gain_of_an_identified_plant_is_that_of_the_plant():
    tasks = CARTPOLE.sample("id", 6, seed=0)
    a, b = linearised_cartpole(tasks)
    w = torch.zeros(6, 8, 4, dtype=torch.float64)  # as if up to three steps might be under way
    w[:, :4], w[:, 4] = (a - torch.eye(4)).mT, b[..., 0]
    p = solve_riccati(a, b, torch.eye(4, dtype=torch.float64), PUSH_COST)
    expected = -(b.mT @ p @ a / (PUSH_COST + b.mT @ p @ b))[:, 0]
    gain = regulator_gain(w)
    torch.testing.assert_close(gain[:, :4], expected)
    torch.testing.assert_close(gain[:, 4:], torch.zeros(6, 3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(regulator_gain(w[:, :5]), expected)  # no dead time: no line


def test_a_delayed_plant_is_regulated_ahead_of_time():
    # One state that doubles in three steps, pushed two steps late: stable in closed loop.
    w = torch.zeros(1, 5, 1, dtype=torch.float64)
    w[0, 0], w[0, 3] = 0.26, 0.1
    gain = regulator_gain(w)[0]
    z, line = 0.05, [0.0, 0.0, 0.0]
    for _ in range(100):
        u = float(gain[0] * z + sum(g * v for g, v in zip(gain[1:], line, strict=True)))
        z, line = z + 0.26 * z + 0.1 * line[1], [u, *line[:2]]
    assert abs(z) < 1e-3


@pytest.mark.parametrize("family", [CARTPOLE, CARTPOLE_SCRAMBLED], ids=lambda f: f.name)
def test_told_nothing_it_balances(family):
    tasks = family.sample("id", 20, seed=0)
    config = EvaluationConfig(num_tasks=20, episodes_per_task=2)
    returns = run_trials(tasks, LeastSquaresActor(family, 20, 1), config)
    assert returns[:, 0].mean() > 350
    assert returns[:, 1].mean() > 480
