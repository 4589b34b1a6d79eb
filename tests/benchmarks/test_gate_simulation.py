"""The gate's certificate: `pytest -m gate` runs the counts that RSI is certified with."""

import pytest

from benchmarks import gate_simulation as simulation
from benchmarks.gate_simulation import bell, mostly_nothing, with_crashes

FEW = 60
OTHER_LIFETIMES, OTHER_MOST = 250, 9


@pytest.mark.gate
@pytest.mark.parametrize(
    ("draw", "lifetimes", "most"),
    [
        (bell(0.0), simulation.LIFETIMES, simulation.MOST_FALSE),
        (mostly_nothing(0.0), OTHER_LIFETIMES, OTHER_MOST),
        (with_crashes, OTHER_LIFETIMES, OTHER_MOST),
    ],
    ids=["bell", "mostly nothing", "crashes"],
)
def test_a_null_lifetime_is_falsely_upgraded_no_more_often_than_allowed(draw, lifetimes, most):
    assert simulation.false_upgrades(draw, lifetimes=lifetimes) <= most


@pytest.mark.gate
@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_gain_is_accepted(number):
    trials = simulation.POWER_TRIALS
    assert simulation.accepted(number, simulation.GAIN, trials=trials) >= 0.9 * trials


@pytest.mark.gate
def test_a_loss_is_never_accepted():
    assert simulation.accepted(1, -simulation.GAIN, trials=1000) == 0


@pytest.mark.gate
@pytest.mark.parametrize("name", simulation.SABOTAGED)
def test_a_sabotaged_gate_is_caught(name):
    lifetime = simulation.SABOTAGED[name]
    assert simulation.sabotaged_false_upgrades(lifetime) > simulation.MOST_FALSE


# The same in short, for every run of the tests.


def test_a_few_null_lifetimes():
    assert simulation.false_upgrades(bell(0.0), lifetimes=FEW) <= 6  # P(more) < 1 % at 3.6 %


def test_gains_and_losses_in_short():
    assert simulation.accepted(1, simulation.GAIN, trials=FEW) >= 0.9 * FEW
    assert simulation.accepted(1, -simulation.GAIN, trials=FEW) == 0
    assert simulation.accepted(1, 0.037, trials=FEW, draw=mostly_nothing) >= 0.8 * FEW


@pytest.mark.parametrize("name", simulation.SABOTAGED)
def test_sabotage_in_short(name):
    assert simulation.sabotaged_false_upgrades(simulation.SABOTAGED[name], lifetimes=FEW) > 6


@pytest.mark.parametrize("draw", [bell(0.03), bell(0.0, 0.1), mostly_nothing(0.03)])
def test_the_draws_have_the_mean_and_the_spread_that_they_say(draw):
    d = draw(simulation.seeding.generator(0, "draws"), 200_000)
    wanted = 0.1 if abs(d.std() - 0.1) < abs(d.std() - 0.25) else 0.25
    assert d.std() == pytest.approx(wanted, rel=0.02)
    assert min(abs(d.mean()), abs(d.mean() - 0.03)) < 0.002


def test_crashes_cost_what_the_other_pairs_bring():
    d = with_crashes(simulation.seeding.generator(0, "draws"), 400_000)
    assert abs(d.mean()) < 0.002
    assert d[d > -1].mean() > 0.01
