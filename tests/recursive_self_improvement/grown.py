"""Random models, and random growths of them, for the tests of growth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from float32 import assert_only_rounded
from ssm_metarl.checkpoint import Checkpoint
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.recursive_self_improvement.growth import (
    checked_output,
    relative_change,
    resize,
)

CONFIGURATIONS = 60
NIGHTLY_CONFIGURATIONS = 500
FLOAT64 = 1e-12
OBS_DIM = 3
ACTIONS: tuple[dict[str, Any], ...] = ({"num_actions": 2}, {"num_actions": 3}, {"action_dim": 2})
SIZES = ("state_dim", "hidden_dim", "num_layers")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Case:
    """A checkpoint, the architecture to grow it to, and the result."""

    old: Checkpoint
    config: PolicyConfig
    new: Checkpoint


def random_checkpoint(config: PolicyConfig, seed: int) -> Checkpoint:
    """Every tensor random, none zero: what a training in full swing looks like."""
    g = torch.Generator().manual_seed(seed)
    policy = build_policy(config, seed=seed, inner_lr=0.02)
    tensors = {}
    for name, p in policy.named_parameters():
        value = p.detach() + 0.1 * torch.randn(p.shape, generator=g)
        tensors[f"policy.{name}"] = value
        tensors[f"optimizer.{name}.step"] = torch.tensor(37.0)
        tensors[f"optimizer.{name}.exp_avg"] = torch.randn(p.shape, generator=g)
        tensors[f"optimizer.{name}.exp_avg_sq"] = torch.rand(p.shape, generator=g) + 0.1
    tensors["experience.reward"] = torch.rand(5, generator=g)
    training = asdict(MetaTrainingConfig(core=config.core))
    training |= {name: getattr(config, name) for name in (*SIZES, "norm_dim")}
    return Checkpoint(
        policy_config=asdict(config),
        tensors=tensors,
        training=training,
        counters={"epoch": 3, "env_steps": 50, "recent_return": 1.5},
        card={"note": "kept"},
        calibration={"objective": "prediction", "max_loss": [1.0], "max_kl": 1.0},
    )


def random_case(index: int) -> Case:
    """A random model, and a random growth of some of its dimensions."""
    rng = np.random.default_rng(index)
    core = ("diagonal", "state_space")[index % 2]
    actions = ACTIONS[int(rng.integers(3 if core == "diagonal" else 2))]
    layers, width = int(rng.integers(1, 4)), int(rng.integers(3, 13))
    old = PolicyConfig(
        core=core,  # type: ignore[arg-type]
        state_dim=int(rng.integers(3, 13)),
        hidden_dim=width,
        num_layers=layers,
        norm_dim=max(3, width - 1) if core == "diagonal" and rng.random() < 0.3 else None,
        output_dim=actions.get("num_actions", 0) + 1,
        obs_scale=tuple(rng.uniform(0.5, 2, OBS_DIM).tolist()),
        obs_limit=(1.0, 2.0, 0.5) if rng.random() < 0.5 else (),
        predicted_dims=(1,) if actions == {"num_actions": 2} and core == "state_space" else (),
        mirror=bool(rng.random() < 0.5),
        **actions,
    )
    names = SIZES if core == "diagonal" else SIZES[:2]
    chosen = [n for n in names if rng.random() < 0.5] or [str(rng.choice(names))]
    more = {n: int(rng.integers(1, 3 if n == "num_layers" else 6)) for n in chosen}
    sizes = {n: getattr(old, n) + more.get(n, 0) for n in SIZES}
    checkpoint = random_checkpoint(old, index)
    return Case(checkpoint, replace(old, **sizes), resize(checkpoint, sizes, seed=index))


def diagonal(**settings: Any) -> PolicyConfig:
    sizes = {"state_dim": 4, "hidden_dim": 6, "num_layers": 2, "num_actions": 3}
    return PolicyConfig(**(sizes | {"obs_scale": (1.0,) * OBS_DIM} | settings))


def sized(config: PolicyConfig, **changes: int) -> dict[str, int]:
    return {n: getattr(config, n) for n in SIZES} | changes


def shapes_of(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return checkpoint.policy().step_sizes().shapes


def old_block(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where an entry of a grown parameter was there before, by the shapes alone."""
    block = torch.zeros(shape, dtype=torch.bool)
    if name in old:
        block[tuple(slice(size) for size in old[name])] = True
    return block


def joints(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where an old unit reads a new one: entries that must be zero, and must train at once."""
    found = torch.zeros(shape, dtype=torch.bool)
    if name in old:
        if len(shape) == 2:
            rows, columns = old[name]
            found[:rows, columns:] = True
    elif name.endswith(("C.weight", "C.bias", ".D")):  # of a new layer, into old channels
        found[: old["core.encoder.bias"][0]] = True
    return found


@cache
def all_cases() -> list[Case]:
    """The models of every ordinary run."""
    return [random_case(index) for index in range(CONFIGURATIONS)]


def assert_function_kept(case: Case, seed: int) -> None:
    change = relative_change(case.old, case.new, seed=seed, dtype=torch.float64)
    assert change <= FLOAT64, f"{case.old.policy_config} -> {case.config}: {change:.1e}"

    def output(policy: Policy) -> Tensor:
        return checked_output(policy, seed)

    assert_only_rounded(output(case.new.policy()), output, case.old.policy())
