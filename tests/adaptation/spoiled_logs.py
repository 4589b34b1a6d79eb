"""Logs of cart-poles, honest ones and ones with a fault, as their owners would have written them.

The plant is written out here once more, so that it can be run at any rate, with a late actuator,
and logged by sensors of one's own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Log = list[tuple[NDArray, NDArray]]
"""Episodes: observations (T + 1, 4), and actions (T,)."""
Plant = Mapping[str, float]
NAMES = ("x", "x_dot", "theta", "theta_dot")
X, V, THETA, OMEGA = range(4)
TIME_STEP = 0.02


def step(plant: Plant, state: NDArray, action: float, time_step: float = TIME_STEP) -> NDArray:
    _, v, theta, omega = state
    total, mass_length = 1 + plant["mass"], plant["mass"] * plant["length"]
    force = plant["sign"] * plant["force"] * (2 * action - 1)
    sin, cos = np.sin(theta), np.cos(theta)
    push = (force + mass_length * omega**2 * sin) / total
    turn = (plant["gravity"] * sin - cos * push) / (
        plant["length"] * (4 / 3 - plant["mass"] * cos**2 / total)
    )
    return state + time_step * np.array([v, push - mass_length * turn * cos / total, omega, turn])


def run(
    plant: Plant,
    num_steps: int,
    rng: np.random.Generator,
    *,
    time_step: float = TIME_STEP,
    substeps: int = 1,
    hold: int = 1,
    delay: int = 0,
    jitter: float = 0.0,
    act: Callable[[NDArray], int] | None = None,
) -> Log:
    """Episodes of random actions, or of a controller's, with so many rows in all."""
    log: Log = []
    while num_steps > 0:
        state, ended, line = rng.uniform(-0.05, 0.05, 4), False, [0.5] * delay
        observations, actions = [state], []
        while num_steps > 0 and not ended:
            if len(actions) % hold == 0:
                action = int(rng.integers(2)) if act is None else act(state)
            line.append(action)
            now, length = line.pop(0), time_step * (1 + jitter * rng.uniform(-1, 1))
            for _ in range(substeps):
                state = step(plant, state, now, length)
            ended = abs(state[X]) > 2.4 or abs(state[THETA]) > np.radians(12)
            observations.append(state)
            actions.append(action)
            num_steps -= 1
        log.append((np.array(observations), np.array(actions)))
    return log


def crossing(plant: Plant, rng: np.random.Generator, before: int = 60, after: int = 20) -> Log:
    """The actuator was turned round after so many steps."""
    return run({**plant, "sign": -plant["sign"]}, before, rng) + run(plant, after, rng)


def controlled(plant: Plant, num_steps: int, rng: np.random.Generator) -> Log:
    """In closed loop, by gains that hold any of these plants."""

    def act(state: NDArray) -> int:
        lean = state @ np.array([0.05, 0.1, 1, 0.3])
        return int(lean * plant["sign"] > 0)

    return run(plant, num_steps, rng, act=act)


def scaled(log: Log, **factors: float) -> Log:
    """Sensors with another gain: -1 for a mirrored one, 0 for one that is not there."""
    gains = np.array([factors.get(name, 1.0) for name in NAMES])
    return [(obs * gains, action) for obs, action in log]


def late(log: Log) -> Log:
    """Each action stands in the row after its own."""
    return [(obs[1:], action[:-1]) for obs, action in log if len(action) > 1]


def differences(log: Log, time_step: float = TIME_STEP) -> Log:
    """Velocities are backward differences of positions; at an episode's start there is none."""
    found = []
    for obs, action in log:
        obs = obs.copy()
        obs[1:, [V, OMEGA]] = np.diff(obs[:, [X, THETA]], axis=0) / time_step
        obs[0, [V, OMEGA]] = 0
        found.append((obs, action))
    return found


def old_velocities(log: Log) -> Log:
    found = []
    for obs, action in log:
        if len(action) > 1:
            seen = obs[1:].copy()
            seen[:, [V, OMEGA]] = obs[:-1, [V, OMEGA]]
            found.append((seen, action[1:]))
    return found


def reversed_time(log: Log) -> Log:
    return [(obs[::-1], action[::-1]) for obs, action in reversed(log)]


def twice(log: Log) -> Log:
    return [(np.repeat(obs, 2, 0), np.repeat(np.append(a, a[-1]), 2)[:-1]) for obs, a in log]


def frozen_for(log: Log, rng: np.random.Generator, rows: int = 5) -> Log:
    return _in_longest(log, rng, lambda obs, i: obs.__setitem__(slice(i, i + rows), obs[i]), rows)


def with_row(log: Log, rng: np.random.Generator, value: float) -> Log:
    """All sensors say the same in one row."""
    return _in_longest(log, rng, lambda obs, i: obs.__setitem__(i, value), 1)


