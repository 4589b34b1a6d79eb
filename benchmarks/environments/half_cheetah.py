"""Gymnasium's HalfCheetah-v5 (MuJoCo): the torso's mass and the strength of all motors vary."""

import numpy as np

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = value * np.array([120, 90, 60, 120, 60, 30])


FAMILY = TaskFamily.from_gymnasium(
    "HalfCheetah-v5",
    {
        "torso": Setting("model.body_mass[1]", Uniform(4, 9, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
