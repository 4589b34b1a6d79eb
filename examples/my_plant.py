"""A plant of one's own: a trolley on a hilltop. Its motor may be strong, or wired backwards."""

import gymnasium
import numpy as np

from ssm_metarl import Choice, TaskFamily, Uniform


class Trolley(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.motor, self.sign = 1.0, 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        place, speed = self.state
        speed += 0.1 * (place + self.sign * self.motor * (2 * action - 1))
        self.state = np.array([place + 0.1 * speed, speed], np.float32)
        return self.state, 1.0, bool(abs(place) > 1), False, {}


PARAMETERS = {"motor": Uniform(0.5, 2, unit="m/s^2"), "sign": Choice((-1, 1))}
KNOWN = {"obs_names": ("place", "speed"), "reflection": (-1, -1), "return_bounds": (0, 200)}
FAMILY = TaskFamily.from_gymnasium(Trolley, PARAMETERS, max_episode_steps=200, **KNOWN)
