"""The best fixed policy that a search finds: what one gets without adapting to anything.

Place in the flow: stage 7, a leaf of `method`, a yardstick; `worth` measures against it what
adapting is for. A fixed policy knows no task and remembers nothing but its last three actions. With
z the observation over its root mean square under uniform actions, and u those actions' codes::

    score_t = W (z_t, u_{t-1}, u_{t-2}, u_{t-3}, 1)

acts by the sign of the score (two actions), by its largest entry (several), or clipped to the
bounds (continuous). W is found by the cross-entropy method (de Boer et al. 2005, doi
10.1007/s10479-005-5724-z) with noise that keeps it from settling early (Szita & Lorincz 2006, doi
10.1162/neco.2006.18.12.2936), from several starts; what those end with is compared on tasks that
the search has not seen, of the *training* split, too.

The trap: a lower bound. A better fixed policy may exist, and then adapting is worth less than
`worth` says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.env_runner.rollout import CHECK_EVERY, collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.methods.method import Data, Method, Model, Prepared
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import TaskFamily, Tasks

STREAM = "fixed-policy"
ACTIONS_SEEN = 3
SPREAD_TASKS, SPREAD_STEPS = 32, 40  # where the observations' root mean square is looked for
MIN_SPREAD = 1e-6
EXTRA_NOISE = 0.02
"""Added to the spread of W at first; it falls to nothing over `NOISY_SHARE` of the generations."""
NOISY_SHARE = 0.7
FINALISTS = 2
"""Of the last generation of each start, beside its mean."""


class Effort(NamedTuple):
    """How much is searched."""

    starts: int
    generations: int
    population: int  # policies in a generation
    elites: int  # the best of them, from which the next generation is drawn
    tasks: int  # that each policy acts in, an episode each; other ones in every generation
    judged_on: int  # tasks that tell which of the last ones is best


BATCHED = Effort(3, 16, 64, 8, 48, 400)
"""Up to 30 million steps of a batched plant that costs little: ten seconds."""
STEPPED = Effort(2, 8, 24, 4, 6, 24)
"""For Gymnasium's environments, which cost a hundred times as much a step."""


@dataclass(frozen=True)
class FixedPolicy(Method):
    """One linear policy for all tasks; see `Method`."""

    weights: Tensor
    """W, shape (F, C): features by entries of the score."""
    spread: Tensor
    """Root mean square of each observation dimension, shape (O,)."""
    action_space: ActionSpace
    score: float
    """Mean return on the training tasks that it was chosen on."""
    env_steps: int
    """Environment steps of the whole search."""

    name = "fixed"
    label = "best fixed policy"
    definition = "best fixed policy that a search found on training tasks"

    def actor(self, num_tasks: int, num_envs: int) -> FixedActor:
        """What acts in K x N environments."""
        shape = (num_tasks, num_envs)
        return FixedActor(self.weights[None], self.spread, self.action_space, shape)

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the actions and observations are those that it was searched for."""
        if family.spaces == (len(self.spread), self.action_space):
            return None
        return f"it was searched for another plant than {family.name}"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The same policy for every task."""
        return Prepared(self.actor(len(tasks), data.num_envs))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "weights": self.weights.tolist(),
            "spread": self.spread.tolist(),
            "training_score": self.score,
            "env_steps": self.env_steps,
        }


