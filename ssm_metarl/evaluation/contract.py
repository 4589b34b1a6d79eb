"""What every task family promises, checked: of the package's own, and of a user's.

Place in the flow: stage 7, behind ``ssm-metarl families check`` and the tests, which run it over
the registry. Each check is a function that returns what it found, or raises ValueError with what is
wrong; the first ones decide whether the others have anything to stand on.

Everything is asked of the worlds that trainings use, but for two that need a plant's state in their
hands: the reflection, which starts from mirrored states, and the sketch.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.env_runner.observation_scale import measured_sizes
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds, observation_and_action
from ssm_metarl.evaluation.baselines import ExpertActor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
from ssm_metarl.tasks.sketch import Shape
from ssm_metarl.tasks.task_family import Choice, Split, TaskFamily, Tasks
from ssm_metarl.types import Actor, EnvStep, Rollout

PURPOSE = "contract"
LONGEST = 100_000
"""Steps within which an episode must end."""
DRIVEN = 300
"""Steps for which worlds are driven, at most."""
SIZES = (1e-3, 10.0)
"""Of scaled observations, as random steps meet them."""
LARGEST_STATE = 8
"""Size of states up to which every way to mirror them is tried."""
BEYOND = 8
"""Steps beyond the declared dead time for which an effect is waited."""

Verdict = Literal["ok", "note", "wrong", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    verdict: Verdict
    """"note": nothing is wrong, but whoever uses the family should know."""
    message: str = ""


class Unchecked(Exception):
    """There is nothing to check, or no way to."""


def check_contract(family: TaskFamily) -> list[Finding]:
    """Run every check on a family, the ones that others stand on first."""
    findings = [_found("steps", _steps, family)]
    if findings[0].verdict != "wrong":
        findings.append(_found("repeats itself", _repeats, family))
    sound = all(finding.verdict != "wrong" for finding in findings)
    if sound:
        findings += [_parameter(family, parameter.name) for parameter in family.parameters]
    for name, check in CHECKS.items():
        if sound or name == "categories":
            findings.append(_found(name, check, family))
        else:
            findings.append(Finding(name, "unchecked", "the plant does not step as it should"))
    return findings


def _found(name: str, check: Callable[[TaskFamily], str], family: TaskFamily) -> Finding:
    try:
        return Finding(name, "ok", check(family))
    except Unchecked as reason:
        return Finding(name, "unchecked", str(reason))
    except Exception as error:  # a stranger's code
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Finding(name, "wrong", kind + " ".join(str(error).split()))


def _parameter(family: TaskFamily, name: str) -> Finding:
    """Whether a parameter matters, alone, and how."""
    parameter = next(p for p in family.parameters if p.name == name)

    def matters(family: TaskFamily) -> str:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            family.verify_parameter(parameter)
        return "; ".join(str(w.message) for w in told)

    finding = _found(f"parameter {name}", matters, family)
    noted = finding.verdict == "ok" and finding.message
    return Finding(finding.check, "note", finding.message) if noted else finding


def _steps(family: TaskFamily) -> str:
    """Shapes, finite numbers, and an end."""
    tasks = family.sample("id", 4, seed=0, stream=PURPOSE)
    obs_dim, _ = observation_and_action(family)
    with closing(make_worlds(tasks, 2, seed=0, purpose=PURPOSE)) as worlds:
        limit = worlds.max_episode_steps
        if limit > LONGEST:
            raise ValueError(
                f"episodes: expected an end within {LONGEST:,} steps, received a time limit of "
                f"{limit:,}: it never ends"
            )
        ran = collect_rollout(worlds, _random(worlds, tasks, limit), limit)
    for name, shape in (
        ("obs", (4, 2, obs_dim)),
        ("next_obs", (4, 2, obs_dim)),
        ("reward", (4, 2)),
    ):
        received = tuple(getattr(ran, name).shape[1:])
        if received != shape:
            raise ValueError(f"{name}: expected shape {shape} of 4 x 2 worlds, received {received}")
    for name in ("obs", "next_obs", "reward"):
        value = getattr(ran, name)[ran.mask]
        if not value.isfinite().all():
            wrong = value[~value.isfinite()][0]
            raise ValueError(f"{name}: expected finite numbers, received {float(wrong)}")
    if not ((ran.terminated | ran.truncated) & ran.mask).any(0).all():
        raise ValueError(f"episodes: expected an end within {limit} steps, received none")
    lengths = ran.mask.sum(0).flatten().tolist()
    if family.return_bounds is not None:
        low, high = family.return_bounds
        returns = ran.episode_returns()
        if not (low <= float(returns.min()) and float(returns.max()) <= high):
            raise ValueError(
                f"return_bounds: expected {low:g} to {high:g}, received returns from "
                f"{float(returns.min()):g} to {float(returns.max()):g}"
            )
    return f"random episodes of {min(lengths)} to {max(lengths)} steps, limit {limit}"


def _repeats(family: TaskFamily) -> str:
    """The same seed and actions twice."""
    first, second = (_driven(family) for _ in range(2))
    if first.obs.shape != second.obs.shape:
        raise ValueError("expected the same episodes each time, received others")
    for name in ("next_obs", "reward", "terminated"):
        one, other = (getattr(ran, name)[ran.mask].double() for ran in (first, second))
        if not torch.equal(one, other):
            raise ValueError(
                f"expected the same {name} from the same seed and actions each time, received "
                f"others, by up to {float((one - other).abs().max()):g}: randomness of its own"
            )
    return ""


def _driven(family: TaskFamily) -> Rollout:
    tasks = family.sample("id", 3, seed=1, stream=PURPOSE)
    with closing(make_worlds(tasks, 2, seed=1, purpose=PURPOSE)) as worlds:
        steps = min(worlds.max_episode_steps, DRIVEN)
        return collect_rollout(worlds, _random(worlds, tasks, steps), steps, autoreset=True)


def _random(worlds: object, tasks: Tasks, steps: int) -> Actor:
    noise = TaskNoise(0, f"{PURPOSE}-action", tasks.indices)
    return random_actor(worlds, noise, steps)  # type: ignore[arg-type]


def _categories(family: TaskFamily) -> str:
    """Values drawn, the default and what disturbances make are among the declared."""
    named = [p.name for p in family.parameters if p.is_category]
    splits: tuple[Split, ...] = ("train", "id", "ood")
    for split in splits:
        tasks = family.sample(split, 64, seed=0, stream=PURPOSE)
        _check_values(tasks, f"drawn {split}")
        for name, disturb in family.disturbances.items():
            _check_values(disturb(tasks), f"after the disturbance {name!r}")
    _check_values(family.task(), "default")
    for parameter in family.parameters:
        if isinstance(parameter.id, Choice) and len(parameter.id.values) > 1:
            ends = torch.tensor(parameter.id.values[:2]).double()
            shares = torch.linspace(0, 1, 9).double()
            between = parameter.between(ends[0], ends[1], shares)
            strange = between[~torch.isin(between, ends)]
            if strange.numel() > 0:
                raise ValueError(
                    f"parameter {parameter.name!r}: expected one of its values while it drifts, "
                    f"received {float(strange[0]):g}"
                )
    return ", ".join(named)


def _check_values(tasks: Tasks, what: str) -> None:
    for parameter in tasks.family.parameters:
        for value in set(tasks.values[parameter.name].tolist()):
            try:
                parameter.check(value)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None


def _reflection(family: TaskFamily) -> str:
    """Mirrored states and actions give mirrored observations, and the same rewards and ends."""
    if not family.reflection:
        raise Unchecked("none is declared")
    tasks = family.sample("id", 8, seed=2, stream=PURPOSE)
    _, space = observation_and_action(family)
    if isinstance(space, Continuous) and any(low != -high for low, high in space.bounds):
        raise ValueError(f"reflection: expected bounds of actions that mirror, received {space}")
    rng = seeding.generator(2, PURPOSE)
    actions = [space.random(rng, 64).unflatten(0, (8, 8)) for _ in range(10)]
    state, step = _batched_states(tasks) if family.dynamics else _gymnasium_states(tasks)
    factors = torch.tensor(family.reflection, dtype=torch.float64)

    def wrong_in(pattern: tuple[float, ...]) -> Tensor:
        """Which observations are not mirrored, where states are mirrored so; (O + 1,)."""
        one, other = state, state * torch.tensor(pattern, dtype=torch.float64)
        running = torch.ones(8, 8, dtype=torch.bool)
        wrong = torch.zeros(len(factors) + 1, dtype=torch.bool)
        for action in actions:
            one, seen, reward, ends = step(one, action)
            other, mirrored, same_reward, same_ends = step(other, _mirrored(space, action))
            expected = torch.cat([factors * seen, reward[..., None], ends[..., None]], dim=-1)
            met = torch.cat([mirrored, same_reward[..., None], same_ends[..., None]], dim=-1)
            apart = _apart(met[running], expected[running])
            wrong |= torch.cat([apart[:-2], apart[-2:].any()[None]])
            running = running & ~ends
            if not running.any():
                break
        return wrong

    patterns = [(-1.0,) * state.shape[-1]]
    if state.shape[-1] <= LARGEST_STATE:
        patterns += list(itertools.product((-1.0, 1.0), repeat=state.shape[-1]))
    best = min(map(wrong_in, patterns), key=lambda wrong: int(wrong.sum()))
    if not best.any():
        return f"factors {', '.join(f'{factor:+g}' for factor in family.reflection)}"
    names = [*(family.obs_names or [f"obs_{i}" for i in range(len(factors))]), "reward or end"]
    wrong = ", ".join(name for name, bad in zip(names, best.tolist(), strict=True) if bad)
    raise ValueError(
        f"reflection: expected the mirrored history to give what {family.reflection} says, "
        f"received something else in {wrong}"
    )


StateStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""States (K, N, S) and actions to the next states, observations, rewards and ends."""


