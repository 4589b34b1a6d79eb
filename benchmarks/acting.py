"""Rows `rollout` and `policy_step`: how fast worlds and policies take steps.

Place in the flow: rows of `performance`. `env_runner.collect_rollout` against Gymnasium's vector
environments, which run no policy; one step of `Policy.actor` against eager recurrent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results import Measurement, compare
from benchmarks.settings import Settings
from benchmarks.timing import Series, interleave
from ssm_metarl.adaptation.inner_loop import expand_to_tasks
from ssm_metarl.config import Core, MetaTrainingConfig
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.types import FlatParams, Params

TASKS, ENVS = 64, 8
CARTPOLE_ID = "CartPole-v1"


def default_policy(seed: int = 0, core: Core = "diagonal") -> Policy:
    """The policy that a default meta-training of ``cartpole`` starts from."""
    config = MetaTrainingConfig(core=core)
    family = family_of_env("cartpole")
    return build_policy(architecture(config, family), seed=seed, inner_lr=config.inner_lr)


def rollout(settings: Settings) -> list[Measurement]:
    """Policy and physics, shared and per-task parameters, and physics alone."""
    steps, repetitions, seconds = settings.choose((100, 11, 0.3), (50, 5, 0.1), (3, 1, 0.0))
    policy, nonlinear = default_policy(), default_policy(core="state_space")
    candidates: dict[str, Callable[[], object]] = {
        "shared": policy_and_physics(policy, policy.meta_params(), steps),
        "per task": policy_and_physics(policy, per_task(policy), steps),
        "state_space": policy_and_physics(nonlinear, per_task(nonlinear), steps),
        "physics": physics(steps),
    }
    failures = {}
    for name, mode in (("SyncVectorEnv", "sync"), ("CartPoleVectorEnv", "vector_entry_point")):
        try:
            candidates[name] = gymnasium_steps(mode, steps)
        except Exception as error:
            failures[name] = f"failed: {error}"[:200]
    series = interleave(candidates, repetitions, seconds=seconds)
    series = rates(Series(series.figures, failures | series.failures), steps * TASKS * ENVS)
    titles = {
        "shared": "diagonal policy and physics, shared parameters",
        "per task": "diagonal policy and physics, per-task parameters",
        "state_space": "state_space policy and physics, per-task parameters",
        "physics": "physics alone (TaskBatch)",
    }
    return [
        compare(
            series,
            f"rollout/{ours.replace(' ', '_')}_{peer}",
            f"{titles[ours]}, {TASKS} tasks x {ENVS}",
            peer,
            ours=ours,
            unit="steps/s",
            rate=True,
            note="the peer steps its environments only, without a policy",
        )
        for ours in titles
        for peer in ("SyncVectorEnv", "CartPoleVectorEnv")
    ]


def per_task(policy: Policy) -> Params:
    """A policy's parameters, a copy for each task."""
    copies = expand_to_tasks(policy.meta_params(), TASKS)
    return copies.at(copies.flat.detach().clone())


def rates(series: Series, work: int) -> Series:
    """Units of work a second, from seconds for ``work`` units."""
    figures = {name: [work / x for x in values] for name, values in series.figures.items()}
    return Series(figures, series.failures)


def _worlds() -> TaskBatch:
    tasks = family_of_env("cartpole").sample("train", TASKS, seed=0)
    return TaskBatch(tasks, ENVS, seed=0, purpose="benchmark")


def policy_and_physics(policy: Policy, params: Params, steps: int) -> Callable[[], object]:
    """``steps`` sampled steps in 512 environments, episodes following one another."""
    worlds, indices = _worlds(), range(TASKS)

    def run() -> object:
        noise = TaskNoise(0, "benchmark-action", indices)
        actor = policy.actor(params, TASKS, ENVS, noise=noise, num_steps=steps)
        return collect_rollout(worlds, actor, steps, autoreset=True)

    return run


@torch.no_grad()
def physics(steps: int) -> Callable[[], object]:
    """The same steps with actions that are known before."""
    worlds = _worlds()
    actions = torch.randint(2, (steps, TASKS, ENVS)).unbind()

    def run() -> None:
        worlds.reset()
        for action in actions:
            step = worlds.step(action)
            worlds.reset(step.terminated | step.truncated)

    return run


