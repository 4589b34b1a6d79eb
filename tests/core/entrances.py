"""Throws arrays of right and wrong shapes, types and strides at all that enters compiled code.

A program of its own, for a wrong array that gets in may end the process: run by `test_entrances`
as ``python entrances.py COUNT SEED``. Every call must work or raise ValueError; one whose arguments
fit, or differ harmlessly, must work. Prints how many did which.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.adaptation.change_detector import window_error
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.identification import Identification
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.scan import scan_compiled
from ssm_metarl.core.trial_memory import TrialMemory
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.tasks.cartpole import CARTPOLE, CartPoleDynamics
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.types import FlatParams, Rollout, flatten

K, N, T, O = 3, 2, 4, 4  # noqa: E741 - the names of the axes everywhere else
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Entrance:
    """A function, and the arguments that fit it."""

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Tensor]


def bent(value: Tensor, rng: random.Random) -> tuple[Any, bool]:
    """An argument made another one, and whether it must still be accepted."""
    how = rng.choice(["size", "axis", "dtype", "strides", "numbers", "grad", "none", "batch"])
    if how == "size" and value.dim():
        axis = rng.randrange(value.dim())
        size = rng.choice([0, 1, value.shape[axis] - 1, value.shape[axis] + 1, 40, 2000])
        shape = [*value.shape[:axis], size, *value.shape[axis + 1 :]]
        return torch.ones(shape).to(value.dtype), size == value.shape[axis]
    if how == "batch" and value.dim() > 1:
        return value.transpose(0, 1).contiguous(), value.shape[0] == value.shape[1]
    if how == "axis":
        return rng.choice([value[None], value[..., None], value.flatten(), value.sum()]), False
    if how == "dtype":
        kind = rng.choice([*FLOATS, *WHOLE, torch.bool, torch.complex64])
        number, wants = value.to(kind), value.dtype
        if wants.is_floating_point:
            return number, not kind.is_complex and not value.isnan().any()
        return number, not (kind.is_floating_point or kind.is_complex)
    if how == "strides":
        wide = torch.zeros(*value.shape, 2, dtype=value.dtype)
        wide[..., 1] = value
        turned = value.transpose(0, -1).contiguous().transpose(0, -1) if value.dim() else value
        return rng.choice([wide[..., 1], turned, value[:1].expand_as(value)]), True
    if how == "numbers" and value.dtype.is_floating_point:
        number = rng.choice([float("nan"), float("inf"), -1e30, 1e30])
        return value.masked_fill(torch.rand(value.shape) < 0.3, number), False
    if how == "numbers" and value.dtype == torch.int64:
        return value + rng.choice([-1, 1, 2**40]), False
    if how == "grad" and value.dtype.is_floating_point:
        return value.clone().requires_grad_(), True
    if how == "none":
        return rng.choice([None, 3, value.tolist(), value.detach().numpy()]), False
    return value, True


def small(**changes: Any) -> Policy:
    settings = {"state_dim": 5, "hidden_dim": 6, "obs_scale": (0.5,) * O, "num_actions": 2}
    return build_policy(PolicyConfig(**(settings | changes)), seed=0, inner_lr=0.01)


POLICIES = {
    "diagonal": small(),
    "grown": small(norm_dim=4, memory=False, num_actions=3),
    "state_space": small(core="state_space", predicted_dims=(1, 3), obs_limit=(1.0,) * O),
    "mirrored": small(mirror=True, told_dims=1),
    "continuous": small(num_actions=None, action_dim=2),
    "in_context": small(in_context=True),
    "in_context mirrored": small(in_context=True, mirror=True),
    "in_context continuous": small(in_context=True, num_actions=None, action_dim=2),
}
OBS, REWARD = 0.1 * torch.randn(K, N, O), torch.ones(K, N)
RESET = torch.tensor([[True, False]] * K)


def actions_of(policy: Policy, *lead: int) -> Tensor:
    space = policy.action_space
    if isinstance(space, Discrete):
        return torch.randint(space.n, lead)
    return torch.rand(*lead, space.dim)


def of_policy(name: str, policy: Policy) -> list[Entrance]:
    flat = flatten(policy.meta_params(), policy._shapes).detach()
    actor = policy.actor(policy.meta_params(), K, N)
    hidden = policy.init_hidden(K, N)
    x = 0.1 * torch.randn(T, K, N, policy.input_dim)
    reset = torch.rand(T, K, N) < 0.3

    def unroll(flat: Tensor, obs: Tensor, hidden: Tensor, reset: Tensor) -> None:
        params = FlatParams(flat, policy._shapes)
        out, last = policy.unroll(params, obs, hidden, reset)
        if out.output.requires_grad:
            (out.output.sum() + last.sum()).backward()

    def named(weight: Tensor) -> None:
        params = {**policy.meta_params(), "core." + first: weight}
        policy.unroll(params, x, hidden, reset)

    def act_with(flat: Tensor) -> None:
        policy.actor(FlatParams(flat, policy._shapes), K, N)(OBS, RESET)

    first, weight = next(iter(policy.core.named_parameters()))
    size = sum(p.numel() for p in policy.core.parameters())
    core_shapes = {n: p.shape for n, p in policy.core.named_parameters()}

    def core(flat: Tensor, x: Tensor, hidden: Tensor, reset: Tensor) -> None:
        policy.core.unroll(FlatParams(flat, core_shapes), x, hidden, reset)

    core_hidden = torch.zeros(K, N, policy.core.hidden_size)
    per_task = flat.expand(K, -1).clone().requires_grad_()
    found = [
        Entrance("actor", actor, {"obs": OBS, "reset": RESET}),
        Entrance("actor's parameters", act_with, {"flat": flat.expand(K, -1).clone()}),
        Entrance("unroll", unroll, {"flat": flat, "obs": x, "hidden": hidden, "reset": reset}),
        Entrance("unroll", unroll, {"flat": per_task, "obs": x, "hidden": hidden, "reset": reset}),
        Entrance("named parameters", named, {"weight": weight.detach()}),
        Entrance("core", core, {"flat": torch.rand(size), "x": x, "hidden": core_hidden,
                                "reset": reset}),
    ]  # fmt: skip
    if hasattr(actor, "rewarded"):
        found.append(Entrance("rewarded", actor.rewarded, {"reward": REWARD}))
    online = OnlineAdapter(policy, num_tasks=K)
    one = {"obs": OBS[:, :1].clone(), "reset": RESET[:, :1].clone()}
    found += [
        Entrance("online", online, one),
        Entrance("online rewarded", online.rewarded, {"reward": REWARD[:, :1].clone()}),
    ]
    if policy.in_context:
        memory = TrialMemory(policy, K, None)
        found += [
            Entrance("memory", memory.observe, {"obs": OBS[:, 0].clone(), "reset": RESET[:, 0]}),
            Entrance("acted", memory.acted, {"action": actions_of(policy, K)}),
            Entrance("memory rewarded", memory.rewarded, {"reward": REWARD[:, 0].clone()}),
            Entrance("surprise", memory.surprise, {"obs": OBS[:, 0].clone()}),
            Entrance("forget", memory.forget, {"rows": RESET[:, 0].clone()}),
        ]
    rollout = random_rollout(policy)
    for field in ("action", "obs"):

        def adapt(field: str = field, **changes: Tensor) -> None:
            changed = replace(rollout, **changes)
            StandardAdapter().adapt_tasks(policy, changed)
            policy.look(policy.meta_params(), changed)
            window_error(policy, policy.meta_params(), changed.map(lambda x: x[:, :, :1]),
                         window=2, spread=None)  # fmt: skip

        found.append(Entrance(f"adapt to {field}", adapt, {field: getattr(rollout, field)}))
    return [replace(e, name=f"{name}: {e.name}") for e in found]


def random_rollout(policy: Policy) -> Rollout:
    never = torch.zeros(T, K, N, dtype=torch.bool)
    starts = never.clone()
    starts[0] = True
    return Rollout(
        obs=0.1 * torch.randn(T, K, N, O),
        action=actions_of(policy, T, K, N),
        reward=torch.ones(T, K, N),
        next_obs=0.1 * torch.randn(T, K, N, O),
        terminated=never,
        truncated=never,
        reset=starts,
        mask=~never,
        log_prob=torch.zeros(T, K, N),
    )


class Odd(CartPoleDynamics):
    """Physics of a user's own, which may return anything."""

    after: tuple[Any, ...] = ()

    def step(self, *_: Any) -> Any:
        return self.after


