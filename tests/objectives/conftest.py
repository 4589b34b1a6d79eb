"""Rollouts and policies small enough to compute by hand, in float64: rounding does not show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from float32 import double
from ssm_metarl.action_space import Discrete
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.heads import LinearHeads, SliceHeads
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.types import Rollout

MakeRollout = Callable[..., Rollout]
SLICES = PolicyConfig(
    core="state_space", obs_scale=(1.0,) * 4, num_actions=2, predicted_dims=(1, 3)
)


@pytest.fixture
def make_rollout() -> MakeRollout:
    """Build a rollout of T x K x N steps; any field can be given."""

    def make(steps: int, tasks: int = 1, envs: int = 1, **given: Tensor) -> Rollout:
        g = torch.Generator().manual_seed(0)
        shape = (steps, tasks, envs)
        no = torch.zeros(shape, dtype=torch.bool)
        start = no.clone()
        start[0] = True
        fields = {
            "obs": torch.randn(*shape, 4, generator=g),
            "action": torch.randint(2, shape, generator=g),
            "reward": torch.randn(shape, generator=g),
            "next_obs": torch.randn(*shape, 4, generator=g),
            "terminated": no,
            "truncated": no,
            "reset": start,
            "mask": ~no,
            "log_prob": torch.full(shape, 0.5).log(),
        }
        return double(Rollout(**(fields | given)))

    return make


@pytest.fixture
def ends_early() -> Tensor:
    """A mask of 6 steps, 2 tasks, 2 environments: one ends after 4 steps, one after 1."""
    mask = torch.ones(6, 2, 2, dtype=torch.bool)
    mask[4:, 0, 1] = False
    mask[1:, 1, 0] = False
    return mask


@pytest.fixture
def spoiled() -> Callable[[Rollout], Rollout]:
    """Nonsense wherever no step was taken: NaN, and actions that do not exist."""

    def spoil(rollout: Rollout) -> Rollout:
        def spoil_one(x: Tensor) -> Tensor:
            if x is rollout.mask:
                return x
            nonsense = {torch.bool: True, torch.int64: 99}.get(x.dtype, float("nan"))
            taken = rollout.mask.reshape(*rollout.mask.shape, *(1,) * (x.dim() - 3))
            return torch.where(taken, x, torch.full_like(x, nonsense))

        return rollout.map(spoil_one)

    return spoil


@pytest.fixture
def constant_policy() -> Callable[..., Policy]:
    """A policy whose output is the given four numbers, whatever it sees."""

    def make(output: tuple[float, float, float, float]) -> Policy:
        core = StateSpaceModel(2, 4, 4, 2)
        with torch.no_grad():
            for p in core.parameters():
                p.zero_()
            core.feedthrough.bias.copy_(torch.tensor(output))
        heads = SliceHeads(4, Discrete(2), predicted_dims=(1, 3))
        return Policy(core, heads, SLICES, inner_lr=0.1).double()

    return make


@pytest.fixture(params=["slice", "linear"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """A recurrent policy with two actions, of either kind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "slice":
            heads: SliceHeads | LinearHeads = SliceHeads(4, Discrete(2), predicted_dims=(1, 3))
            result = Policy(StateSpaceModel(4, 4, 4, 8), heads, SLICES, inner_lr=0.1)
        else:
            heads = LinearHeads(6, Discrete(2), 4)
            config = PolicyConfig(obs_scale=(1.0,) * 4, num_actions=2)
            result = Policy(DiagonalSSM(4, 6, 5, 2), heads, config, inner_lr=0.1)
        with torch.no_grad():
            for p in result.meta_params().values():
                p += 0.2 * torch.randn(p.shape)
        return result.double()