def with_spike(log: Log, rng: np.random.Generator) -> Log:
    place = int(rng.integers(4))
    return _in_longest(log, rng, lambda obs, i: obs.__setitem__((i, place), 9999.0), 1)


def _in_longest(
    log: Log, rng: np.random.Generator, change: Callable[[NDArray, int], None], rows: int
) -> Log:
    longest = max(range(len(log)), key=lambda i: len(log[i][1]))
    log = list(log)
    obs = log[longest][0].copy()
    change(obs, int(rng.integers(1, max(2, len(obs) - rows - 1))))
    log[longest] = (obs, log[longest][1])
    return log


def joined(log: Log) -> Log:
    """No column tells episodes apart; actions are filled in where there were none."""
    actions = np.concatenate([np.append(action, 0) for _, action in log])[:-1]
    return [(np.concatenate([obs for obs, _ in log]), actions)]


def lost(log: Log, rng: np.random.Generator, share: float) -> Log:
    found = []
    for obs, action in log:
        kept = np.append(rng.random(len(action)) >= share, True)
        rows, actions = obs[kept], action[kept[:-1]]
        if len(rows) > 1:
            found.append((rows, actions[: len(rows) - 1]))
    return found


def wrong_actions(log: Log, rng: np.random.Generator, share: float) -> Log:
    return [(obs, np.where(rng.random(len(a)) < share, 1 - a, a)) for obs, a in log]


def noisy(log: Log, rng: np.random.Generator, size: float) -> Log:
    return [(obs + rng.normal(0, size, obs.shape) * np.array([1, 1, 0.3, 1]), a) for obs, a in log]


def shifted(log: Log, offset: NDArray) -> Log:
    return [(obs + offset, action) for obs, action in log]


def rounded(log: Log) -> Log:
    return [(obs.round(2), action) for obs, action in log]


@dataclass(frozen=True)
class Row:
    """A kind of log, and what may become of it."""

    make: Callable[[Plant, np.random.Generator], Log]
    reasons: frozenset[str] = frozenset()
    """Right reasons to refuse it; empty where it must be kept."""
    kept: float = 0.0
    """Least share that must be kept."""


def refused(make: Callable[[Plant, np.random.Generator], Log], *reasons: str) -> Row:
    return Row(make, frozenset(reasons))


HONEST = {
    "twenty steps": Row(lambda p, g: run(p, 20, g), kept=0.99),
    "two hundred": Row(lambda p, g: run(p, 200, g), kept=0.99),
    "five": Row(lambda p, g: run(p, 5, g), kept=0.99),
    "closed loop": Row(lambda p, g: controlled(p, 20, g), kept=0.99),
    "closed loop, two hundred": Row(lambda p, g: controlled(p, 200, g), kept=0.99),
    "one action": Row(lambda p, g: run(p, 20, g, act=lambda _: 1), kept=0.99),
    "sensor noise": Row(lambda p, g: noisy(run(p, 20, g), g, 0.01), kept=0.95),
    "two decimals": Row(lambda p, g: rounded(run(p, 20, g)), kept=0.95),
    "biased sensors": Row(
        lambda p, g: shifted(run(p, 20, g), np.array([0.1, 0, 0.03, 0])), kept=0.95
    ),
    "rows lost": Row(lambda p, g: lost(run(p, 20, g), g, 0.1), kept=0.95),
    "jittering period": Row(lambda p, g: run(p, 20, g, jitter=0.5), kept=0.9),
}
"""Logs as honest plants write them."""
VALID = {
    "velocities by differences": Row(lambda p, g: differences(run(p, 20, g)), kept=0.95),
    "velocities one row old": Row(lambda p, g: old_velocities(run(p, 21, g)), kept=0.95),
    "late actuator": Row(lambda p, g: run(p, 20, g, delay=1), kept=0.95),
    "each row twice": Row(lambda p, g: twice(run(p, 20, g)), kept=0.95),
    "sensor frozen for five rows": Row(lambda p, g: frozen_for(run(p, 20, g), g), kept=0.95),
    "a row of zeros": Row(lambda p, g: with_row(run(p, 20, g), g, 0.0), kept=0.95),
    "crosses the change": Row(crossing, kept=0.95),
    "half and half": Row(lambda p, g: crossing(p, g, before=20), kept=0.95),
    "no episode column": Row(lambda p, g: joined(run(p, 20, g)), kept=0.95),
}
"""Logs with a fault that can be mended, or left out."""
SPOILED = {
    "velocities not measured": refused(
        lambda p, g: scaled(run(p, 20, g), x_dot=0.0, theta_dot=0.0), "no excitation"
    ),
    "velocities not measured, two hundred": refused(
        lambda p, g: scaled(run(p, 200, g), x_dot=0.0, theta_dot=0.0), "no excitation"
    ),
    "only one sensor alive": refused(
        lambda p, g: scaled(run(p, 20, g), x_dot=0.0, theta=0.0, theta_dot=0.0), "no excitation"
    ),
    "all frozen": refused(
        lambda p, g: [(np.repeat(g.normal(0, 0.03, (1, 4)), 21, 0), g.integers(0, 2, 20))],
        "no excitation",
    ),
    "noise alone": refused(
        lambda p, g: [(g.normal(0, 1e-5, (21, 4)), g.integers(0, 2, 20))], "no excitation"
    ),
    "reversed time": refused(lambda p, g: reversed_time(run(p, 20, g)), "reversed time"),
    "reversed time, two hundred": refused(
        lambda p, g: reversed_time(run(p, 200, g)), "reversed time"
    ),
    "angle mirrored": refused(lambda p, g: scaled(run(p, 20, g), theta=-1), "mirrored sensor"),
    "position mirrored": refused(lambda p, g: scaled(run(p, 20, g), x=-1), "mirrored sensor"),
    "rate mirrored": refused(lambda p, g: scaled(run(p, 20, g), theta_dot=-1), "mirrored sensor"),
    "pole mirrored": refused(
        lambda p, g: scaled(run(p, 20, g), theta=-1, theta_dot=-1), "mirrored sensor"
    ),
    "cart mirrored": refused(lambda p, g: scaled(run(p, 20, g), x=-1, x_dot=-1), "mirrored sensor"),
    "plant at 10 Hz": refused(lambda p, g: run(p, 20, g, substeps=5), "another rate"),
    "plant at 1 kHz": refused(
        lambda p, g: run(p, 400, g, time_step=0.001, hold=20), "another rate"
    ),
    "action one row late": refused(lambda p, g: late(run(p, 21, g)), "late action"),
    "action one row late, two hundred": refused(lambda p, g: late(run(p, 200, g)), "late action"),
    "angle in degrees": refused(
        lambda p, g: scaled(run(p, 20, g), theta=180 / np.pi), "another unit"
    ),
    "centimetres": refused(lambda p, g: scaled(run(p, 20, g), x=100, x_dot=100), "another unit"),
    "random actions written": refused(
        lambda p, g: wrong_actions(run(p, 200, g), g, 0.5), "another plant", "undone"
    ),
}
"""Logs that no policy should adapt to."""

