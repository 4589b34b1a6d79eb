"""In-context training by hand: loss, targets and values, and that each fault in them shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from planted import planted
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.meta_rl import in_context
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.objectives import gae
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

GAMMA, EPISODE_GAMMA, LAMBDA = 0.9, 0.5, 0.8


def tiny(**changes: Any) -> InContextConfig:
    settings: dict[str, Any] = {
        "state_dim": 4, "hidden_dim": 6, "num_layers": 1, "num_epochs": 3, "tasks_per_epoch": 4,
        "steps_per_epoch": 48, "sequence_steps": 16, "minibatches": 2, "horizon": 12,
        "trial_episodes": 2, "gamma": GAMMA, "episode_gamma": EPISODE_GAMMA, "gae_lambda": LAMBDA,
    }  # fmt: skip
    return InContextConfig(**(settings | changes))


def even(trainer: InContextTrainer, value: float) -> None:
    """Both actions have probability 1/2, and the head says ``value`` whatever it sees."""
    with torch.no_grad():
        for head in (trainer.policy.heads.action, trainer.policy.heads.value):
            head.weight.zero_()
            head.bias.zero_()
        trainer.policy.heads.value.bias.fill_(value)


def check_loss(module: ModuleType) -> None:
    """Ratios 1.5 and 0.5, gains 1.2 and -0.8, values 0.25 for targets 1 and 0, entropy ln 2."""
    trainer = module.InContextTrainer(tiny())
    even(trainer, 0.25)
    ratio = torch.tensor([1.5, 0.5])[:, None]
    sequences = module.Sequences(
        inputs=torch.randn(2, 1, trainer.policy.input_dim),
        reset=torch.zeros(2, 1, dtype=torch.bool),
        hidden=trainer.policy.init_hidden(1, 1),
        action=torch.tensor([[0], [1]]),
        log_prob=(0.5 / ratio).log(),
        advantage=torch.tensor([[1.0], [-1.0]]),
        target=torch.tensor([[1.0], [0.0]]),
        expert=torch.tensor([[1], [1]]),
    )
    config = tiny(value_coef=0.3, entropy_coef=0.1, imitation_coef=0.2)
    for expert, imitation in ((sequences.expert, 0.2 * math.log(2)), (None, 0.0)):
        given = replace(sequences, expert=expert)
        loss, entropy = module.ppo_loss(trainer.policy, given, config)
        error = (0.75**2 + 0.25**2) / 2
        expected = 0.3 * error - (1.2 - 0.8) / 2 - 0.1 * math.log(2) + imitation
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert entropy.item() == pytest.approx(math.log(2), rel=1e-5)
    loss.backward()
    # of 0.3 ((v - 1)^2 + v^2) / 2 by v, at 0.25
    slope = trainer.policy.heads.value.bias.grad.item()
    assert slope == pytest.approx(0.3 * (-0.75 + 0.25), rel=1e-5)


def by_hand(rollout: Rollout, starts: Tensor, value: np.ndarray) -> np.ndarray:
    """Advantages over the trials of each environment, (T - 1, K), from values (T, K)."""
    steps, envs = rollout.reward.shape[0] - 1, rollout.reward.shape[1]
    result = np.zeros((steps, envs))
    for k in range(envs):
        advantage = 0.0
        for t in reversed(range(steps)):
            goes_on = 0.0
            if rollout.truncated[t, k, 0]:
                following = GAMMA * value[t, k]
            elif starts[t + 1, k, 0]:
                following = 0.0
            else:
                goes_on = GAMMA * (EPISODE_GAMMA if rollout.terminated[t, k, 0] else 1.0)
                following = goes_on * value[t + 1, k]
            delta = float(rollout.reward[t, k, 0]) + following - value[t, k]
            advantage = delta + LAMBDA * goes_on * advantage
            result[t, k] = advantage
    return result


def check_targets(module: ModuleType) -> None:
    """Targets, in the head's unit, and advantages of mean 0 and spread 1; rewards of 3."""
    trainer = module.InContextTrainer(tiny())
    policy, head = trainer.policy, trainer.policy.heads.value
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
    rollout = trainer._collect(trainer.family.sample("train", 4, seed=0))
    rollout = replace(rollout, reward=3 * rollout.reward)
    number = rollout.reset.long().cumsum(0) - 1
    starts = rollout.reset & (number % 2 == 0)  # the first steps of every second episode
    assert starts[1:].any() and (rollout.terminated[:-1] & ~starts[1:]).any()
    assert rollout.truncated[:-1].any()
    with torch.no_grad():
        inputs, hidden = policy.inputs(rollout, starts), policy.init_hidden(4, 1)
        out, _ = policy.unroll(policy.meta_params(), inputs, hidden, starts)
        value = (policy.value(out.output)[..., 0] / (1 - GAMMA)).double().numpy()
    before = head.weight.clone()
    trainer.value_scale.update(rollout.reward, head, epoch=0)
    assert torch.allclose(head.weight, before / 3)  # V is as it was, in another unit
    gain = by_hand(rollout, starts, value)
    target = (gain + value[:-1]) * (1 - GAMMA) / 3
    sequences, unexplained = trainer._rate(rollout, None)

    def cut_up(x: np.ndarray) -> Tensor:
        return torch.cat(torch.from_numpy(x).float().split(16), dim=1)

    assert torch.allclose(sequences.target, cut_up(target), atol=1e-4)
    normal = (gain - gain.mean()) / gain.std(ddof=1)
    assert torch.allclose(sequences.advantage, cut_up(normal), atol=1e-4)
    expected = gain.var() / (gain + value[:-1]).var()
    assert unexplained == pytest.approx(expected, rel=1e-3)


