"""The plant of pendulum.py in other units: milliradians per second, torques in [-1000, 1000]."""

import gymnasium
import numpy as np

from ssm_metarl import TaskFamily, Uniform


def in_other_units():
    env = gymnasium.make("Pendulum-v1")
    env = gymnasium.wrappers.RescaleAction(env, np.float32(-1000), np.float32(1000))
    size = np.array([1, 1, 1000], np.float32)
    return gymnasium.wrappers.TransformObservation(
        env, lambda obs: obs * size, gymnasium.spaces.Box(-8 * size, 8 * size)
    )


FAMILY = TaskFamily.from_gymnasium(
    in_other_units,
    {
        "g": Uniform(8, 12, unit="m/s^2"),
        "m": Uniform(0.7, 1.4, unit="kg"),
        "l": Uniform(0.7, 1.4, unit="m"),
    },
)