def of_worlds() -> list[Entrance]:
    found = []
    for family in (CARTPOLE, CARTPOLE_SCRAMBLED):
        tasks = family.sample("id", K, seed=0)
        worlds = TaskBatch(tasks, N, seed=0, purpose="fuzz", push_probability=0.1)
        worlds.reset()
        dynamics, state = worlds.dynamics, worlds._state.clone()
        parameters = {n: v.contiguous() for n, v in worlds._parameters.items()}
        name = "order" if "order" in parameters else "force"

        def step(
            state: Tensor, action: Tensor, delay: Tensor | None = None, *, own: Any = dynamics,
            values: Any = parameters, **one: Tensor,
        ) -> None:  # fmt: skip
            own.step(state, action, {**values, **one, "delay": delay})

        def observe(
            state: Tensor, *, own: Any = dynamics, values: Any = parameters, **one: Tensor
        ) -> None:
            own.observe(state, {**values, **one})

        action = torch.randint(2, (K, N))
        extra = {"delay": parameters["delay"]} if name == "order" else {"force": parameters[name]}
        found += [
            Entrance(f"{family.name}: step", worlds.step, {"action": action}),
            Entrance(f"{family.name}: reset", worlds.reset, {"mask": RESET}),
            Entrance(f"{family.name}: physics", step, {"state": state, "action": action, **extra}),
        ]
        if name == "order":
            sensors = {"state": state, "order": parameters["order"]}
            found.append(Entrance(f"{family.name}: sensors", observe, sensors))

    odd = replace(CARTPOLE, name="odd", dynamics=Odd())

    def settle(state: Tensor, reward: Tensor, terminated: Tensor) -> None:
        worlds = TaskBatch(odd.sample("id", K, seed=0), N, seed=0, purpose="fuzz")
        worlds.dynamics.after = (state, reward, terminated)
        worlds.step(torch.zeros(K, N, dtype=torch.int64))

    found.append(
        Entrance("own physics", settle, {"state": OBS, "reward": REWARD, "terminated": RESET})
    )

    def collect(num_tasks: Tensor, num_envs: Tensor) -> None:
        if not all(isinstance(v, Tensor) and v.dim() == 1 for v in (num_tasks, num_envs)):
            raise ValueError("not a number of environments")
        policy = POLICIES["diagonal"]
        actor = policy.actor(policy.meta_params(), len(num_tasks), len(num_envs))
        collect_rollout(
            TaskBatch(CARTPOLE.sample("id", K, seed=0), N, seed=0, purpose="fuzz"), actor, 3
        )

    found.append(
        Entrance("collect", collect, {"num_tasks": torch.ones(K), "num_envs": torch.ones(N)})
    )
    return found