def gymnasium_steps(mode: str, steps: int) -> Callable[[], object]:
    """``steps`` steps of 512 environments of Gymnasium's, with actions that are known before."""
    import gymnasium

    envs: Any = gymnasium.make_vec(CARTPOLE_ID, num_envs=TASKS * ENVS, vectorization_mode=mode)
    actions = list(np.random.default_rng(0).integers(2, size=(steps, TASKS * ENVS)))

    def run() -> None:
        envs.reset(seed=0)
        for action in actions:
            envs.step(action)

    return run


def policy_step(settings: Settings) -> list[Measurement]:
    """One greedy step for one plant, observation in, action out."""
    repetitions, seconds = settings.choose((31, 0.02), (7, 0.01), (1, 0.0))
    policy = default_policy()
    size = policy.num_parameters()
    cell = GRUPolicy.of_size(size)
    obs, reset = torch.randn(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool)
    actor = policy.actor(policy.meta_params(), 1, 1)
    series = interleave(
        {
            "ours": lambda: actor(obs, reset),
            "the same, eager": eager_actor(policy, obs, reset),
            "GRUCell": cell.actor(obs[0]),
        },
        repetitions,
        seconds=seconds,
        warmup=20,
        best_threads=("the same, eager", "GRUCell"),
    )
    notes = {
        "the same, eager": "equal parameters, PyTorch's own operations",
        "GRUCell": f"{size:,} and {sum(p.numel() for p in cell.parameters()):,} parameters; one "
        "history, where the policy also runs the mirrored one",
    }
    return [
        compare(
            series,
            f"policy_step/{slug}",
            "one step of one plant",
            peer,
            unit="µs",
            scale=1e6,
            note=notes[peer],
        )
        for peer, slug in (("the same, eager", "eager"), ("GRUCell", "gru_cell"))
    ]


def eager_actor(policy: Policy, obs: Tensor, reset: Tensor) -> Callable[[], Tensor]:
    """A step of the same policy by ordinary operations."""
    core, heads = policy.core, policy.heads
    assert isinstance(heads, LinearHeads)
    unroll = getattr(core, "unroll_plainly", core.unroll)
    shapes = {name: p.shape for name, p in policy.meta_params().items()}
    flat = torch.cat([p.detach().flatten() for p in policy.meta_params().values()])
    params = dict(FlatParams(flat, shapes))
    inner = {n.removeprefix("core."): p for n, p in params.items() if n.startswith("core.")}
    copies = 2 if policy.mirror else 1
    hidden = torch.zeros(1, copies, core.hidden_size)

    @torch.no_grad()
    def act() -> Tensor:
        nonlocal hidden
        x = obs.clamp(-policy.obs_limit, policy.obs_limit) * policy.obs_scale
        start = reset
        if policy.mirror:
            x, start = torch.cat([x, -x], dim=1), torch.cat([reset, reset], dim=1)
        features, hidden = unroll(inner, x[None], hidden, start[None])
        logits = nn.functional.linear(
            features[0], params["heads.action.weight"], params["heads.action.bias"]
        )
        if policy.mirror:
            here, image = logits.chunk(2, dim=1)
            logits = (here + image.flip(-1)) / 2
        return logits.argmax(-1)

    return act


class GRUPolicy(nn.Module):
    """A GRU cell with a linear head.

    Args:
        width: Size of its state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, width), nn.Linear(width, 2)

    @classmethod
    def of_size(cls, num_parameters: int) -> GRUPolicy:
        """The one whose number of parameters comes closest."""

        def distance(width: int) -> int:
            return abs(3 * width * (4 + width) + 6 * width + 2 * width + 2 - num_parameters)

        return cls(min(range(1, 512), key=distance))

    def actor(self, obs: Tensor) -> Callable[[], Tensor]:
        """A greedy step for an observation (1, 4)."""
        hidden = torch.zeros(1, self.cell.hidden_size)

        @torch.no_grad()
        def act() -> Tensor:
            nonlocal hidden
            hidden = self.cell(obs, hidden)
            action: Tensor = self.head(hidden).argmax(-1)
            return action

        return act
