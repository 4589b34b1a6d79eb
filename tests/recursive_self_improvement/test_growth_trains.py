"""What has grown trains: what reads a new unit at once, all that is new soon after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssm_metarl.core.policy import Policy
from ssm_metarl.recursive_self_improvement.growth import (
    resize,
)

from .grown import (
    CONFIGURATIONS,
    NIGHTLY_CONFIGURATIONS,
    OBS_DIM,
    Case,
    all_cases,
    assert_function_kept,
    diagonal,
    joints,
    old_block,
    random_case,
    random_checkpoint,
    shapes_of,
    sized,
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


def unroll(policy: Policy, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A random linear loss of the output, and which hidden neurons fire (state_space)."""
    g = torch.Generator().manual_seed(seed)
    steps, tasks, envs = 12, 2, 4
    obs = torch.randn(steps, tasks, envs, OBS_DIM, generator=g, dtype=torch.float64)
    reset = torch.rand(steps, tasks, envs, generator=g) < 0.1
    params, hidden = policy.meta_params(), policy.init_hidden(tasks, envs)
    output = policy.unroll(params, obs, hidden, reset)[0].output
    loss = (output * torch.randn(output.shape, generator=g, dtype=torch.float64)).sum()
    if "core.state_transition.0.weight" not in params:
        return loss, {}
    states = []
    with torch.no_grad():
        for t in range(steps):
            _, hidden = policy.unroll(params, obs[t : t + 1], hidden, reset[t : t + 1])
            states.append(torch.cat(hidden.chunk(2, -1), 1) if policy.mirror else hidden)
    h, fires = torch.stack(states), {}
    # where a state came from another one: elsewhere A's first weights multiply zeros
    carried = ~(torch.cat([reset, reset], 2) if policy.mirror else reset)[1:]
    for name, seen in (("state_transition", h[:-1][carried]), ("output_network", h)):
        weight, bias = (params[f"core.{name}.0.{kind}"] for kind in ("weight", "bias"))
        fires[f"core.{name}"] = ((seen @ weight.T + bias) > 0).flatten(0, -2).any(0)
    return loss, fires


def third(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where a new layer's gate belongs to a new channel: what it reads or scales is zero until
    C has moved, which waits for a reader of the channel to have moved."""
    found = torch.zeros(shape, dtype=torch.bool)
    if name not in old and ".gate." in name:
        width = old["core.encoder.bias"][0]
        found[width:] = True
        if len(shape) == 2:
            found[:, width:] = True
    return found


def reachable(name: str, shape: torch.Size, fires: dict[str, Tensor]) -> Tensor:
    """False where a parameter stands before or behind a neuron that never fires."""
    mask = torch.ones(shape, dtype=torch.bool)
    for network, fire in fires.items():
        if name.startswith(f"{network}.0."):
            mask &= fire[:, None] if len(shape) == 2 else fire
        elif name == f"{network}.2.weight":
            mask &= fire
    return mask


def assert_everything_trains(case: Case, seed: int) -> tuple[int, int]:
    """Returns how many new entries there are, and how many could not be judged."""
    old, policy = shapes_of(case.old), case.new.policy().double()
    params = policy.meta_params()
    judged = skipped = 0
    fires: dict[str, Tensor] = {}  # a neuron that was silent has a reader that did not move
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        loss, firing = unroll(policy, seed)
        loss.backward()
        fires = {name: fires.get(name, now) & now for name, now in firing.items()}
        for name, p in params.items():
            assert p.grad is not None or name == "heads.log_std"
            if p.grad is None:
                continue
            joint = joints(name, old, p.shape)
            if step == 0:
                assert not p[joint].any(), name
            asked = joint if step == 0 else ~old_block(name, old, p.shape)
            if step == 1:
                asked &= ~third(name, old, p.shape)
            live = asked & reachable(name, p.shape, fires)
            where = f"{case.old.policy_config} -> {case.config}: {name}"
            assert p.grad[live].all(), f"{where}: no gradient after {step} steps"
            judged, skipped = judged + int(asked.sum()), skipped + int((asked & ~live).sum())
        optimizer.step()
    return judged, skipped


def test_what_reads_a_new_unit_trains_at_once_and_all_that_is_new_soon_after(
    cases: list[Case],
) -> None:
    counts = torch.tensor([assert_everything_trains(c, i) for i, c in enumerate(cases)])
    judged, skipped = counts.sum(0).tolist()
    assert judged > 100 * CONFIGURATIONS
    assert skipped < 0.05 * judged


def test_without_fresh_writers_nothing_would_train() -> None:
    """The gradient test can fail: zeros on both sides stay zeros."""
    old = random_checkpoint(diagonal(), 0)
    new = resize(old, sized(diagonal(), state_dim=6), seed=1)
    silent = dict(new.tensors)
    for layer in (0, 1):
        for kind in ("weight", "bias"):
            name = f"policy.core.layers.{layer}.B.{kind}"
            silent[name] = silent[name].clone()
            silent[name][4:] = 0
    with pytest.raises(AssertionError, match="after 0 steps"):
        assert_everything_trains(Case(old, diagonal(), replace(new, tensors=silent)), 0)


@pytest.mark.nightly
def test_growth_of_hundreds_of_models() -> None:
    for index in range(1000, 1000 + NIGHTLY_CONFIGURATIONS):
        case = random_case(index)
        assert_function_kept(case, index)
        assert_everything_trains(case, index)
