"""Proposals: a list of fields, moves of 20 %, bounds, and never nothing."""

import importlib.util
from dataclasses import replace

import pytest

from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.recursive_self_improvement import proposals as module
from ssm_metarl.recursive_self_improvement.proposals import (
    ARCHITECTURE,
    FIRST_TRIALS,
    HYPERPARAMETERS,
    MOVES,
    changes_of,
    moves_of,
    propose,
    require_optuna,
)

CONFIG = MetaTrainingConfig()
NONLINEAR = MetaTrainingConfig(core="state_space")


def made(config=CONFIG, history=(), *, seed=0, generation=1, count=6):
    return propose(config, history, seed=seed, generation=generation, count=count)


@pytest.mark.parametrize(
    ("proposal", "changes"),
    [
        ({"state_dim": 1.2}, {"state_dim": 38}),
        ({"hidden_dim": 0.8}, {"hidden_dim": 26}),
        ({"num_layers": -1.0}, {"num_layers": 1}),
        ({"update_epochs": 1.0, "state_dim": 1.0}, {"update_epochs": 3}),
        ({"outer_lr": 2.0}, {"outer_lr": 8e-3}),
        ({"outer_lr": 1.0, "num_layers": 0.0}, {}),
    ],
)
def test_known_changes(proposal, changes):
    assert changes_of(proposal, CONFIG) == changes


def test_small_numbers_move_by_one_and_bounds_hold():
    small = replace(CONFIG, state_dim=3, episodes_per_task=2, num_layers=1, outer_lr=2e-2)
    assert changes_of({"state_dim": 1.2, "episodes_per_task": 1.2}, small) == {
        "state_dim": 4,
        "episodes_per_task": 3,
    }
    assert changes_of({"episodes_per_task": 0.8, "num_layers": -1.0, "outer_lr": 2.0}, small) == {}
    for name, move in MOVES.items():
        for value in (move.low, move.high):
            value = int(value) if name in module.WHOLE else value
            at_bound = replace(CONFIG, **{name: value})
            for by in move.choices or (0.5, 2.0):
                new = changes_of({name: by}, at_bound).get(name, value)
                assert move.low <= new <= move.high and type(new) is type(value), name


def test_a_recipe_outside_the_bounds_is_not_forced_inside():
    outside = replace(CONFIG, inner_loss_coef=0.0, tasks_per_epoch=2, spread_starts=1)
    assert changes_of({"inner_loss_coef": 2.0, "tasks_per_epoch": 1.0}, outside) == {}
    assert changes_of({"tasks_per_epoch": 0.8, "outer_lr": 1.0}, outside) == {}
    assert changes_of({"spread_starts": 0.8}, outside) == {"spread_starts": 0.8}


def test_fields_that_are_not_on_the_list():
    for name, config in (("gamma", CONFIG), ("seed", CONFIG), ("num_layers", NONLINEAR)):
        with pytest.raises(ValueError, match=f"received {name}"):
            changes_of({name: 1.0}, config)
    assert "num_layers" not in moves_of(NONLINEAR) and moves_of(CONFIG) == MOVES


@pytest.mark.parametrize("config", [CONFIG, NONLINEAR], ids=["diagonal", "state_space"])
def test_a_generation_has_moves_of_each_kind_and_none_that_changes_nothing(config):
    for generation in range(1, 15):
        batch = made(config, generation=generation)
        assert len(batch) == 6 and all(changes_of(p, config) for p in batch)
        assert all(batch.count(p) == 1 for p in batch)
        for i, p in enumerate(batch):
            assert set(p) <= set(moves_of(config))
            if i % 3 < 2:
                ((name, by),) = p.items()
                assert name in (ARCHITECTURE, HYPERPARAMETERS)[i % 3]
                assert by in (MOVES[name].choices or (0.8, 1.2)) and by != MOVES[name].nothing
            else:
                assert set(p) == set(moves_of(config))
            for name, value in changes_of(p, config).items():
                assert MOVES[name].low <= value <= MOVES[name].high


def test_more_proposals_than_there_are_single_moves():
    smallest = replace(NONLINEAR, state_dim=2, hidden_dim=2)
    batch = made(smallest, count=18)  # two single moves of the architecture, six places for them
    assert len(batch) == 18 and all(changes_of(p, smallest) for p in batch)


def test_a_seed_and_a_generation_name_the_proposals():
    assert made() == made()
    assert made() != made(generation=2) and made() != made(seed=1)


def test_the_history_matters_to_what_tpe_proposes():
    history = [p for g in range(1, 9) for p in made(generation=g)]
    assert len(history) > FIRST_TRIALS

    def asked(scores):
        return made(history=list(zip(history, scores, strict=True)), generation=20)[2::3]

    rising = [float(i) for i in range(len(history))]
    assert asked(rising) == asked(rising)
    assert asked(rising) != asked(rising[::-1])
    singles = made(history=[(p, 0.0) for p in history], generation=20)[:2]
    assert singles == made(generation=20)[:2], "single moves are drawn, whatever the history"


def test_the_history_pulls_towards_what_went_well():
    history = []
    for g in range(1, 16):
        for p in made(generation=g)[2::3]:
            history.append((p, -abs(p["outer_lr"] - 0.6)))
    drawn = [made(history=history, generation=100 + g)[2]["outer_lr"] for g in range(8)]
    blind = [made(generation=100 + g)[2]["outer_lr"] for g in range(8)]
    distance = [sum(abs(x - 0.6) for x in xs) for xs in (drawn, blind)]
    assert distance[0] < 0.7 * distance[1]


def test_without_optuna_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda n: None if n == "optuna" else find(n))
    for call in (require_optuna, made):
        with pytest.raises(ValueError, match=r"expected Optuna, .*ssm-metarl\[search\]"):
            call()
