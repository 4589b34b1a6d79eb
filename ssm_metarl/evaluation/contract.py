"""What every task family promises, checked: of the package's own, and of a user's.

Place in the flow: stage 7, behind ``ssm-metarl families check`` and the tests, which run it over
the registry. Each check is a function that returns what it found, or raises ValueError with what is
wrong; the first ones decide whether the others have anything to stand on.

Everything is asked of the worlds that trainings use, but for two that need a plant's state: the
`reflection`, which starts from mirrored states, and the sketch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import Discrete
from ssm_metarl.env_runner.observation_scale import measured_sizes
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.reflection import Unchecked, check_reflection
from ssm_metarl.methods.told import ExpertActor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.sketch import Shape
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter
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
    findings = [_found("steps", partial(_steps, family))]
    if findings[0].verdict != "wrong":
        findings.append(_found("repeats itself", partial(_repeats, family)))
    sound = all(finding.verdict != "wrong" for finding in findings)
    for parameter in family.parameters if sound else ():
        matters = partial(_matters, family, parameter)
        findings.append(_found(f"parameter {parameter.name}", matters, said="note"))
    for name, check in CHECKS.items():
        if sound or name == "categories":
            findings.append(_found(name, partial(check, family)))
        else:
            findings.append(Finding(name, "unchecked", "the plant does not step as it should"))
    return findings


def _found(name: str, check: Callable[[], str], said: Verdict = "ok") -> Finding:
    """What a check found: ``said`` is the verdict where it has something to say."""
    try:
        message = check()
    except Unchecked as reason:
        return Finding(name, "unchecked", str(reason))
    except Exception as error:  # a stranger's code
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Finding(name, "wrong", kind + " ".join(str(error).split()))
    return Finding(name, said if message else "ok", message)


def _matters(family: TaskFamily, parameter: TaskParameter) -> str:
    """Whether a parameter matters, alone, and how."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        family.verify_parameter(parameter)
    said = [str(w.message) for w in told]
    # a stranger's code warns, too, of what is no concern of the parameter
    return "; ".join(line for line in said if line.startswith(f"parameter {parameter.name!r} "))


def _run(
    tasks: Tasks, *, seed: int, actor: Actor | None = None, most: int | None = None
) -> tuple[Rollout, int]:
    """An episode in two worlds a task, of random actions for None, and the time limit.

    Where ``most`` is given: that many steps on end, or as many as the limit.
    """
    with closing(make_worlds(tasks, 2, seed=seed, purpose=PURPOSE)) as worlds:
        limit = worlds.max_episode_steps
        if limit > LONGEST:
            raise ValueError(
                f"episodes: expected an end within {LONGEST:,} steps, received a time limit of "
                f"{limit:,}: it never ends"
            )
        steps = min(limit, most or limit)
        noise = TaskNoise(0, f"{PURPOSE}-action", tasks.indices)
        actor = actor or random_actor(worlds, noise, steps)
        return collect_rollout(worlds, actor, steps, autoreset=most is not None), limit


def _stepped(tasks: Tasks, num_envs: int, actions: Iterable[Tensor], *, seed: int) -> EnvStep:
    """Where actions (K, N, ...) lead one after the other, (T, K, N, ...) each."""
    with closing(make_worlds(tasks, num_envs, seed=seed, purpose=PURPOSE)) as worlds:
        worlds.reset()
        steps = [worlds.step(action) for action in actions]
    return EnvStep(*map(torch.stack, zip(*steps, strict=True)))


def _steps(family: TaskFamily) -> str:
    """Shapes, finite numbers, and an end."""
    obs_dim, _ = family.spaces
    ran, limit = _run(family.sample("id", 4, seed=0, stream=PURPOSE), seed=0)
    shapes = {"obs": (4, 2, obs_dim), "next_obs": (4, 2, obs_dim), "reward": (4, 2)}
    for name, shape in shapes.items():
        received = tuple(getattr(ran, name).shape[1:])
        if received != shape:
            raise ValueError(f"{name}: expected shape {shape} of 4 x 2 worlds, received {received}")
    for name in shapes:
        value = getattr(ran, name)[ran.mask]
        if not value.isfinite().all():
            wrong = value[~value.isfinite()][0]
            raise ValueError(f"{name}: expected finite numbers, received {float(wrong)}")
    if not ((ran.terminated | ran.truncated) & ran.mask).any(0).all():
        raise ValueError(f"episodes: expected an end within {limit} steps, received none")
    if family.return_bounds is not None:
        (low, high), returns = family.return_bounds, ran.episode_returns()
        least, most = float(returns.min()), float(returns.max())
        if not (low <= least and most <= high):
            raise ValueError(
                f"return_bounds: expected {low:g} to {high:g}, received returns from "
                f"{least:g} to {most:g}"
            )
    lengths = ran.mask.sum(0)
    return f"random episodes of {lengths.min()} to {lengths.max()} steps, limit {limit}"


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
    return _run(family.sample("id", 3, seed=1, stream=PURPOSE), seed=1, most=DRIVEN)[0]


