"""Streams depend on (seed, purpose, index) alone, and on nothing that was drawn before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl.seeding import TaskNoise, generator

PINNED = [[602, 929, 36, 629], [890, 502, 689, 459]]
KEYS = [(seed, purpose, index) for seed in (0, 1) for purpose in ("a", "b") for index in (0, 1)]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(order=st.permutations(KEYS), drawn=st.lists(st.integers(0, 20), min_size=8, max_size=8))
def test_streams_do_not_depend_on_order_or_on_earlier_draws(
    order: list[tuple[int, str, int]], drawn: list[int]
) -> None:
    expected = {key: generator(*key).random(5).tolist() for key in KEYS}
    for key, count in zip(order, drawn, strict=True):
        stream = generator(*key)
        assert stream.random(5).tolist() == expected[key]
        stream.random(count)


def test_seed_purpose_and_index_each_make_another_stream() -> None:
    first = {generator(*key).random() for key in KEYS}
    assert len(first) == len(KEYS)


def test_streams_of_neighbouring_indices_do_not_overlap() -> None:
    long = generator(0, "train-task", 0).random(10_000)
    assert not np.isin(generator(0, "train-task", 1).random(100), long).any()


def test_streams_are_for_ever() -> None:
    """Changing these numbers changes every task and every published figure."""
    assert generator(0, "train-task", 0).integers(0, 1000, 4).tolist() == PINNED[0]
    assert generator(7, "ood-task", 2**64 - 1).integers(0, 1000, 4).tolist() == PINNED[1]


@pytest.mark.parametrize("index", [-1, 2**64])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(OverflowError):
        generator(0, "a", index)


def test_the_global_generators_stay_untouched() -> None:
    def states() -> tuple[object, ...]:
        name, keys, *rest = np.random.get_state()
        return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()

    before = states()
    generator(0, "a").normal(size=10)
    noise = TaskNoise(0, "a", [0, 1])
    noise.uniform(3)
    noise.normal(3)
    assert states() == before


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_task_meets_the_same_noise_whichever_tasks_stand_beside_it(kind: str) -> None:
    def draws(*indices: int) -> torch.Tensor:
        noise = TaskNoise(5, "support", indices)
        return torch.cat([getattr(noise, kind)(4, 3, 2) for _ in range(2)])

    among = draws(3, 7, 9)
    assert among.shape == (8, 3, 3, 2)
    assert torch.equal(among[:, 1], draws(7)[:, 0])
    assert torch.equal(draws(9, 3)[:, [1, 0]], among[:, [0, 2]])
    assert not torch.equal(among[:, 0], among[:, 1])


def test_noise_has_the_promised_distribution() -> None:
    noise = TaskNoise(0, "x", [0])
    uniform = noise.uniform(20_000)
    assert uniform.dtype == torch.float32
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    normal = noise.normal(20_000)
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.std().item() == pytest.approx(1, abs=0.03)
