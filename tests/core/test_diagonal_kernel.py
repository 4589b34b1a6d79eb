"""The compiled DiagonalSSM equals the plain one, in its output and in two derivatives."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import Policy
from ssm_metarl.types import Params

LAYER = ["log_rate", "D", "B.weight", "B.bias", "C.weight", "C.bias", "gate.weight", "gate.bias"]
NAMES = ["encoder.weight", "encoder.bias", *(f"layers.{i}.{n}" for i in (0, 1) for n in LAYER)]


@pytest.fixture
def model() -> DiagonalSSM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiagonalSSM(4, model_dim=6, state_dim=5, num_layers=2)


@pytest.fixture(params=[None, 5], ids=["all", "first-5"])
def policy(request: pytest.FixtureRequest) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DiagonalSSM(4, model_dim=6, state_dim=5, num_layers=2, norm_dim=request.param)
        heads = LinearHeads(model.output_dim, Discrete(3), obs_dim=4)
        config = PolicyConfig(obs_scale=(0.5, 1.0, 2.0, 1.0), num_actions=3)
        return Policy(model, heads, config, inner_lr=0.1)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-task"])
@pytest.mark.parametrize("envs", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 37])  # 37 x 5 rows are one block and a part
def test_equals_the_plain_model_in_two_derivatives(
    model: DiagonalSSM,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    assert_same_derivatives: Callable[..., None],
    steps: int,
    envs: int,
    shared: bool,
) -> None:
    data = make_data(steps, envs, model.hidden_size)
    params = make_params(model, shared)
    assert_same_derivatives(model.unroll, model.unroll_plainly, params, data)


@pytest.mark.parametrize(
    ("width", "state", "layers", "norm"),
    [
        (1, 1, 1, None),
        (32, 32, 2, None),
        (6, 300, 1, None),
        (130, 3, 3, None),
        (12, 5, 2, 8),  # few channels vary little now and then, and amplify rounding
        (40, 32, 2, 32),
        (130, 3, 3, 129),
    ],
)
def test_sizes_do_not_matter(
    width: int,
    state: int,
    layers: int,
    norm: int | None,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    assert_same_derivatives: Callable[..., None],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiagonalSSM(4, width, state, layers, norm_dim=norm)
    data, params = make_data(11, 8, model.hidden_size), make_params(model, False)
    assert_same_derivatives(model.unroll, model.unroll_plainly, params, data)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-task"])
@pytest.mark.parametrize(("steps", "envs"), [(1, 2), (37, 1), (37, 5)])
def test_a_policys_readouts_equal_the_plain_ones_in_two_derivatives(
    policy: Policy,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    assert_same_derivatives: Callable[..., None],
    steps: int,
    envs: int,
    shared: bool,
) -> None:
    double = deepcopy(policy).double()  # in this precision a policy runs plainly

    def unroll_of(of: Policy) -> Callable[..., tuple[Tensor, Tensor]]:
        def unroll(params: Params, *data: Tensor) -> tuple[Tensor, Tensor]:
            out, last = of.unroll(params, *data)
            return out.output, last

        return unroll

    params = make_params(policy, shared)
    del params["step_size"]
    data = make_data(steps, envs, policy.core.hidden_size)
    fused = unroll_of(policy)
    assert_same_derivatives(fused, fused, params, data, unroll_of(double))


def test_float32_runs_compiled_and_nothing_else_does(
    model: DiagonalSSM,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (x, hidden, reset), params = make_data(3, 2, model.hidden_size), make_params(model, True)
    plain = []
    monkeypatch.setattr(model, "unroll_plainly", lambda *args: plain.append(args))
    model.unroll(params, x, hidden, reset)
    assert not plain
    model.unroll(params, x.clone().requires_grad_(), hidden, reset)
    model.unroll(params, x, hidden.clone().requires_grad_(), reset)
    model.unroll({n: p.double() for n, p in params.items()}, x.double(), hidden.double(), reset)
    assert len(plain) == 3


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_a_weight_shows_in_the_output(
    model: DiagonalSSM,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    name: str,
) -> None:
    x, hidden, reset = make_data(1, 2, model.hidden_size)
    params = make_params(model, True)
    params[name].view(-1)[0] = torch.nan
    for start in (torch.zeros_like(reset), torch.ones_like(reset)):
        out, _ = model.unroll(params, x, hidden, start)
        assert out.isnan().any(dim=-1).all(), "in every row"


def test_names_are_in_the_order_of_the_kernel(model: DiagonalSSM) -> None:
    assert [name for name, _ in model.named_parameters()] == NAMES