def _batched_states(tasks: Tasks) -> tuple[Tensor, StateStep]:
    """Random states (K, 8, S) of batched physics, and how to step from any."""
    dynamics = tasks.family.dynamics
    assert dynamics is not None
    lead = (len(tasks), 8)
    parameters = {n: v[:, None].expand(lead) for n, v in tasks.values.items()}
    spread = torch.tensor(dynamics.start_spread, dtype=torch.float64)
    uniform = torch.from_numpy(seeding.generator(3, PURPOSE).random((2, *lead, len(spread))))

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        after, reward, ends = dynamics.step(state.contiguous(), action, parameters)
        return after, dynamics.observe(after, parameters), reward, ends

    return dynamics.initial_state(uniform[0]) + (2 * uniform[1] - 1) * spread, step


def _gymnasium_states(tasks: Tasks) -> tuple[Tensor, StateStep]:
    """The same of Gymnasium environments that keep their state in ``state``, as many do.

    Raises:
        Unchecked: They do not.
    """
    worlds = [GymnasiumWorld(tasks.family, values) for values in tasks.as_dicts()]
    _, space = observation_and_action(tasks.family)
    rng = seeding.generator(3, PURPOSE)
    states = []
    for world in worlds:
        for seed in range(8):
            world.reset(seed)
            for action in space.random(rng, seed):
                world.step(world.native(action.numpy()))
            states.append(getattr(world.env.unwrapped, "state", None))
    if not all(isinstance(s, (np.ndarray, tuple, list)) and np.ndim(s) == 1 for s in states):
        raise Unchecked("the environment keeps no state under that name")
    kind: Callable[[Any], Any] = np.array if isinstance(states[0], np.ndarray) else tuple

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = []
        for k, world in enumerate(worlds):
            plant: Any = world.env.unwrapped
            for start, chosen in zip(state[k].tolist(), action[k], strict=True):
                world.reset(0)
                plant.state = kind(start)
                obs, reward, ends, _ = world.step(world.native(chosen.numpy()))
                rows.append((list(plant.state), obs.tolist(), reward, ends))
        columns = (torch.tensor(column).unflatten(0, (8, 8)) for column in zip(*rows, strict=True))
        after, obs, reward, ends = columns
        return after.double(), obs.double(), reward.double(), ends

    return torch.tensor(np.array(states, dtype=float)).unflatten(0, (8, 8)), step


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Which of the last axis's numbers differ anywhere."""
    same = torch.isclose(one.double(), other.double(), rtol=1e-5, atol=1e-6)
    return ~same.flatten(0, -2).all(0)


