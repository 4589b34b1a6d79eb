"""Environments are made once in a training, are the tasks that they are given, and are closed."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl.config import MetaTrainingConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.meta_rl.single_task import train_single_task
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.tasks.gymnasium_verify import follows_afterwards
from ssm_metarl.tasks.task_family import Setting, TaskFamily, Uniform


class Cart(gymnasium.Env):
    """Counts how many of it were made, and are open."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    made = opened = 0

    def __init__(self) -> None:
        self.force, self.mass = 1.0, 1.0
        self.inverse = 1 / self.mass
        type(self).made += 1
        type(self).opened += 1

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        place, speed = self.state
        speed += 0.1 * self.force * (2 * action - 1) * self.inverse
        self.state = np.array([place + 0.1 * speed, speed])
        return self.state.astype(np.float32), -abs(place), False, False, {}

    def close(self) -> None:
        type(self).opened -= 1


def family(*names: str, **settings: Setting) -> TaskFamily:
    Cart.made = Cart.opened = 0
    parameters: dict[str, Any] = {name: Uniform(0.5, 2) for name in names} | settings
    declared = TaskFamily.from_gymnasium(Cart, parameters, max_episode_steps=12)
    assert Cart.opened == 0
    Cart.made = 0
    return declared


def scaled(env: Any, value: float) -> None:
    env.force *= value


def follows(declared: TaskFamily) -> bool:
    assert declared.plant is not None
    return follows_afterwards(declared.plant, declared.parameters)


def test_what_follows_afterwards() -> None:
    assert follows(family())
    assert follows(family("force"))
    assert not follows(family("mass"))  # its inverse does not
    set_so = Setting(lambda env, value: setattr(env, "force", value), Uniform(1, 2), default=1.0)
    assert follows(family(push=set_so))
    assert not follows(family(push=Setting(scaled, Uniform(1, 2), default=1.0)))
    assert Cart.opened == 0


@pytest.mark.parametrize("name", ["force", "mass"])
def test_kept_environments_are_the_tasks_that_they_are_given(name: str) -> None:
    declared = family(name)

    def steps(start: int) -> list[torch.Tensor]:
        tasks = declared.sample("id", 3, seed=0, start=start)
        worlds = make_worlds(tasks, 2, seed=0, purpose="test")
        seen = [worlds.reset(), *(worlds.step(torch.ones(3, 2).long()).obs for _ in range(5))]
        worlds.close()
        return seen

    plain = [steps(start) for start in (0, 3, 0)]
    Cart.made = 0
    with kept_environments(), kept_environments():
        kept = [steps(start) for start in (0, 3, 0)]
        asked = 3  # built, set, and to learn the class
        assert Cart.made <= (6 + asked if name == "force" else 18 + asked)
        assert Cart.made >= (6 if name == "force" else 18)
    assert Cart.opened == 0
    for one, other in zip(plain, kept, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(plain[0][3], plain[1][3])


def test_two_worlds_at_once_share_none() -> None:
    declared = family("force")
    with kept_environments():
        one, other = (make_worlds(declared.task(), 2, seed=s, purpose="test") for s in (0, 1))
        first = one.reset()
        other.reset()
        after = one.step(torch.ones(1, 2).long()).obs
        torch.testing.assert_close(after[..., 1], first[..., 1] + 0.1)
        one.close()
        other.close()
    assert Cart.opened == 0


def test_trainings_make_them_once_and_close_them() -> None:
    declared = family("force")
    tiny = {"state_dim": 3, "hidden_dim": 4, "num_layers": 1, "tasks_per_epoch": 2}
    counts = []
    for epochs in (1, 4):
        Cart.made = 0
        MetaTrainer(MetaTrainingConfig(**tiny, num_epochs=epochs, horizon=9), declared).train()  # type: ignore[arg-type]
        counts.append(Cart.made)
    assert counts[0] == counts[1] < 40
    counts = []
    for epochs in (1, 3):
        Cart.made = 0
        config = InContextConfig(
            **tiny, num_epochs=epochs, steps_per_epoch=16, sequence_steps=16, minibatches=2
        )  # type: ignore[arg-type]
        InContextTrainer(config, declared).train()
        counts.append(Cart.made)
    assert counts[0] == counts[1]
    counts = []
    for episodes in (4, 16):
        Cart.made = 0
        config = SingleTaskConfig(num_episodes=episodes, episodes_per_update=4)  # type: ignore[assignment]
        train_single_task(config, declared)  # type: ignore[arg-type]
        counts.append(Cart.made)
    assert counts[0] == counts[1]
    assert Cart.opened == 0


def test_a_training_that_fails_closes_them_too() -> None:
    declared = family("force")

    def fail(metrics: Any) -> None:
        raise KeyboardInterrupt

    config = MetaTrainingConfig(
        state_dim=3, hidden_dim=4, num_layers=1, tasks_per_epoch=2, num_epochs=3, horizon=9
    )
    with pytest.raises(KeyboardInterrupt):
        MetaTrainer(config, declared).train(fail)
    assert Cart.opened == 0
