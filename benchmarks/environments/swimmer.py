"""Gymnasium's Swimmer-v5 (MuJoCo): the first body's mass and the strength of all motors vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = 150 * value


FAMILY = TaskFamily.from_gymnasium(
    "Swimmer-v5",
    {
        "head": Setting("model.body_mass[1]", Uniform(25, 50, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
