"""Tab 2, the live view: one plant that runs on and on, and whose actuator can be flipped any time.

Place in the flow: stage 10. The controller is `adaptation.online_adapter.OnlineAdapter`, or, for
comparison, the unadapted policy, or one that remembers and never starts its memory anew. The server
simulates a few seconds ahead of what the browser shows (`LiveRun.advance`); a flip takes the plant
back to the step that is being shown and goes on from there (`LiveRun.flip`), for which each piece
keeps the state that it began with.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.app.handlers.models import draws
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import first_disturbance
from ssm_metarl.tasks.cartpole import TIME_STEP
from ssm_metarl.tasks.task_family import Dynamics, Tasks
from ssm_metarl.types import Actor, RewardedActor

PIECE_STEPS = 100
"""Steps that are simulated at a time: 2 s."""
FLIP_STEPS = 50
"""Steps after a flip that are sent at once: the picture waits for them."""
REST_STEPS = 45
"""How long a fallen pole lies before the next episode, in steps."""
MAX_STEPS = 60_000
"""A live run ends after so many steps: 20 minutes."""
KEPT_PIECES = 4
"""A flip may take back at most so many pieces."""
EventKind = Literal["begin", "flip", "changed", "settled", "fell"]
FELL, UP = 1, 0


@dataclass(frozen=True)
class LiveEvent:
    """Something that happened in a live run, as the page tells it."""

    step: int
    kind: EventKind
    text: str
    state: str
    """What the controller is doing from here on."""


@dataclass(frozen=True)
class Piece:
    """Some consecutive steps of a live run, for the browser to play."""

    run: str
    start: int
    """Number of its first step: what the browser has from there on is replaced."""
    states: list[tuple[float, float, int, int]]
    """Position [m], angle [rad], direction of the push (-1, 0, 1) and whether the pole lies."""
    events: list[LiveEvent]
    length: float
    """Half of the pole's length [m]."""


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
        tasks: The plant, one task of a family that the page can draw (`models.draws`).
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
        if dynamics is None or not draws(family):
            raise ValueError(
                f"live: expected a family that the page can draw and flip, received {family.name!r}"
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
        start, states, events = self.steps, [], []
        if start == 0:
            events.append(self._begin())
        with torch.no_grad():
            for _ in range(min(num_steps, MAX_STEPS - start)):
                states.append(self._step(events.append))
        return Piece(self.name, start, states, events, float(self.tasks.values["length"][0]))

    def flip(self, at: int) -> Piece:
        """Let the actuator push the other way from step ``at`` on.

        Args:
            at: A step that was simulated; one too old, or not simulated yet, becomes the nearest.
        """
        oldest = self._starts[0][0] if self._starts else 0
        at = max(oldest, min(at, self.steps))
        start, plant = next(s for s in reversed(self._starts) if s[0] <= at)
        kept = [s for s in self._starts if s[0] < start]
        self._starts = [*kept, (start, plant.copied(self.policy))]
        self._plant, self.steps = plant, start
        with torch.no_grad():
            for _ in range(at - start):
                self._step(lambda event: None)
        disturb = first_disturbance(self.tasks.family)
        assert disturb is not None
        now = {n: v[:, 0].double() for n, v in self._plant.parameters.items()}
        after = disturb(Tasks(self.tasks.family, now, self.tasks.indices))
        self._plant.parameters = {n: v.float()[:, None] for n, v in after.values.items()}
        piece = self.advance(FLIP_STEPS)
        event = LiveEvent(at, "flip", "the actuator was flipped", "the plant has changed")
        return Piece(piece.run, at, piece.states, [event, *piece.events], piece.length)

    def _step(self, tell: Callable[[LiveEvent], None]) -> tuple[float, float, int, int]:
        """One step of 0.02 s; returns the state that it began with."""
        plant = self._plant
        x, theta = float(plant.state[0, 0, 0]), float(plant.state[0, 0, 2])
        if plant.resting > 0:
            plant.resting -= 1
            self.steps += 1
            if plant.resting == 0:
                plant.episode += 1
                plant.state, plant.begins = self._fresh(plant.episode), True
            return round(x, 4), round(theta, 4), 0, FELL
        obs = self._dynamics.observe(plant.state, plant.parameters)
        action, _ = plant.actor(obs, torch.tensor([[plant.begins]]))
        plant.begins = False
        push = (1 if int(action) else -1) * int(plant.parameters["sign"])
        self._pass_on(tell)
        plant.state, reward, terminated = self._dynamics.step(plant.state, action, plant.parameters)
        if isinstance(plant.actor, RewardedActor):
            plant.actor.rewarded(reward)
        self.steps += 1
        if bool(terminated):
            plant.resting = REST_STEPS
            tell(LiveEvent(self.steps, "fell", "the pole fell", "down: the next try begins"))
        return round(x, 4), round(theta, 4), push, UP

    def _pass_on(self, tell: Callable[[LiveEvent], None]) -> None:
        """What the adapter noticed or did since the last step."""
        plant = self._plant
        if plant.adapter is None:
            return
        for event in plant.adapter.events[plant.told :]:
            if event.kind == "bad reading":
                continue
            if event.kind == "changed":
                text, state = "it noticed that the plant is another one", "adapting to the change"
            else:
                text, state = "it has adapted", "balancing, adapted"
            tell(LiveEvent(self.steps, event.kind, text, state))
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
        self._policy, self._hidden = policy, policy.init_hidden(1, 1)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        out, self._hidden = self._policy.unroll(
            self._policy.meta_params(), obs[None], self._hidden, reset[None]
        )
        action = out.distribution.mode()
        return action[0], out.distribution.log_prob(action)[0]


def as_json(piece: Piece) -> dict[str, Any]:
    """What the browser's player takes."""
    return {
        "run": piece.run,
        "from": piece.start,
        "states": piece.states,
        "events": [vars(event) for event in piece.events],
        "length": piece.length,
        "step_seconds": TIME_STEP,
        "play": True,
    }
