"""Adaptation while the plant runs: a change is noticed, and adapted to, before the pole falls.

Place in the flow: stage 4, beside the adapters, on whose inner step it stands. It is an `Actor`: it
chooses actions, sees what they did at its next call, and keeps parameters of its own:

    rollout = collect_rollout(worlds, OnlineAdapter(policy, num_tasks=K), num_steps)

Once the predictions of the last ``detect_steps`` transitions are little better than predicting no
change, these are taken for the first ones of another plant. The policy adapts to all transitions
since, again with each new one, until there are ``window``: each time from the meta-parameters, with
a hidden state recomputed from zero. It starts like that too: an unadapted policy knows no plant.

A policy that adapts in context is watched by the prediction that least squares makes over its trial
(`core.identification`). Once that fails, a new trial begins on the spot, as old evidence speaks
against the new; with ``num_adapt_steps`` 0 that is all. A reading that is no number, or that no
plant gives (`core.readings.WILD`), stops nothing: the last good one is acted on, the event "bad
reading" tells of it, and the transitions to and from it say nothing about the plant.

The trap: a change that the predictions survive is not noticed. A flipped actuator is; a force that
doubles need not be, and the policy need not adapt to it either.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssm_metarl.adaptation.change_detector import taken_last
from ssm_metarl.adaptation.inner_loop import expand_to_tasks
from ssm_metarl.adaptation.inner_objective import check_unadapted
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.entrance import counts, shaped
from ssm_metarl.objectives.prediction import MIN_SPREAD, target_spread
from ssm_metarl.types import Rollout, flatten

Kind = Literal["changed", "settled", "bad reading"]
"""The plant was found to be another one, or adapting to it ended; or a sensor gave no number, after
a reading that was good."""


class OnlineEvent(NamedTuple):
    """Something that an `OnlineAdapter` noticed or did, after ``step`` actions."""

    step: int
    task: int
    kind: Kind


class _Step(NamedTuple):
    """One action and what it did, for K tasks."""

    obs: Tensor  # (K, 1, O)
    action: Tensor  # (K, 1[, A])
    reward: Tensor  # (K, 1): 0 where nobody told
    next_obs: Tensor  # (K, 1, O)
    reset: Tensor  # (K, 1)
    known: Tensor  # (K, 1): False where the episode ended, or one of the observations was bad
    error: Tensor  # (K,): squared error of the prediction
    size: Tensor  # (K,): the squared change itself, in the same units


class OnlineAdapter:
    """Acts greedily in K plants, one environment each, and adapts to each while it runs.

    Args:
        policy: Stays untouched.
        config: When a change counts as noticed, and how long to adapt to it.
        num_tasks: K.

    Raises:
        ValueError: The policy predicts nothing, or is adapted already, or identifies nothing
            though it remembers; or K is below 1.
    """

    num_envs = 1

    @usual_modes()
    def __init__(
        self,
        policy: Policy | StateSpaceModel,
        config: OnlineAdaptationConfig | None = None,
        *,
        num_tasks: int = 1,
    ) -> None:
        counts(num_tasks=num_tasks)
        self.policy, self.num_tasks = as_policy(policy), num_tasks
        self.config = config or OnlineAdaptationConfig()
        if self.config.adapt_lr is None and self.config.num_adapt_steps > 0:
            check_unadapted(self.policy)
        if not self.policy.heads.predicted_dims:
            raise ValueError(
                "policy: expected one with prediction outputs, which online adaptation watches, "
                "received one without"
            )
        if self.policy.trial_input is not None and not self.policy.trial_input.identifies:
            raise ValueError(
                f"policy: expected one whose least squares tell of a change, received one of "
                f"{self.policy.obs_dim} observations, which are too many for them"
            )
        self.events: list[OnlineEvent] = []
        """What happened so far."""
        self.num_adaptations = torch.zeros(num_tasks, dtype=torch.int64)
        """Adaptations to each task so far, of one or more gradient steps, shape (K,)."""
        self._adapter = StandardAdapter(self.config)
        self._params = expand_to_tasks(self.policy.meta_params(), num_tasks)
        self._params = self._params.at(self._params.flat.detach().clone())
        self._state = self.policy.initial_state(num_tasks, 1)
        self._memory, self._readings = self._state.memory, self._state.readings
        dims = len(self.policy.heads.predicted_dims)
        self._spread = self._params.flat.new_full((num_tasks, dims), MIN_SPREAD)
        self._adapting = torch.ones(num_tasks, dtype=torch.bool)
        self._since = torch.zeros(num_tasks, dtype=torch.int64)  # calls since the window's start
        # A window may hold ends of episodes, which are no transitions: hence twice its length.
        self._history: deque[_Step] = deque(maxlen=2 * self.config.window)
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._reward = self._spread.new_zeros(num_tasks, 1)
        self._told = torch.zeros_like(self._reward)  # the last reward that was a number
        self._bad: Tensor | None = None  # (K, 1), where the last reading was; None for nowhere
        self._lead, self._obs_shape = (num_tasks, 1), (num_tasks, 1, self.policy.obs_dim)
        self.bad_readings = torch.zeros(num_tasks, 1, dtype=torch.int64)
        """Observations so far that hold a number which says nothing about the plant, (K, 1)."""
        self._num_calls = 0

    @usual_modes()
    @torch.no_grad()
    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, 1[, A]) and their log-probabilities for observations (K, 1, O).

        Raises:
            ValueError: Another shape or type of numbers; never because of the numbers.
        """
        read = shaped("obs", obs, self._obs_shape, self._spread.dtype, "K, 1, O")
        reset = shaped("reset", reset, self._lead, torch.bool, "K, 1")
        obs = self._readings.held(read, reset)
        known = self._judge(reset)
        if self._last is not None:
            self._look_back(obs, known)
            reset = reset | self._notice()[:, None]
            self._adapt()
        out = self._state.observe(self._params, obs if self._memory is None else read, reset)
        action, log_prob = self._state.act(out, None)
        self._last = (obs, action, reset, out.output)
        self._reward = torch.zeros_like(self._reward)
        self._num_calls += 1
        return action, log_prob

    def rewarded(self, reward: Tensor) -> None:
        """The reward (K, 1) of the last action, which only a policy that remembers sees."""
        reward = shaped("reward", reward, self._lead, self._spread.dtype, "K, 1")
        reward = reward.detach().to(self._spread)
        if not math.isfinite(reward.sum().item()):
            reward = torch.where(reward.isfinite(), reward, self._told)
        self._told = self._reward = reward
        if self._memory is not None:
            self._state.rewarded(reward)

    def _judge(self, reset: Tensor) -> Tensor:
        """Tell of bad readings; where the last transition says something of the plant, (K, 1)."""
        known, was_bad, bad = ~reset, self._bad, self._readings.wild
        if was_bad is not None:
            known &= ~was_bad
        if bad is not None:
            known &= ~bad
            self.bad_readings += bad
            self._record((bad if was_bad is None else bad & ~was_bad)[:, 0], "bad reading")
        self._bad = bad
        return known

    def _look_back(self, obs: Tensor, known: Tensor) -> None:
        """Write down what the last action did, and how well that was predicted."""
        assert self._last is not None
        before, action, first, output = self._last
        if self._memory is not None:
            error, size = self._memory.surprise(obs[:, 0])
        else:
            code = self.policy.action_space.code(action[None]).to(obs.dtype)
            predicted = self.policy.predict(output, code)[0, :, 0]  # (K, D), in spreads
            change = (obs - before)[:, 0, list(self.policy.heads.predicted_dims)] / self._spread
            error, size = (predicted - change).square().sum(-1), change.square().sum(-1)
        step = _Step(before, action, self._reward, obs, first, known, error, size)
        self._history.append(step)
        self._since += 1

    def _notice(self) -> Tensor:
        """Look for a change where none is being adapted to; True where a new trial begins, (K,)."""
        recent = list(self._history)[-self.config.detect_steps :]
        if len(recent) < self.config.detect_steps:
            return torch.zeros_like(self._adapting)
        known = torch.stack([step.known[:, 0] for step in recent]).all(dim=0)
        error = torch.stack([step.error for step in recent]).sum(dim=0)
        size = torch.stack([step.size for step in recent]).sum(dim=0)
        limit = self.config.max_error if self._memory is None else self.config.max_surprise
        # NaN, from a policy that broke, is a change.
        changed = known & ~self._adapting & ~(error <= limit * size)
        self._adapting |= changed
        self._record(changed, "changed")
        if self._memory is None:
            self._since[changed] = self.config.detect_steps
            return torch.zeros_like(changed)
        self._memory.forget(changed)
        self._since[changed] = 0
        self._params.flat[changed] = flatten(self.policy.meta_params(), self._params.shapes)
        return changed

    def _adapt(self) -> None:
        """Adapt, from the meta-parameters, to all transitions since the change."""
        chosen = self._adapting.nonzero()[:, 0]
        if not len(chosen):
            return
        steps = list(self._history)[-int(self._since[chosen].max()) :]
        first = len(steps) - self._since[chosen].clamp(max=len(steps))  # (J,)
        inside = torch.arange(len(steps))[:, None] >= first  # (T, J)
        known = torch.stack([step.known[chosen, 0] for step in steps]) & inside
        enough = known.sum(dim=0) >= self.config.detect_steps
        chosen, known, first = chosen[enough], known[:, enough], first[enough]
        if not len(chosen):
            return
        if self._memory is None or self.config.num_adapt_steps > 0:
            rollout = self._window(steps, chosen, known[:, :, None], first)
            params, _ = self._adapter.adapt_tasks(self.policy, rollout.cleaned())
            self.num_adaptations[chosen] += 1
            self._params.flat[chosen] = params.flat
            self._spread[chosen] = target_spread(self.policy, rollout)
            _, self._state.hidden[chosen] = self.policy.read(params, rollout)
        settled = torch.zeros_like(self._adapting)
        settled[chosen] = known.sum(dim=0) >= self.config.window
        self._adapting &= ~settled
        self._record(settled, "settled")

    def _window(self, steps: list[_Step], chosen: Tensor, mask: Tensor, first: Tensor) -> Rollout:
        """The transitions since the change of J chosen tasks, (T, J, 1).

        What is not known stays in the observations that the state is recomputed from: there, a
        held reading is closer to the truth than none.
        """
        obs, action, reward, next_obs, reset = (  # as a step begins
            torch.stack(column)[:, chosen] for column in list(zip(*steps, strict=True))[:5]
        )
        never = torch.zeros_like(mask)
        starts = torch.arange(len(steps))[:, None, None] == first[:, None]
        rollout = Rollout(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=never,
            truncated=never,
            reset=reset | starts,
            mask=mask,
            log_prob=torch.zeros(mask.shape),
        )
        # What is not known goes to the front: between two steps of a trial it would be a step.
        return rollout if self._memory is None else taken_last(rollout.cleaned())

    def _record(self, where: Tensor, kind: Kind) -> None:
        tasks = where.nonzero()[:, 0].tolist()
        self.events += [OnlineEvent(self._num_calls, task, kind) for task in tasks]
