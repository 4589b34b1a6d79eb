"""What every task family promises, checked: of the package's own, and of a user's.

Place in the flow: stage 7, behind ``ssm-metarl families check`` and the tests, which run it over
the registry. Each check is a function that returns what it found, or raises ValueError with what is
wrong; the first ones decide whether the others have anything to stand on.

Everything is asked of the worlds that trainings use, but for two that need a plant's state in their
hands: the `reflection`, which starts from mirrored states, and the sketch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import Discrete
from ssm_metarl.env_runner.observation_scale import measured_sizes
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds, observation_and_action
from ssm_metarl.evaluation.reflection import Unchecked, check_reflection
from ssm_metarl.methods.told import ExpertActor
from ssm_metarl.seeding import TaskNoise
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
        said = [str(w.message) for w in told]
        # a stranger's code warns, too, of what is no concern of the parameter
        return "; ".join(line for line in said if line.startswith(f"parameter {name!r} "))

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
    seen, paid = [], []
    for action in pair:
        with closing(make_worlds(tasks, 4, seed=4, purpose=PURPOSE)) as worlds:
            worlds.reset()
            ran = [worlds.step(a.to(action.dtype)) for a in (*before, action, *after)]
        seen.append(torch.stack([step.obs for step in ran[len(before) :]]))
        paid.append(torch.stack([step.reward for step in ran[len(before) :]]))
    differs = (seen[0] != seen[1]).flatten(2).any(-1)  # (steps + 1, K)
    shown = differs.any(0)
    if not shown.any() and not paid[0].equal(paid[1]):
        raise Unchecked("actions change rewards alone, which adapting by prediction cannot see")
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
    "reflection": check_reflection,
    "action codes": _clips,
    "dead time": _dead_time,
    "experts": _experts,
    "observation scale": _scale,
    "sketch": _sketch,
}
