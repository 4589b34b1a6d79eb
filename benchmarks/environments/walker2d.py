"""Gymnasium's Walker2d-v5 (MuJoCo): the torso's mass and the strength of all motors vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = 100 * value


FAMILY = TaskFamily.from_gymnasium(
    "Walker2d-v5",
    {
        "torso": Setting("model.body_mass[1]", Uniform(2.5, 5.5, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