def _categories(family: TaskFamily) -> str:
    """Values drawn, the default and what disturbances make are among the declared."""
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
            between = parameter.between(ends[0], ends[1], torch.linspace(0, 1, 9).double())
            for strange in between[~torch.isin(between, ends)].tolist():
                raise ValueError(
                    f"parameter {parameter.name!r}: expected one of its values while it drifts, "
                    f"received {strange:g}"
                )
    return ", ".join(p.name for p in family.parameters if p.is_category)


def _check_values(tasks: Tasks, what: str) -> None:
    for parameter in tasks.family.parameters:
        for value in set(tasks.values[parameter.name].tolist()):
            try:
                parameter.check(value)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None


def _clips(family: TaskFamily) -> str:
    """What lies beyond a bound does what the bound does: a code of an action is clipped there."""
    _, space = family.spaces
    if isinstance(space, Discrete):
        return f"{space.n} choices"
    tasks = family.sample("id", 4, seed=3, stream=PURPOSE)

    def held(action: Tensor) -> EnvStep:
        return _stepped(tasks, 2, [action.float().expand(4, 2, -1).contiguous()] * 10, seed=3)

    low, high = torch.tensor(space.bounds).double().unbind(-1)
    for name, bound, outwards in (("lower", low, low - high), ("upper", high, high - low)):
        for factor in (0.5, 9.0):
            at, beyond = held(bound), held(bound + factor * outwards)
            for what in ("obs", "reward", "terminated"):
                one, other = getattr(at, what).double(), getattr(beyond, what).double()
                if not torch.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"actions: expected beyond the {name} bound what the bound does, received "
                        f"another {what}: the plant does not clip them"
                    )
    return f"bounds {', '.join(f'[{a:g}, {b:g}]' for a, b in space.bounds)}"


def _dead_time(family: TaskFamily) -> str:
    """After how many steps another action shows, in tasks in and out of range."""
    splits: tuple[Split, ...] = ("id", "ood")
    parts = [family.sample(split, 24, seed=5, stream=PURPOSE) for split in splits]
    values = {n: torch.cat([part.values[n] for part in parts]) for n in parts[0].values}
    tasks = Tasks(family, values, tuple(range(48)))
    steps = family.dead_time + BEYOND
    _, space = family.spaces
    rng = seeding.generator(4, PURPOSE)
    lead = (len(tasks), 4)
    before = [space.random(rng, lead[0] * 4).unflatten(0, lead) for _ in range(2)]
    after = [space.random(rng, lead[0] * 4).unflatten(0, lead) for _ in range(steps)]
    if isinstance(space, Discrete):
        pair = [torch.zeros(lead, dtype=torch.int64), torch.full(lead, space.n - 1)]
    else:
        bounds = torch.tensor(space.bounds).double().unbind(-1)
        pair = [bound.float().expand(*lead, -1).contiguous() for bound in bounds]
    one, other = (
        _stepped(tasks, 4, (a.to(action.dtype) for a in (*before, action, *after)), seed=4)
        for action in pair
    )
    differs = (one.obs != other.obs)[len(before) :].flatten(2).any(-1)  # (steps + 1, K)
    shown = differs.any(0)
    if not shown.any() and not one.reward[len(before) :].equal(other.reward[len(before) :]):
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


def _experts(family: TaskFamily) -> str:
    """Each expert, told the task, has more than random actions."""
    if not family.experts:
        raise Unchecked("none is declared")
    tasks = family.sample("id", 16, seed=6, stream=PURPOSE)
    chance = _run(tasks, seed=6)[0].episode_returns()
    told = []
    for name, make in family.experts.items():
        with torch.no_grad():
            ran, _ = _run(tasks, seed=6, actor=ExpertActor(make(tasks), tasks, 2))
        gain = float((ran.episode_returns() - chance).mean())
        if not gain > 0:
            raise ValueError(
                f"expert {name!r}: expected more than random actions, received "
                f"{gain:+.1f} beside them"
            )
        told.append(f"{name} {gain:+.1f} over random actions")
    return ", ".join(told)


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
