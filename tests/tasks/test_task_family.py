"""Drawing tasks: ranges, splits, independence of the batch; declaring and verifying families."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl.tasks.cartpole import CARTPOLE, CartPoleDynamics
from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter, Uniform

REAL = ("force", "length", "mass", "gravity")


@st.composite
def unions(draw):
    """A `Uniform` of one to three disjoint intervals, in increasing order."""
    count = draw(st.integers(1, 3))
    edges = np.cumsum(
        draw(st.lists(st.floats(0.1, 10), min_size=2 * count, max_size=2 * count))
    ).tolist()
    pairs = list(zip(edges[::2], edges[1::2], strict=True))
    return Uniform(*pairs[0], also=tuple(pairs[1:]))


@given(unions(), st.floats(0, 1, exclude_max=True))
def test_a_quantile_has_its_share_of_the_length_below_it(union, quantile):
    value = union.at(quantile)
    below = sum(min(max(value - low, 0), high - low) for low, high in union.intervals)
    total = sum(high - low for low, high in union.intervals)
    assert below == pytest.approx(quantile * total, abs=1e-9)
    assert any(low - 1e-9 <= value <= high + 1e-9 for low, high in union.intervals)


def test_unions_are_drawn_uniformly_by_length():
    tasks = CARTPOLE.sample("ood", 4000, seed=0)
    for parameter in CARTPOLE.parameters[:4]:
        (low, high), (low_2, high_2) = parameter.ood.intervals
        share = (tasks.values[parameter.name] < high).double().mean().item()
        expected = (high - low) / ((high - low) + (high_2 - low_2))
        assert share == pytest.approx(expected, abs=0.03)  # four standard errors
        upper = tasks.values[parameter.name][tasks.values[parameter.name] >= low_2]
        assert upper.mean().item() == pytest.approx((low_2 + high_2) / 2, abs=0.05 * high_2)


@pytest.mark.parametrize("split", ["train", "id", "ood"])
def test_the_sign_is_a_fair_coin_independent_of_the_rest(split):
    values = CARTPOLE.sample(split, 4000, seed=3).values
    assert set(values["sign"].tolist()) == {-1.0, 1.0}
    assert abs(values["sign"].mean().item()) < 0.065  # four standard errors
    for name in REAL:
        assert abs(np.corrcoef(values["sign"], values[name])[0, 1]) < 0.065


def test_splits_share_no_draw():
    draws = {s: CARTPOLE.sample(s, 1000, seed=0).values for s in ("train", "id", "ood")}
    for name in REAL:
        train, id_, ood = (set(draws[s][name].tolist()) for s in ("train", "id", "ood"))
        assert len(train | id_ | ood) == 3000


def test_id_draws_are_in_range_and_ood_draws_out_of_it_in_every_parameter_at_once():
    ranges = {p.name: p.id for p in CARTPOLE.parameters if isinstance(p.id, Uniform)}
    assert set(ranges) == set(REAL)
    for split, expected in (("train", True), ("id", True), ("ood", False)):
        values = CARTPOLE.sample(split, 1000, seed=1).values
        for name, range_ in ranges.items():
            inside = (values[name] >= range_.low) & (values[name] < range_.high)
            assert (inside == expected).all(), (split, name)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_a_draw_does_not_depend_on_the_batch(start, num_tasks, seed):
    batch = CARTPOLE.sample("ood", num_tasks, seed=seed, start=start)
    for i in range(num_tasks):
        alone = CARTPOLE.sample("ood", 1, seed=seed, start=start + i)
        assert alone.as_dicts() == [batch.as_dicts()[i]]
        assert alone.indices == batch.indices[i : i + 1]


def test_item_5_of_10_is_the_draw_at_5():
    ten = CARTPOLE.sample("id", 10, seed=7)
    assert CARTPOLE.sample("id", 1, seed=7, start=5).as_dicts()[0] == ten.as_dicts()[5]
    assert ten.as_dicts()[4] != ten.as_dicts()[5]
    assert CARTPOLE.sample("id", 10, seed=8).as_dicts()[5] != ten.as_dicts()[5]


def test_chosen_tasks_keep_their_values_and_indices():
    tasks = CARTPOLE.sample("id", 6, seed=0, start=100)
    for chosen, rows in ((tasks[[4, 1]], [4, 1]), (tasks[2:4], [2, 3])):
        assert chosen.indices == tuple(100 + i for i in rows)
        assert chosen.as_dicts() == [tasks.as_dicts()[i] for i in rows]
        assert len(chosen) == 2


def test_unknown_split():
    with pytest.raises(ValueError, match="expected 'train', 'id' or 'ood', received 'test'"):
        CARTPOLE.sample("test", 1, seed=0)


def test_a_named_task_is_the_default_with_changes():
    (values,) = CARTPOLE.task({"force": 7, "sign": -1}).as_dicts()
    assert values == {"force": 7, "length": 0.5, "mass": 0.1, "gravity": 9.8, "sign": -1}
    assert CARTPOLE.task().as_dicts() == [CARTPOLE.default_task]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weight": 1.0}, "expected one of ['force', 'gravity', 'length', 'mass', 'sign'], "),
        ({"force": 1000}, "'force': expected 0.1 to 100 N, received 1000"),
        ({"length": -1}, "'length': expected 0.01 to 10 m, received -1"),
        ({"sign": 0.5}, "'sign': expected one of [-1.0, 1.0], received 0.5"),
        ({"force": "strong"}, "'force': expected a number, received 'strong'"),
        ({"force": True}, "'force': expected a number, received True"),
        ({"force": float("nan")}, "'force': expected a finite one, received nan"),
    ],
)
def test_bad_task_parameters(parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CARTPOLE.task(parameters)


def test_a_reversed_range_is_refused():
    with pytest.raises(ValueError, match=r"expected low < high, received \[3, 2\]"):
        Uniform(1, 2, also=((3, 2),))


def test_global_generators_are_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    CARTPOLE.sample("ood", 5, seed=0)
    CARTPOLE.verify()
    TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15)}).verify()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_families_are_imported_without_gymnasium():
    code = "import sys, ssm_metarl.tasks.registry; print('gymnasium' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


class InertMass(CartPoleDynamics):
    """A sabotaged CartPole that forgets the pole's mass."""

    def step(self, state, action, parameters):
        mass = torch.full_like(parameters["mass"], 0.1)
        return super().step(state, action, {**parameters, "mass": mass})


