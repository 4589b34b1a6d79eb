"""Stable-Baselines3 on plain CartPole, at the best settings found for it.

Place in the flow: the peers of `time_to_475`. Imported inside functions: the libraries are an extra
(``pip install 'ssm-metarl[bench]'``).

The settings start from RL Baselines3 Zoo's tuned ones for CartPole-v1 (PPO) and CartPoleNoVel-v1
(RecurrentPPO): 8 environments, 32 steps, batches of 256, 20 epochs. What was tried beside them, and
how many seconds of one core each took to 475 in the median of four to eight seeds (three to six of
RecurrentPPO), is in the comments at `PPO_SETTINGS` and `RECURRENT_SETTINGS`; the soonest is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

ENV_ID, TARGET, EPISODES = "CartPole-v1", 475.0, 20
Algorithm = Literal["ppo", "recurrent_ppo"]
TOTAL_STEPS = 100_000
"""What learning rate and clipping range decay towards, as in the Zoo; training may go on."""


@dataclass(frozen=True)
class Setting:
    """How a peer is run."""

    num_envs: int
    num_steps: int
    batch_size: int
    num_epochs: int
    threads: int
    lstm: int = 0
    """Size of the LSTM; 0 for none."""


# Environments x steps, batch, epochs: 1 x 128, 128, 10: 4.0 s; 4 x 64, 128, 10: 3.9 s;
# 8 x 32, 256, 20 (the Zoo's): 4.6 s; 8 x 64, 128, 10: 3.4 s; 16 x 32, 512, 20: 3.8 s;
# 16 x 32, 256, 10: 1.7 s; 32 x 16, 512, 20: 2.4 s; 32 x 16, 256, 10: 3.5 s; 32 x 32, 1024, 20: one
# seed of two. From 2,000 steps a second (1 environment) to 9,000 (16 and 32).
PPO_SETTINGS = Setting(num_envs=16, num_steps=32, batch_size=256, num_epochs=10, threads=1)
# LSTM of 64: 4 x 32, 128, 10: one seed of three within 17 s; 8 x 32, 256, 20 (the Zoo's): 30 s, one
# seed of two; 8 x 128, 128, 5: 26 s; 16 x 32, 512, 10: not within 100,000 steps; 16 x 16, 256, 10:
# not within 12 s; 32 x 8, 256, 10: one seed of three within 12 s; 32 x 16, 256, 5: three of six
# within 15 s; 32 x 16, 512, 10: 10 s, five of six; 32 x 32, 1024, 10: 9 s, but with a learning rate
# of 0.002 or two threads one seed of two; 64 x 8, 512, 10: not within 12 s. An LSTM of 32, or none
# for the critic: fewer seeds. From 400 steps a second (8 environments) to 2,000 (32).
RECURRENT_SETTINGS = Setting(
    num_envs=32, num_steps=16, batch_size=512, num_epochs=10, threads=1, lstm=64
)


@dataclass(frozen=True)
class Solved:
    """How long a training took to reach the target."""

    seconds: float
    """Wall time of learning without evaluations; where it was not reached, until it stopped."""
    reached: bool
    env_steps: int

    @property
    def rate(self) -> float:
        """Environment steps a second."""
        return self.env_steps / self.seconds


def linear(start: float) -> Callable[[float], float]:
    """A schedule from ``start`` to 0 over the training, as SB3 wants it."""
    return lambda remaining: start * max(remaining, 0.0)


def learn(
    algorithm: Algorithm,
    seed: int,
    *,
    cap: float,
    check_every: int = 2048,
    total_steps: int = TOTAL_STEPS,
) -> Solved:
    """Train until 20 greedy episodes average 475, or the cap.

    Args:
        algorithm: Which peer.
        seed: Of the training.
        cap: Seconds of learning after which it stops.
        check_every: Environment steps between evaluations, whose time is not counted.
        total_steps: What the schedules decay towards, and where it stops in any case.

    Raises:
        ModuleNotFoundError: The extra is not installed.
    """
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    setting = PPO_SETTINGS if algorithm == "ppo" else RECURRENT_SETTINGS
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        model = _model(algorithm, seed, setting)
        clock = Stopwatch(cap)

        class Check(BaseCallback):  # type: ignore[misc]
            """Evaluates between rollouts: the policy has just been updated."""

            next_check, go_on = check_every, True

            def _on_rollout_start(self) -> None:
                if self.num_timesteps >= self.next_check:
                    self.next_check = self.num_timesteps + check_every
                    with clock.paused():
                        clock.reached = greedy_return(self.model) >= TARGET
                self.go_on = not (clock.reached or clock.seconds() > cap)

            def _on_step(self) -> bool:
                return bool(self.go_on)

        clock.start()
        model.learn(total_steps, callback=Check())
        return Solved(clock.seconds(), clock.reached, int(model.num_timesteps))
    finally:
        torch.set_num_threads(before)


class Stopwatch:
    """Counts seconds, except while it is paused.

    Args:
        cap: Seconds after which whoever asks should stop.
        clock: Seconds since some moment.
    """

    def __init__(self, cap: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.cap, self._clock = cap, clock
        self._started, self._paused_for, self._paused_at = 0.0, 0.0, 0.0
        self.reached = False

    def start(self) -> None:
        """Begin."""
        self._started, self._paused_for = self._clock(), 0.0

    def seconds(self) -> float:
        """Seconds since the start, pauses left out."""
        return self._clock() - self._started - self._paused_for

    def paused(self) -> Stopwatch:
        """A context in which no time passes."""
        return self

    def __enter__(self) -> None:
        self._paused_at = self._clock()

    def __exit__(self, *error: object) -> None:
        self._paused_for += self._clock() - self._paused_at


def _model(algorithm: Algorithm, seed: int, setting: Setting) -> Any:
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(ENV_ID, setting.num_envs, seed=seed)
    settings: dict[str, Any] = {
        "n_steps": setting.num_steps,
        "batch_size": setting.batch_size,
        "n_epochs": setting.num_epochs,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "ent_coef": 0.0,
        "learning_rate": linear(1e-3),
        "clip_range": linear(0.2),
        "seed": seed,
        "device": "cpu",
    }
    if algorithm == "ppo":
        from stable_baselines3 import PPO

        return PPO("MlpPolicy", envs, **settings)
    from sb3_contrib import RecurrentPPO
    from torch import nn

    network = {
        "lstm_hidden_size": setting.lstm,
        "enable_critic_lstm": True,
        "ortho_init": False,
        "activation_fn": nn.ReLU,
        "net_arch": {"pi": [64], "vf": [64]},
    }
    return RecurrentPPO("MlpLstmPolicy", envs, policy_kwargs=network, **settings)


def greedy_return(model: Any) -> float:
    """Mean return of 20 greedy episodes."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env(ENV_ID, EPISODES, seed=10_000)
    mean, _ = evaluate_policy(model, envs, EPISODES, deterministic=True, warn=False)
    envs.close()
    return float(mean)