MENDABLE: tuple[Callable[[Log, np.random.Generator], Log], ...] = (
    lambda log, g: late(log),
    lambda log, g: differences(log),
    lambda log, g: old_velocities(log),
    lambda log, g: twice(log),
    lambda log, g: frozen_for(log, g),
    lambda log, g: with_row(log, g, 0.0),
    lambda log, g: with_spike(log, g),
    lambda log, g: joined(log),
    lambda log, g: lost(log, g, 0.2),
    lambda log, g: wrong_actions(log, g, 0.15),
    lambda log, g: noisy(log, g, 0.01),
    lambda log, g: rounded(log),
    lambda log, g: reversed_time(log),
    lambda log, g: scaled(log, x_dot=0.0, theta_dot=0.0),
    lambda log, g: scaled(log, theta=0.0),
    lambda log, g: scaled(log, theta_dot=0.0),
    lambda log, g: scaled(log, x=180 / np.pi),
    lambda log, g: scaled(log, x_dot=0.5),
)
MIRRORED: tuple[dict[str, float], ...] = (
    {"theta": -1}, {"x": -1}, {"theta": -1, "theta_dot": -1}, {"x": -1, "x_dot": -1},
)  # fmt: skip
SOURCES: tuple[Callable[[Plant, np.random.Generator], Log], ...] = (
    crossing,
    lambda p, g: run(p, 30, g, delay=1),
    lambda p, g: run(p, 30, g, substeps=5),
    lambda p, g: run(p, 60, g, time_step=0.01),
    lambda p, g: scaled(run(p, 30, g), **MIRRORED[int(g.integers(len(MIRRORED)))]),
)


def with_two_faults(plant: Plant, rng: np.random.Generator) -> Log:
    """A log with two of the faults above, drawn at random."""
    faults = [MENDABLE[i] for i in rng.choice(len(MENDABLE), 2, replace=False)]
    if rng.random() < 0.5:
        return faults[0](SOURCES[int(rng.integers(len(SOURCES)))](plant, rng), rng)
    return faults[1](faults[0](run(plant, 30, rng), rng), rng)


def write(path: Path, log: Log, *, time_step: float | None = None) -> Path:
    """The log as a CSV file; with a time column where its step is given."""
    several, time = len(log) > 1, 0
    names = ["time"] * (time_step is not None) + ["episode"] * several
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*names, *NAMES, "action"])
        for episode, (obs, action) in enumerate(log):
            for row, seen in enumerate(np.asarray(obs, dtype=np.float32).tolist()):
                stamp = [] if time_step is None else [f"{time * time_step:.6f}"]
                acted = int(action[row]) if row < len(action) else ""
                out.writerow([*stamp, *([episode] * several), *seen, acted])
                time += 1
    return path