class FixedActor:
    """Acts in ``shape`` = (K, N) environments, each by its own W, (N, F, C), or all by one."""

    def __init__(
        self, weights: Tensor, spread: Tensor, action_space: ActionSpace, shape: tuple[int, int]
    ) -> None:
        self._weights, self._spread, self._space = weights, spread, action_space
        self._last = torch.zeros(*shape, ACTIONS_SEEN * action_space.code_dim)
        self._one = torch.ones(*shape, 1)
        self._log_prob = torch.zeros(shape)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) for observations (K, N, O), and 0."""
        space = self._space
        last = self._last.masked_fill(reset[..., None], 0.0)
        features = torch.cat([obs / self._spread, last, self._one], dim=-1)
        score = (features[..., None] * self._weights).sum(dim=-2)  # (K, N, C)
        if isinstance(space, Discrete):
            action = (score[..., 0] > 0).long() if space.n == 2 else score.argmax(dim=-1)
        else:
            middle, half = space.middle_and_half(score)
            action = middle + half * score.clamp(-1, 1)
        code = space.code(action)
        self._last = torch.cat([code, last[..., : -code.shape[-1]]], dim=-1)
        return action, self._log_prob


def search_fixed_policy(
    family: TaskFamily,
    *,
    seed: int,
    effort: Effort | None = None,
    on_step: Callable[[float, str], None] | None = None,
) -> FixedPolicy:
    """Search the linear policy with the largest mean return over a family's training tasks.

    Args:
        family: Whose training split is drawn from.
        seed: Names tasks, episodes and search.
        effort: How much is searched; None for what the family can afford.
        on_step: Called with the share done and what was found so far.
    """
    if effort is None:
        effort = STEPPED if family.dynamics is None else BATCHED
    tell = on_step or (lambda share, what: None)
    trials = _Trials(family, seed)
    finalists: list[np.ndarray] = []
    for start in range(effort.starts):
        rng = seeding.generator(seed, STREAM, start)
        mean, std = np.zeros(trials.shape), np.ones(trials.shape)
        for generation in range(effort.generations):
            drawn = mean + std * rng.standard_normal((effort.population, *trials.shape))
            drawn = trials.normalised(drawn)
            scores = trials.scores(drawn, effort.tasks)
            best = np.argsort(-scores, kind="stable")[: effort.elites]
            mean, std = drawn[best].mean(axis=0), drawn[best].std(axis=0)
            calm = generation / (NOISY_SHARE * effort.generations)
            std = std + EXTRA_NOISE * max(0.0, 1 - calm)
            done = (start + (generation + 1) / effort.generations) / (effort.starts + 0.5)
            tell(done, f"fixed policy, start {start + 1}: {scores[best].mean():.0f}")
        finalists += [mean, *drawn[best[:FINALISTS]]]
    chosen = trials.normalised(np.stack(finalists))
    scores = trials.scores(chosen, effort.judged_on)
    return FixedPolicy(
        weights=torch.from_numpy(chosen[scores.argmax()]).float(),
        spread=trials.spread,
        action_space=trials.space,
        score=float(scores.max()),
        env_steps=trials.env_steps,
    )


class _Trials:
    """Where policies are tried: training tasks, new ones each time."""

    def __init__(self, family: TaskFamily, seed: int) -> None:
        self._family, self._seed = family, seed
        self._drawn = 0
        tasks = self._tasks(SPREAD_TASKS)
        with closing(make_worlds(tasks, 1, seed=seed, purpose=STREAM)) as worlds:
            noise = TaskNoise(seed, f"{STREAM}-random", tasks.indices)
            actor = random_actor(worlds, noise, SPREAD_STEPS)
            seen = collect_rollout(worlds, actor, SPREAD_STEPS, autoreset=True)
            self.space = worlds.action_space
        self.spread = seen.obs.square().mean(dim=(0, 1, 2)).sqrt().clamp(min=MIN_SPREAD)
        code_dim = self.space.code_dim
        self.shape = (len(self.spread) + ACTIONS_SEEN * code_dim + 1, code_dim)
        """Of a policy's weights, (F, C)."""
        self.env_steps = int(seen.mask.sum())
        """Environment steps so far."""

    def _tasks(self, count: int) -> Tasks:
        start, self._drawn = self._drawn, self._drawn + count
        return self._family.sample("train", count, seed=self._seed, start=start, stream=STREAM)

    def normalised(self, weights: np.ndarray) -> np.ndarray:
        """Weights (P, F, C) of length 1 where only their direction counts."""
        if not isinstance(self.space, Discrete):
            return weights
        length = np.linalg.norm(weights, axis=(1, 2), keepdims=True).clip(min=MIN_SPREAD)
        unit: np.ndarray = weights / length
        return unit

    @threads_for_kernels()
    @torch.no_grad()
    def scores(self, weights: np.ndarray, num_tasks: int) -> np.ndarray:
        """Mean returns (P,) of policies (P, F, C), each of which acts in the same tasks."""
        tasks, count = self._tasks(num_tasks), len(weights)
        every = torch.from_numpy(weights).float()
        actor = FixedActor(every, self.spread, self.space, (num_tasks, count))
        with closing(make_worlds(tasks, count, seed=self._seed, purpose=STREAM)) as worlds:
            obs = worlds.reset()
            reset = torch.ones(num_tasks, count, dtype=torch.bool)
            running, returns = reset, torch.zeros(num_tasks, count)
            for t in range(worlds.max_episode_steps):
                action, _ = actor(obs, reset)
                step = worlds.step(action)
                obs, reset = step.obs, torch.zeros_like(reset)
                returns += step.reward  # 0 where an episode has ended
                self.env_steps += int(running.sum())
                running = running & ~(step.terminated | step.truncated)
                if t % CHECK_EVERY == CHECK_EVERY - 1 and not running.any():
                    break
        mean: np.ndarray = returns.double().mean(dim=0).numpy()
        return mean