def _mirrored(space: Discrete | Continuous, action: Tensor) -> Tensor:
    return space.n - 1 - action if isinstance(space, Discrete) else -action


def _clips(family: TaskFamily) -> str:
    """What lies beyond a bound does what the bound does: a code of an action is clipped there."""
    _, space = observation_and_action(family)
    if isinstance(space, Discrete):
        return f"{space.n} choices"
    low, high = torch.tensor(space.bounds).double().unbind(-1)
    for name, bound, outwards in (("lower", low, low - high), ("upper", high, high - low)):
        for factor in (0.5, 9.0):
            at, beyond = (
                _held(family, action.float()) for action in (bound, bound + factor * outwards)
            )
            for what in ("obs", "reward", "terminated"):
                one, other = getattr(at, what).double(), getattr(beyond, what).double()
                if not torch.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"actions: expected beyond the {name} bound what the bound does, received "
                        f"another {what}: the plant does not clip them"
                    )
    return f"bounds {', '.join(f'[{a:g}, {b:g}]' for a, b in space.bounds)}"


def _held(family: TaskFamily, action: Tensor) -> EnvStep:
    """Where ten steps of one continuous action lead."""
    tasks = family.sample("id", 4, seed=3, stream=PURPOSE)
    with closing(make_worlds(tasks, 2, seed=3, purpose=PURPOSE)) as worlds:
        worlds.reset()
        steps = [worlds.step(action.expand(4, 2, -1).contiguous()) for _ in range(10)]
    return EnvStep(*map(torch.stack, zip(*steps, strict=True)))