CHECKS: dict[str, Callable[[ModuleType], None]] = {"loss": check_loss, "targets": check_targets}
FAULTS = {
    "gain descended": ("loss", "* error - gain", "* error + gain"),
    "entropy punished": ("loss", "- config.entropy_coef", "+ config.entropy_coef"),
    "expert avoided": ("loss", "loss - config.imitation_coef", "loss + config.imitation_coef"),
    "value of the wrong sign": ("loss", "value_loss(policy.value", "value_loss(-policy.value"),
    "wrong target": ("targets", "advantage + value[:-1]", "advantage - value[:-1]"),
    "target of the next step": ("targets", "advantage + value[:-1]", "advantage + value[1:]"),
    "target is the advantage": ("targets", "advantage + value[:-1]", "advantage"),
    "target in other units": ("targets", "(1 - config.gamma) / unit", "(1 - config.gamma)"),
    "value in other units": ("targets", "/ (1 - config.gamma) * unit", "/ (1 - config.gamma)"),
    "advantage negated": ("targets", "scaled = (advantage", "scaled = -(advantage"),
    "advantage of any mean": ("targets", "(advantage - advantage.mean())", "advantage"),
    "error of the values": ("targets", "advantage.var() / target", "value.var() / target"),
    "trials of one episode": (
        "targets",
        "rollout.reset, config.trial_episodes",
        "rollout.reset, 1",
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_known_answers(check: str) -> None:
    CHECKS[check](in_context)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, right, wrong = FAULTS[fault]
    with pytest.raises(AssertionError):
        CHECKS[check](planted(monkeypatch, in_context, right, wrong))


class Endless(gymnasium.Env[np.ndarray, int]):
    """One state, one reward; ends after eight steps, or is cut there."""

    def __init__(self, reward: float, terminates: bool) -> None:
        self.action_space, self.reward, self.terminates = spaces.Discrete(2), reward, terminates
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.full(1, 0.5, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ends = self.terminates and self.steps == 8
        return np.full(1, 0.5, np.float32), self.reward, ends, False, {}


@pytest.fixture
def endless() -> Iterator[Callable[..., TaskFamily]]:
    """Declares the family, whose id is given back."""
    env_id = "SsmMetarlEndless-v0"

    def make(reward: float, *, terminates: bool = False) -> TaskFamily:
        given = {"reward": reward, "terminates": terminates}
        gymnasium.register(env_id, entry_point=Endless, max_episode_steps=8, kwargs=given)
        return TaskFamily.from_gymnasium(env_id, {}, obs_scale=(1.0,))

    yield make
    del gymnasium.registry[env_id]


def learnt_value(family: TaskFamily) -> float:
    """V in the middle of an episode, after a training of seconds."""
    config = tiny(
        num_epochs=40, trial_episodes=1, horizon=None, lr=2e-2, entropy_coef=0.0, value_coef=1.0
    )
    trainer = InContextTrainer(config, family)
    trainer.train()
    sequences, _ = trainer._rate(trainer._collect(family.sample("train", 4, seed=0)), None)
    with torch.no_grad():
        out, _ = trainer.policy.unroll(
            trainer.policy.meta_params(),
            sequences.inputs[:, None],
            sequences.hidden,
            sequences.reset[:, None],
        )
    value = trainer.policy.value(out.output) * trainer.value_scale.size / (1 - GAMMA)
    return value.mean().item()


@pytest.mark.parametrize("reward", [1.0, -16.0])
def test_endless_reward_is_worth_one_over_one_minus_gamma_if_it_is_only_cut(
    endless: Callable[..., TaskFamily], reward: float
) -> None:
    assert learnt_value(endless(reward)) == pytest.approx(reward / (1 - GAMMA), rel=0.1)


# Mean over the eight steps of an episode of what is left of it.
ENDING = np.mean([(1 - GAMMA**n) / (1 - GAMMA) for n in range(1, 9)])


def test_and_less_if_it_ends(endless: Callable[..., TaskFamily]) -> None:
    assert ENDING < 0.4 / (1 - GAMMA)
    assert learnt_value(endless(1.0, terminates=True)) == pytest.approx(ENDING, rel=0.1)


def test_and_less_with_the_two_ends_confused(
    endless: Callable[..., TaskFamily], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = "truncated, last = rollout.truncated[:-1],"
    faulty = planted(monkeypatch, gae, right, "truncated, last = rollout.truncated[:-1] & False,")
    monkeypatch.setattr(in_context, "trial_advantage", faulty.trial_advantage)
    assert learnt_value(endless(1.0)) < 0.5 / (1 - GAMMA)
