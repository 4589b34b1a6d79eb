"""No array, whatever its shape, type and strides, breaks into what is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.seeding import TaskNoise

PROGRAM = Path(__file__).with_name("entrances.py")


@pytest.mark.parametrize(
    ("count", "seed"), [(200, 0), pytest.param(10_000, 1, marks=pytest.mark.nightly)]
)
def test_wrong_arrays_are_refused_and_right_ones_are_not(count: int, seed: int) -> None:
    """In a process of its own: what gets past a check may end it."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(count), str(seed)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:] or f"exit code {done.returncode}"
    assert done.stdout.startswith(f"{count} calls of ")


def make_policy(**changes: object):
    settings = {"obs_scale": (0.5,) * 4, "num_actions": 2, "state_dim": 4, "hidden_dim": 4}
    return build_policy(PolicyConfig(**(settings | changes)), seed=0, inner_lr=0.1)


@pytest.mark.parametrize("kind", ["fused", "plain", "in context"])
def test_an_actor_names_what_it_was_made_for(kind: str) -> None:
    policy = make_policy(
        in_context=kind == "in context",
        **({"num_actions": None, "action_dim": 1} if kind == "plain" else {}),
    )
    act = policy.actor(policy.meta_params(), 3, 2)
    assert (act.num_tasks, act.num_envs) == (3, 2)
    first = torch.ones(3, 2, dtype=torch.bool)
    for shape in ((3, 2, 3), (3, 2, 5), (2, 2, 4), (3, 1, 4), (2, 3, 4), (3, 8), (6, 4)):
        with pytest.raises(ValueError) as error:
            act(torch.zeros(shape), first)
        expected = f"obs: expected shape (K, N, O) = (3, 2, 4), received {shape}"
        assert str(error.value) == expected
    with pytest.raises(ValueError, match=r"reset: expected shape \(K, N\) = \(3, 2\), received"):
        act(torch.zeros(3, 2, 4), first.T)
    with pytest.raises(ValueError, match=r"reset: expected truth values \(bool\), received float"):
        act(torch.zeros(3, 2, 4), first.float())


def test_other_widths_and_strides_are_the_same_numbers() -> None:
    policy = make_policy()
    obs = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    first = torch.ones(2, 3, dtype=torch.bool)
    action, log_prob = policy.actor(policy.meta_params(), 2, 3)(obs, first)
    turned = obs.transpose(0, 2).contiguous().transpose(0, 2)
    for seen, reset in ((obs.double(), first), (turned, first), (obs, first.to(torch.uint8))):
        again, same = policy.actor(policy.meta_params(), 2, 3)(seen, reset)
        assert torch.equal(again, action) and torch.equal(same, log_prob)


def test_parameters_and_states_of_other_tasks_are_refused() -> None:
    policy = make_policy()
    obs, reset = torch.zeros(5, 8, 1, 4), torch.zeros(5, 8, 1, dtype=torch.bool)
    size = policy.num_parameters()
    three = {n: p.expand(3, *p.shape) for n, p in policy.meta_params().items()}
    with pytest.raises(ValueError, match=rf"params: .* or \(K, P\) = \(8, {size}\), .*\(3, {size}"):
        policy.unroll(three, obs, policy.init_hidden(8, 1), reset)
    with pytest.raises(ValueError, match=rf"params: .*received \(3, {size}\)"):
        policy.actor(three, 8, 1)
    with pytest.raises(ValueError, match=r"hidden: .* = \(8, 1, 8\), received \(1, 1, 8\)"):
        policy.unroll(policy.meta_params(), obs, policy.init_hidden(1, 1), reset)
    name, p = next(iter(policy.meta_params().items()))
    with pytest.raises(ValueError, match=r"params: .*: expected shape .*of 2 tasks before"):
        policy.unroll({**three, name: p.expand(2, *p.shape)}, obs, policy.init_hidden(3, 1), reset)
    with pytest.raises(ValueError, match=f"params: {name}: .* received NoneType"):
        policy.actor({n: v for n, v in three.items() if n != name}, 3, 1)


def test_an_actor_of_nobody_and_noise_of_others_are_refused() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="num_envs: expected a whole number of at least 1, rec"):
        policy.actor(policy.meta_params(), 1, 0)
    with pytest.raises(ValueError, match=r"noise: expected shape .* = \(5, 3, 1, 1\), received"):
        policy.actor(policy.meta_params(), 3, 1, noise=TaskNoise(0, "x", [0, 1]), num_steps=5)
    act = policy.actor(policy.meta_params(), 2, 1, noise=TaskNoise(0, "x", [0, 1]), num_steps=1)
    obs, reset = torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)
    act(obs, reset)
    with pytest.raises(ValueError, match="num_steps: expected as many as are asked for, received"):
        act(obs, reset)
