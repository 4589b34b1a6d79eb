"""Tab 2, the live view: one plant that runs on and on, and can be disturbed any time.

Place in the flow: stage 10. The controller is `adaptation.online_adapter.OnlineAdapter`, or, for
comparison, the unadapted policy, or one that remembers and never starts its memory anew. The server
simulates a few seconds ahead of what the browser shows (`LiveRun.advance`); a disturbance takes the
plant back to the step that is being shown and goes on from there (`LiveRun.disturb`), for which
each piece keeps the state that it began with.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.app.handlers.drawing import drawing
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import first_disturbance
from ssm_metarl.tasks.dynamics import Dynamics
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, RewardedActor

PIECE_STEPS = 100
"""Steps that are simulated at a time."""
DISTURBED_STEPS = 50
"""Steps after a disturbance that are sent at once: the picture waits for them."""
REST_STEPS = 45
"""How long the end of an episode is shown before the next one, in steps."""
MAX_STEPS = 60_000
"""A live run ends after so many steps."""
KEPT_PIECES = 4
"""A disturbance may take back at most so many pieces."""
TOLD = {
    "changed": ("it noticed that the plant is another one", "adapting to the change"),
    "settled": ("it has adapted", "running, adapted"),
}
"""What is said of the adapter's events, and of what it does from there on."""


class LiveEvent(NamedTuple):
    """Something that happened in a live run, as the page tells it."""

    step: int
    kind: str  # begin, disturbed, changed, settled or ended
    text: str
    state: str  # what the controller is doing from here on


@dataclass(frozen=True)
class Piece:
    """Some consecutive steps of a live run, for the browser to play."""

    run: str
    start: int
    """Number of its first step: what the browser has from there on is replaced."""
    states: list[tuple[float, ...]]
    """Of the physics, before each step."""
    resting: list[bool]
    """Whether the episode has ended, and the next one is about to begin."""
    events: list[LiveEvent]
    tasks: Tasks
    """The plant as it is in this piece."""


@dataclass
class _Plant:
    """All that changes from step to step."""

    actor: Actor
    adapter: OnlineAdapter | None
    parameters: dict[str, Tensor]
    state: Tensor  # (1, 1, S)
    begins: bool = True
    episode: int = 0
    resting: int = 0
    told: int = 0
    """Events of the adapter that were passed on."""

    def copied(self, policy: Policy) -> _Plant:
        """A copy that shares the policy, which nothing changes."""
        return copy.deepcopy(self, {id(policy): policy})