def of_the_rest() -> list[Entrance]:
    plants = Identification(K, O, 3)
    columns = {
        "z": torch.randn(T, K, O), "before": torch.randn(T, K, O), "actions": torch.randn(T, K, 3),
        "episode_start": torch.rand(T, K) < 0.3, "trial_start": torch.rand(T, K) < 0.3,
    }  # fmt: skip

    def scan(a: Tensor, b: Tensor, hidden: Tensor) -> None:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            raise ValueError("not a tensor")  # its callers are this package's own
        scan_compiled(a, b, hidden)

    states = {"a": torch.rand(K, T, N, 5), "b": torch.rand(K, T, N, 5), "hidden": OBS[..., :1] + 0}
    states["hidden"] = torch.rand(K, N, 5)
    lead = (K, N)
    return [
        Entrance("least squares", plants.update, columns),
        Entrance("scan", scan, states),
        *(
            Entrance(f"{space}", lambda action, s=space: s.checked(action, lead, "K, N"), {
                "action": torch.zeros(K, N, dtype=torch.int64) if isinstance(space, Discrete)
                else torch.zeros(K, N, space.dim),
            })
            for space in (Discrete(3), Continuous(2, -1.0, 2.0))
        ),
    ]  # fmt: skip


TYPED = ("flat", "weight", "state", "a", "b", "z")
"""Arguments whose type is that of the whole calculation: others than theirs may be refused."""


def main(count: int, seed: int) -> None:
    """Throw ``count`` times."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    warnings.simplefilter("error")
    entrances = [e for name, policy in POLICIES.items() for e in of_policy(name, policy)]
    entrances += [*of_worlds(), *of_the_rest()]
    seen: Counter[str] = Counter()
    for turn in range(count):
        entrance = entrances[turn % len(entrances)]
        given, fits, what = {}, True, []
        for name, value in entrance.arguments.items():
            given[name] = value
            if rng.random() < 1 / len(entrance.arguments):
                given[name], fine = bent(value, rng)
                other = getattr(given[name], "dtype", None) != value.dtype
                fits &= bool(fine) and not (other and name in TYPED)
                what.append(f"{name}: {described(given[name])}")
        try:
            entrance.call(**given)
            seen["worked"] += 1
        except ValueError as error:
            if fits:
                raise AssertionError(f"{entrance.name} refused {what or 'what fits'}") from error
            seen["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{entrance.name} broke on {what or 'what fits'}") from error
    for entrance in entrances:  # nothing that came before has broken anything
        entrance.call(**entrance.arguments)
    print(f"{count} calls of {len(entrances)} entrances: {dict(sorted(seen.items()))}")


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.stride()}"
    return type(value).__name__


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
