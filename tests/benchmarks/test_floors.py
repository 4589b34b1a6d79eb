"""Floors: the counted products are those that PyTorch itself counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floors import (
    Rates,
    Work,
    epoch_work,
    forward,
    gradient,
    readouts,
    tangent,
)
from benchmarks.plain_policy import PlainPolicy
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import build_policy

CONFIG = PolicyConfig(
    state_dim=5, hidden_dim=7, num_layers=2, obs_scale=(1.0,) * 4, num_actions=2, mirror=True
)
STEPS, ENVS = 3, 2
ROWS = 2 * STEPS * ENVS
OUTPUTS = 2 + 1 + 8  # logits, value, prediction: what the counted policy reads


def counted(second: bool, grad: bool) -> int:
    """Operations in the products of a plain policy, by PyTorch's own counter."""
    policy = build_policy(CONFIG, seed=0, inner_lr=0.1)
    weights = {n: p.detach().clone().requires_grad_() for n, p in policy.meta_params().items()}
    obs, reset = torch.randn(STEPS, ENVS, 4), torch.zeros(STEPS, ENVS, dtype=torch.bool)
    names = [n for n in weights if not n.startswith("heads.value")]
    counter = FlopCounterMode(display=False)
    with counter:
        plain = PlainPolicy(CONFIG, "layer")
        features = plain.unroll(weights, obs, reset)
        logits = plain._logits(weights, features)
        raw = torch.nn.functional.linear(
            features, weights["heads.prediction.weight"], weights["heads.prediction.bias"]
        )
        value = torch.nn.functional.linear(
            features, weights["heads.value.weight"], weights["heads.value.bias"]
        )
        if grad:
            loss = logits.square().sum() + raw.square().sum() + value.square().sum()
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=second)
            if second:
                torch.autograd.grad(
                    sum(g.square().sum() for g in grads), [weights[n] for n in names]
                )
    return int(counter.get_total_flops())


def test_forward_by_hand() -> None:
    # encoder 4 x 7; per layer 7 x 5, 5 x 7, 7 x 7; heads 7 x (2 + 1 + 8)
    products = 4 * 7 + 2 * (35 + 35 + 49) + 7 * 11
    assert forward(CONFIG, 1, OUTPUTS).flops == 2 * products
    assert forward(CONFIG, 1, OUTPUTS).gelu == 2 * 7
    assert forward(CONFIG, 1, OUTPUTS).simple == 2 * (2 * 7 + 5)


def test_forward_and_gradient_are_what_pytorch_counts() -> None:
    assert forward(CONFIG, ROWS, OUTPUTS).flops == counted(second=False, grad=False)
    assert gradient(CONFIG, ROWS, OUTPUTS).flops == counted(second=False, grad=True)


def test_the_gradients_derivative_is_at_most_what_pytorch_counts() -> None:
    both = gradient(CONFIG, ROWS, OUTPUTS).flops + tangent(CONFIG, ROWS, OUTPUTS).flops
    reference = counted(second=True, grad=True)
    # autograd forms no tangent of the output that nothing asks for; the rest is the same
    assert 0.75 * reference <= both <= 1.25 * reference


def test_an_epoch_adds_up() -> None:
    training = MetaTrainingConfig(tasks_per_epoch=3, update_epochs=5)
    work = epoch_work(
        CONFIG, training, support_steps=10, query_steps=20, inner_steps=2, num_params=0
    )
    act, fit = gradient(CONFIG, 1, 2).flops, gradient(CONFIG, 1, 8).flops
    inner = 2 * 20 * (fit + tangent(CONFIG, 1, 8).flops)
    assert work.flops == pytest.approx(
        40 * forward(CONFIG, 1, 2).flops + 5 * (inner + 20 * fit + 40 * act)
    )


def test_heads_are_counted_where_they_are_read() -> None:
    assert readouts(CONFIG) == (2, 8)


def test_seconds_are_counts_times_rates() -> None:
    rates = Rates(flop=1.0, simple=10.0, gelu=100.0, sigmoid=1000.0, env_step=1e4)
    assert rates.seconds(Work(1, 2, 3, 4) + Work(1), env_steps=5) == 2 + 20 + 300 + 4000 + 5e4
    assert rates.seconds(Work(1, 2, 3, 4) * 2) == 2 * 4321