@dataclass
class LiveRun:
    """A plant with its controller, simulated piece by piece.

    Args:
        policy: Stays untouched.
        tasks: The plant, one task of a family that can be drawn.
        adapting: Whether the controller adapts, or stays as it is.
        seed: Names the initial states.
        online: How the controller adapts.
    """

    policy: Policy
    tasks: Tasks
    adapting: bool
    seed: int
    online: OnlineAdaptationConfig = field(default_factory=OnlineAdaptationConfig)
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    steps: int = 0
    """Simulated so far."""

    def __post_init__(self) -> None:
        family, dynamics = self.tasks.family, self.tasks.family.dynamics
        if dynamics is None or family.sketch is None:
            raise ValueError(
                f"live: expected a family with batched physics and a sketch, received "
                f"{family.name!r}"
            )
        self._dynamics: Dynamics = dynamics
        adapter = OnlineAdapter(self.policy, self.online) if self.adapting else None
        actor = adapter or self._unadapted()
        parameters = {n: v.float()[:, None] for n, v in self.tasks.values.items()}
        self._plant = _Plant(actor, adapter, parameters, self._fresh(0))
        self._starts: list[tuple[int, _Plant]] = []

    def advance(self, num_steps: int = PIECE_STEPS) -> Piece:
        """Simulate on; nothing after `MAX_STEPS`."""
        self._starts = [*self._starts, (self.steps, self._plant.copied(self.policy))][-KEPT_PIECES:]
        start, states, resting, events = self.steps, [], [], []
        if start == 0:
            events.append(self._begin())
        with torch.no_grad():
            for _ in range(min(num_steps, MAX_STEPS - start)):
                states.append(tuple(self._plant.state[0, 0].tolist()))
                resting.append(self._plant.resting > 0)
                self._step(events.append)
        return Piece(self.name, start, states, resting, events, self._now())

    def disturb(self, at: int) -> Piece:
        """Let the family's first disturbance come over the plant at step ``at``.

        One too old, or not simulated yet, becomes the nearest that there is.
        """
        disturb = first_disturbance(self.tasks.family)
        if disturb is None:
            raise ValueError("live: expected a family with a disturbance, received one without")
        oldest = self._starts[0][0] if self._starts else 0
        at = max(oldest, min(at, self.steps))
        start, plant = next(s for s in reversed(self._starts) if s[0] <= at)
        kept = [s for s in self._starts if s[0] < start]
        self._starts = [*kept, (start, plant.copied(self.policy))]
        self._plant, self.steps = plant, start
        with torch.no_grad():
            for _ in range(at - start):
                self._step(lambda event: None)
        after = disturb(self._now())
        self._plant.parameters = {n: v.float()[:, None] for n, v in after.values.items()}
        piece = self.advance(DISTURBED_STEPS)
        what = f"the plant was disturbed: {disturbance_name(self.tasks.family)}"
        event = LiveEvent(at, "disturbed", what, "the plant has changed")
        return replace(piece, events=[event, *piece.events])

    def _now(self) -> Tasks:
        """The plant as it is."""
        values = {n: v[:, 0].double() for n, v in self._plant.parameters.items()}
        return replace(self.tasks, values=values)

    def _step(self, tell: Callable[[LiveEvent], None]) -> None:
        """One step, or one of the rest between two episodes."""
        plant = self._plant
        if plant.resting > 0:
            plant.resting -= 1
            self.steps += 1
            if plant.resting == 0:
                plant.episode += 1
                plant.state, plant.begins = self._fresh(plant.episode), True
            return
        obs = self._dynamics.observe(plant.state, plant.parameters)
        action, _ = plant.actor(obs, torch.tensor([[plant.begins]]))
        plant.begins = False
        self._pass_on(tell)
        plant.state, reward, terminated = self._dynamics.step(plant.state, action, plant.parameters)
        if isinstance(plant.actor, RewardedActor):
            plant.actor.rewarded(reward)
        self.steps += 1
        if bool(terminated):
            plant.resting = REST_STEPS
            text = "it failed" if self.tasks.family.end_is_failure else "it reached an end"
            tell(LiveEvent(self.steps, "ended", text, f"{text}: the next try begins"))

    def _pass_on(self, tell: Callable[[LiveEvent], None]) -> None:
        """What the adapter noticed or did since the last step."""
        plant = self._plant
        if plant.adapter is None:
            return
        for event in plant.adapter.events[plant.told :]:
            if event.kind in TOLD:
                tell(LiveEvent(self.steps, event.kind, *TOLD[event.kind]))
        plant.told = len(plant.adapter.events)

    def _begin(self) -> LiveEvent:
        if self.adapting:
            return LiveEvent(0, "begin", "it begins, unadapted", "adapting to its first steps")
        if self.policy.in_context:
            return LiveEvent(0, "begin", "it begins, and never forgets", "running as it remembers")
        return LiveEvent(0, "begin", "it begins, and never adapts", "running as it is, unadapted")

    def _unadapted(self) -> Actor:
        if not self.policy.in_context:
            return _FrozenActor(self.policy)
        blind = replace(self.online, num_adapt_steps=0, max_surprise=1e30)
        return OnlineAdapter(self.policy, blind)

    def _fresh(self, episode: int) -> Tensor:
        uniform = seeding.generator(self.seed, "app-live-reset", episode).random(
            (1, 1, len(self._dynamics.push_scale)), dtype=np.float32
        )
        return self._dynamics.initial_state(torch.from_numpy(uniform))


class _FrozenActor:
    """The unadapted policy, acting greedily; unlike a closure, it can be copied."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._state = policy, policy.initial_state(1, 1)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        params = self._policy.meta_params()
        action, log_prob, self._state = self._policy.step(params, self._state, obs, reset)
        return action, log_prob


def disturbance_name(family: TaskFamily) -> str:
    """What the family's first disturbance is called; empty where it names none."""
    return next(iter(family.disturbances), "")


def as_json(piece: Piece) -> dict[str, Any]:
    """What the browser's player takes."""
    sketch, (frames,) = drawing(piece.tasks.family, piece.tasks.as_dicts()[0], [piece.states])
    return {
        "run": piece.run,
        "from": piece.start,
        "sketch": sketch,
        "frames": frames,
        "ended": piece.resting,
        "end_is_failure": piece.tasks.family.end_is_failure,
        "events": [event._asdict() for event in piece.events],
    }


def idle(family: TaskFamily) -> dict[str, Any]:
    """What it takes before a run begins: how the plant looks; empty where nothing can be shown."""
    if family.dynamics is None or family.sketch is None:
        return {}
    middle = torch.full((len(family.dynamics.push_scale),), 0.5)
    state = family.dynamics.initial_state(middle).tolist()
    sketch, (frames,) = drawing(family, family.default_task, [[state]])
    return {"sketch": sketch, "frames": frames, "disturbance": disturbance_name(family)}
