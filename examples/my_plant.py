"""A plant of one's own: a trolley on a rail, its motor weak or strong, maybe wired backwards."""

import gymnasium
import numpy as np

from ssm_metarl.tasks.task_family import Choice, TaskFamily, Uniform


class Trolley(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.motor, self.sign = 1.0, 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        speed = self.state[1] + 0.1 * self.sign * self.motor * action[0]
        self.state = np.array([self.state[0] + 0.1 * speed, speed], np.float32)
        return self.state, float(np.exp(-self.state @ self.state)), False, False, {}


PARAMETERS = {"motor": Uniform(0.5, 2, unit="m/s^2"), "sign": Choice((-1, 1))}
KNOWN = {"obs_names": ("place", "speed"), "time_step": 0.1, "return_bounds": (0, 100)}
FAMILY = TaskFamily.from_gymnasium(
    Trolley, PARAMETERS, name="trolley", max_episode_steps=100, reflection=(-1, -1), **KNOWN
)