def test_verify_passes_cartpole_and_names_an_inert_parameter():
    CARTPOLE.verify()
    sabotaged = replace(CARTPOLE, dynamics=InertMass())
    with pytest.raises(ValueError, match=r"'mass' of cartpole: expected a change of the dynamics"):
        sabotaged.verify()


def test_verify_names_a_parameter_that_has_one_value():
    constant = TaskParameter(name="sign", unit="", default=1, id=Choice((1.0,)), ood=Choice((1.0,)))
    with pytest.raises(ValueError, match="'sign'"):
        replace(CARTPOLE, parameters=(*CARTPOLE.parameters[:-1], constant)).verify()


def test_verify_finds_what_gymnasium_caches():
    live = TaskFamily.from_gymnasium("CartPole-v1", {"force_mag": Uniform(5, 15)})
    live.verify()
    inert = {"force_mag": Uniform(5, 15), "masscart": Uniform(0.5, 2, unit="kg")}
    family = TaskFamily.from_gymnasium("CartPole-v1", inert)
    with pytest.warns(UserWarning, match=r"'masscart' of .*: half-cached: .* \(total_mass\)"):
        family.verify()
    unread = TaskFamily.from_gymnasium("CartPole-v1", {"screen_width": Uniform(400, 800, "px")})
    with pytest.raises(ValueError, match=r"'screen_width' of CartPole-v1: .* from 400 to 800 px"):
        unread.verify()


def test_verify_passes_pendulum():
    family = TaskFamily.from_gymnasium(
        "Pendulum-v1", {"g": Uniform(5, 15), "m": Uniform(0.5, 2), "l": Uniform(0.5, 2)}
    )
    family.verify()


def test_a_gymnasium_family_reads_defaults_and_units():
    family = TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")})
    assert (family.name, family.gymnasium_id, family.dynamics) == ("Pendulum-v1",) * 2 + (None,)
    assert family.default_task == {"g": 10.0}
    assert family.parameters[0].unit == "m/s²"
    values = family.sample("id", 50, seed=0).values["g"]
    assert ((values >= 5) & (values < 15)).all()


@pytest.mark.parametrize(
    ("id_range", "expected"),
    [
        (Uniform(5, 9), ((3.0, 5.0), (9.0, 11.0))),
        (Uniform(5, 15), ((2.5, 5.0), (15.0, 20.0))),  # at most half-way to zero
        (Uniform(-3, -1), ((-4.0, -3.0), (-1.0, -0.5))),
        (Uniform(-1, 3), ((-3.0, -1.0), (3.0, 5.0))),
        (Uniform(0, 2), ((2.0, 3.0),)),
        (Uniform(-2, 0), ((-3.0, -2.0),)),
        (Uniform(4, 5, also=((7, 8),)), ((2.0, 4.0), (8.0, 10.0))),
    ],
)
def test_default_ood_ranges(id_range, expected):
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": id_range})
    assert family.parameters[0].ood.intervals == expected


def test_given_ood_ranges_and_choices_are_kept():
    family = TaskFamily.from_gymnasium(
        "Pendulum-v1",
        {"g": Uniform(5, 15), "m": Choice((1.0, 2.0))},
        ood={"g": Uniform(20, 30)},
        name="heavy",
    )
    assert family.name == "heavy"
    assert [p.ood for p in family.parameters] == [Uniform(20, 30), Choice((1.0, 2.0))]


def test_a_family_without_parameters_is_the_unmodified_environment():
    family = TaskFamily.from_gymnasium("Pendulum-v1", {})
    assert family.sample("train", 3, seed=0).as_dicts() == [{}, {}, {}]
    assert len(family.task()) == 1


@pytest.mark.parametrize(
    ("env_id", "parameters", "ood", "message"),
    [
        (
            "Pendulum-v1",
            {"gee": Uniform(1, 2)},
            {},
            r"'gee': .* attribute of Pendulum-v1 .*g, l, m",
        ),
        ("Pendulum-v1", {"render_mode": Uniform(1, 2)}, {}, "expected a number, received None"),
        ("Pendulm-v1", {}, {}, r"expected a Gymnasium id .*received 'Pendulm-v1' \(.*Pendulum"),
        ("Pendulum-v1", {"g": Uniform(1, 2)}, {"m": Uniform(3, 4)}, r"ood: .*received \['m'\]"),
        (
            "Pendulum-v1",
            {"g": Uniform(1, 3)},
            {"g": Uniform(2, 4)},
            "expected none of the ID range",
        ),
    ],
)
def test_bad_declarations(env_id, parameters, ood, message):
    with pytest.raises(ValueError, match=message) as error:
        TaskFamily.from_gymnasium(env_id, parameters, ood)
    assert "\n" not in str(error.value)


def test_declaring_leaves_the_environment_as_registered():
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(20, 30)})
    family.verify()
    assert gymnasium.make("Pendulum-v1").unwrapped.g == 10.0
