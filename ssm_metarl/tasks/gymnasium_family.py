"""Task families over any Gymnasium environment: an id or a factory, and what varies in it.

Place in the flow: stage 1, behind `TaskFamily.from_gymnasium`. Everything that no policy fits is
refused here, not by a training later on: spaces, a missing time limit, a parameter that is not
there or no number, a value that no environment can be made with, an object that tasks would share.

Gymnasium is imported inside the functions, to keep ``import ssm_metarl`` cheap.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.settings import in_one_line, require
from ssm_metarl.tasks.attribute_path import parse_path, part
from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant, Setting
from ssm_metarl.tasks.gymnasium_spaces import names_of, spaces_of, widest
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter, Uniform

if TYPE_CHECKING:
    import gymnasium

SUGGESTIONS = 12


def declare(
    plant: GymnasiumPlant,
    parameters: Mapping[str, Uniform | Choice | Setting],
    ood: Mapping[str, Uniform | Choice],
    obs_scale: Sequence[float] | None,
) -> dict[str, Any]:
    """Fields of the family; arguments and errors are those of :meth:`TaskFamily.from_gymnasium`."""
    expected = "a Gymnasium id, or a callable that returns an environment"
    require(
        isinstance(plant.make, str) or callable(plant.make), "environment", expected, plant.make
    )
    unknown = sorted(set(ood) - set(parameters))
    require(not unknown, "ood", f"some of {sorted(parameters)}", unknown)
    require(plant.limit is None or plant.limit >= 1, "max_episode_steps", "at least 1", plant.limit)
    settings = {name: _setting(name, given) for name, given in parameters.items()}
    plant = replace(plant, places=tuple((n, s.at) for n, s in settings.items() if s.at != n))
    with closing(plant.build()) as env:
        spaces, names = spaces_of(env, plant.name), names_of(env.observation_space)
        horizon = time_limit(env)
        if horizon is None:
            raise ValueError(
                f"max_episode_steps: expected a number for {plant.name}, which has no time limit "
                f"of its own, received None; pass from_gymnasium(..., max_episode_steps=200)"
            )
        declared = tuple(
            TaskParameter(
                name=n,
                unit=s.values.unit,
                default=_default(env, plant.name, n, s),
                id=s.values,
                ood=_ood_range(n, s.values, ood.get(n)),
                meaning=f"of {plant.name}" if callable(s.at) else f"attribute of {plant.name}",
            )
            for n, s in settings.items()
        )
    spaces = widest([("", spaces), *_met(plant, declared)])
    scale = None if obs_scale is None else tuple(float(factor) for factor in obs_scale)
    if scale is not None:
        sound = len(scale) == spaces[0] and all(0 < factor < float("inf") for factor in scale)
        expected = f"{spaces[0]} numbers above 0, one for each observation"
        require(sound, "obs_scale", expected, scale)
    return {
        "name": plant.name,
        "gymnasium_id": plant.make if isinstance(plant.make, str) else None,
        "plant": replace(plant, spaces=spaces, horizon=horizon),
        "parameters": declared,
        "obs_names": names if len(set(names)) == len(names) else (),
        "obs_scale": scale,
    }


def time_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """The time limit that an environment has; None where it has none."""
    from gymnasium.wrappers import TimeLimit

    layer: Any = env
    while layer is not layer.unwrapped:
        if isinstance(layer, TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None


def _setting(name: str, given: object) -> Setting:
    if isinstance(given, (Uniform, Choice)):
        given = Setting(name, given)
    if not isinstance(given, Setting):
        raise ValueError(
            f"parameter {name!r}: expected a Uniform, a Choice or a Setting, received {given!r}"
        )
    known = given.default is not None or isinstance(given.at, str)
    expected = (
        "Setting(..., default=...) beside a function, which does not tell the value of the "
        "unmodified environment"
    )
    require(known, f"parameter {name!r}", expected, None)
    return given


def _met(
    plant: GymnasiumPlant, parameters: tuple[TaskParameter, ...]
) -> list[tuple[str, tuple[int, ActionSpace]]]:
    """The spaces at each end of each ID range, and what to call them."""
    met = []
    for parameter in parameters:
        about = f"parameter {parameter.name!r} of {plant.name}"
        for quantile in (0.0, 1 - 1e-9):
            value = parameter.of_kind(parameter.id.at(quantile))
            with closing(plant.build({parameter.name: value})) as env:
                what = f"{about}, {value:g}"
                met.append((what, spaces_of(env, f"{plant.name} ({what})")))
        place = plant.place(parameter.name)
        if callable(place) or len(parse_path(place)) == 1:
            continue
        with closing(plant.build()) as env:  # after two others were changed
            left = _found(env, plant.name, parameter.name, place)
        if left != parameter.default:
            raise ValueError(
                f"{about}: expected an object of each environment's own, received one that all "
                f"share: it was set to {left:g} in one, and stayed so in the next; set it by a "
                f"function that makes a copy"
            )
    return met


def _default(env: gymnasium.Env[Any, Any], plant: str, name: str, setting: Setting) -> float:
    """The unmodified value, of its own type: what is whole or a switch stays so in every task."""
    value = setting.default
    if value is None:
        assert isinstance(setting.at, str)
        value = _found(env, plant, name, setting.at)
    about = f"parameter {name!r} of {plant}"
    if isinstance(value, (bool, np.bool_)):
        if isinstance(setting.values, Choice) and set(setting.values.values) <= {0, 1}:
            return bool(value)
        raise ValueError(
            f"{about}: expected a number, or Choice((False, True)) for a switch, received "
            f"{value!r} as its value"
        )
    if not _is_number(value):
        hint = f"; name one, such as {name}[0]" if np.ndim(value) else ""
        raise ValueError(f"{about}: expected a number, received {in_one_line(value)}{hint}")
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _found(env: gymnasium.Env[Any, Any], plant: str, name: str, path: str) -> Any:
    """What stands at the end of a path."""
    holder: Any = env.unwrapped
    for depth, step in enumerate(parse_path(path)):
        try:
            holder = part(holder, step)
        except Exception:
            kind = plant if depth == 0 else type(holder).__name__
            raise ValueError(
                f"parameter {name!r}: expected an attribute of {kind} (such as "
                f"{', '.join(_suggestions(holder, str(step[1])))}), received a name it does not "
                f"have: {step[1]}"
            ) from None
    return holder


def _suggestions(holder: Any, wrong: str) -> list[str]:
    """Names that a user may have meant: near ones, of numbers, and of what holds numbers."""
    if isinstance(holder, Mapping):
        public = {str(key): value for key, value in holder.items()}
    else:
        public = {n: _quietly(holder, n) for n in dir(holder) if not n.startswith("_")}
    near = difflib.get_close_matches(wrong, public, n=3)
    numbers = [n for n in sorted(public) if _is_number(public[n])]
    nested = [n for n in sorted(public) if _holds_numbers(public[n])]
    return list(dict.fromkeys([*near, *numbers, *nested]))[:SUGGESTIONS]


def _quietly(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name)
    except Exception:  # of a property that is not ready
        return None


def _holds_numbers(value: Any) -> bool:
    """Whether a path may lead on from here."""
    if isinstance(value, np.ndarray):
        return bool(value.size > 0 and np.issubdtype(value.dtype, np.floating))
    return any(_is_number(x) for x in getattr(value, "__dict__", {}).values())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _ood_range(
    name: str, id_range: Uniform | Choice, given: Uniform | Choice | None
) -> Uniform | Choice:
    """The given OOD range, checked, or half the ID range's width on either side of it."""
    if isinstance(id_range, Choice):
        return given or id_range
    for low, high in given.intervals if isinstance(given, Uniform) else ():
        if any(low < b and a < high for a, b in id_range.intervals):
            raise ValueError(
                f"ood range of {name!r}: expected none of the ID range "
                f"{list(id_range.intervals)}, received [{low:g}, {high:g}]"
            )
    if given is not None:
        return given
    low = min(a for a, _ in id_range.intervals)
    high = max(b for _, b in id_range.intervals)
    half_width = (high - low) / 2
    # A mass or a length must not become negative: a range keeps the sign that it has.
    below = min(half_width, low / 2) if low >= 0 else half_width
    above = min(half_width, -high / 2) if high <= 0 else half_width
    around = [(a, b) for a, b in ((low - below, low), (high, high + above)) if a < b]
    return Uniform(*around[0], unit=id_range.unit, also=tuple(around[1:]))
