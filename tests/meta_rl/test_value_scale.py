"""The value's unit: one where rewards are, the rewards' size elsewhere, and predictions stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssm_metarl.meta_rl.value_scale import ValueScale


def head() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def test_rewards_of_one_change_nothing_to_the_last_bit() -> None:
    scale, layer = ValueScale(), head()
    before = [p.clone() for p in layer.parameters()]
    for epoch in range(50):
        scale.update(torch.ones(777), layer, epoch=epoch)
        assert scale.size == 1.0
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))


def test_the_first_epoch_decides_and_later_ones_count_a_tenth() -> None:
    scale, layer = ValueScale(), head()
    scale.update(torch.tensor([-16.0, 0.0]), layer, epoch=0)
    assert scale.mean_square == pytest.approx(128)
    scale.update(torch.tensor([2.0]), layer, epoch=1)
    assert scale.mean_square == pytest.approx((128 + 4) / 2)
    scale.update(torch.tensor([0.0]), layer, epoch=100)
    assert scale.mean_square == pytest.approx(0.9 * 66)


def test_what_the_head_predicts_stays() -> None:
    scale, layer, x = ValueScale(), head(), torch.randn(5, 3)
    before = scale.size * layer(x)
    scale.update(torch.full((4,), -7.0), layer, epoch=3)
    assert scale.size != 1.0
    torch.testing.assert_close(scale.size * layer(x), before)


def test_no_reward_at_all_has_the_unit_one() -> None:
    scale, layer = ValueScale(), head()
    scale.update(torch.zeros(9), layer, epoch=0)
    assert (scale.mean_square, scale.size) == (0.0, 1.0)
    assert all(p.isfinite().all() for p in layer.parameters())
