"""The compiled StateSpaceModel equals the plain one, in its output and in two derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssm_metarl.core.ssm import StateSpaceModel

NAMES = [
    "state_transition.0.weight", "state_transition.0.bias", "state_transition.2.weight",
    "state_transition.2.bias", "input_projection.weight", "input_projection.bias",
    "output_network.0.weight", "output_network.0.bias", "output_network.2.weight",
    "output_network.2.bias", "feedthrough.weight", "feedthrough.bias",
]  # fmt: skip


@pytest.fixture
def model() -> StateSpaceModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StateSpaceModel(state_dim=6, input_dim=4, output_dim=3, hidden_dim=9)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-task"])
@pytest.mark.parametrize("envs", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 37, 50])  # 37 x 5 rows are one block and a part
def test_equals_the_plain_model_in_two_derivatives(
    model: StateSpaceModel,
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
    "dims", [(1, 4, 1, 1), (32, 4, 4, 64), (5, 4, 2, 700)], ids=["least", "documented", "wide"]
)
def test_sizes_do_not_matter(
    dims: tuple[int, ...],
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    assert_same_derivatives: Callable[..., None],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StateSpaceModel(*dims)
    data, params = make_data(11, 8, model.hidden_size), make_params(model, False)
    assert_same_derivatives(model.unroll, model.unroll_plainly, params, data)


def test_a_step_may_have_more_rows_than_a_block(
    model: StateSpaceModel,
    make_params: Callable[..., Any],
    make_data: Callable[..., Any],
    assert_same_derivatives: Callable[..., None],
) -> None:
    data, params = make_data(3, 150, model.hidden_size), make_params(model, False)
    assert_same_derivatives(model.unroll, model.unroll_plainly, params, data)


def test_float32_runs_compiled_and_nothing_else_does(
    model: StateSpaceModel,
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
    model: StateSpaceModel,
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


def test_names_are_in_the_order_of_the_kernel(model: StateSpaceModel) -> None:
    assert [name for name, _ in model.named_parameters()] == NAMES


def test_readouts_are_refused(model: StateSpaceModel) -> None:
    with pytest.raises(ValueError, match=r"readouts: expected none, received \[\(0, 2\)\]"):
        model.kernel([(0, 2)])