def _dead_time(family: TaskFamily) -> str:
    """After how many steps another action shows, in tasks in and out of range."""
    tasks = _spread_tasks(family)
    steps = family.dead_time + BEYOND
    _, space = observation_and_action(family)
    rng = seeding.generator(4, PURPOSE)
    lead = (len(tasks), 4)
    before = [space.random(rng, lead[0] * 4).unflatten(0, lead) for _ in range(2)]
    after = [space.random(rng, lead[0] * 4).unflatten(0, lead) for _ in range(steps)]
    if isinstance(space, Discrete):
        pair = [torch.zeros(lead, dtype=torch.int64), torch.full(lead, space.n - 1)]
    else:
        bounds = torch.tensor(space.bounds).double().unbind(-1)
        pair = [bound.float().expand(*lead, -1).contiguous() for bound in bounds]
    seen = []
    for action in pair:
        with closing(make_worlds(tasks, 4, seed=4, purpose=PURPOSE)) as worlds:
            worlds.reset()
            ran = [worlds.step(a.to(action.dtype)) for a in (*before, action, *after)]
        seen.append(torch.stack([step.obs for step in ran[len(before) :]]))
    differs = (seen[0] != seen[1]).flatten(2).any(-1)  # (steps + 1, K)
    shown = differs.any(0)
    if not shown.any():
        raise ValueError(
            f"actions: expected that one shows within {steps + 1} steps, received nothing that "
            f"depends on it"
        )
    longest = int(differs.int().argmax(0)[shown].max())
    if longest != family.dead_time:
        raise ValueError(
            f"dead_time: expected {family.dead_time} steps at most, as declared, and in some task, "
            f"received an effect after {longest}"
        )
    return f"{longest} steps at most"


def _spread_tasks(family: TaskFamily) -> Tasks:
    """Tasks in and out of range."""
    splits: tuple[Split, ...] = ("id", "ood")
    parts = [family.sample(split, 24, seed=5, stream=PURPOSE) for split in splits]
    values = {n: torch.cat([part.values[n] for part in parts]) for n in parts[0].values}
    return Tasks(family, values, tuple(range(48)))


def _experts(family: TaskFamily) -> str:
    """Each expert, told the task, has more than random actions."""
    if not family.experts:
        raise Unchecked("none is declared")
    tasks = family.sample("id", 16, seed=6, stream=PURPOSE)
    chance = _returns(tasks, None)
    told = []
    for name, make in family.experts.items():
        gain = _returns(tasks, ExpertActor(make(tasks), tasks, 2)) - chance
        if not float(gain.mean()) > 0:
            raise ValueError(
                f"expert {name!r}: expected more than random actions, received "
                f"{float(gain.mean()):+.1f} beside them"
            )
        told.append(f"{name} {float(gain.mean()):+.1f} over random actions")
    return ", ".join(told)


@torch.no_grad()
def _returns(tasks: Tasks, actor: Actor | None) -> Tensor:
    """Returns of each task, of random actions for None."""
    with closing(make_worlds(tasks, 2, seed=6, purpose=PURPOSE)) as worlds:
        steps = worlds.max_episode_steps
        ran = collect_rollout(worlds, actor or _random(worlds, tasks, steps), steps)
    return ran.episode_returns().flatten()


def _scale(family: TaskFamily) -> str:
    """Scaled observations are of the size of 1."""
    if family.obs_scale is None:
        return "measured where a training begins"
    sizes = measured_sizes(family)
    names = family.obs_names or tuple(f"obs_{i}" for i in range(len(sizes)))
    for name, size, factor in zip(names, sizes, family.obs_scale, strict=True):
        scaled = size * factor
        if size > 0 and not SIZES[0] <= scaled <= SIZES[1]:
            raise ValueError(
                f"obs_scale: expected a factor that brings {name} to about 1, received {factor:g}, "
                f"which makes {scaled:.3g} of {size:.3g}"
            )
    return ""


def _sketch(family: TaskFamily) -> str:
    """States of random steps are drawn, within what is shown at first."""
    if family.sketch is None:
        raise Unchecked("none is declared")
    if family.dynamics is None:
        states = _driven(family).obs[:, 0, 0].tolist()
    else:
        uniform = seeding.generator(7, PURPOSE).random((20, len(family.dynamics.start_spread)))
        states = family.dynamics.initial_state(torch.from_numpy(uniform)).tolist()
    shapes = [shape for state in states for shape in family.sketch.draw(state, family.default_task)]
    if not shapes:
        raise ValueError("sketch: expected shapes, received none")
    for shape in shapes:
        if not isinstance(shape, Shape):
            raise ValueError(f"sketch: expected Shapes, received {type(shape).__name__}")
        numbers = [shape.size, *(x for point in shape.points for x in point)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"sketch: expected finite points, received {shape}")
    return f"{len(shapes) // len(states)} shapes"


CHECKS: dict[str, Callable[[TaskFamily], str]] = {
    "categories": _categories,
    "reflection": _reflection,
    "action codes": _clips,
    "dead time": _dead_time,
    "experts": _experts,
    "observation scale": _scale,
    "sketch": _sketch,
}
