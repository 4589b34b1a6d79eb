"""Gymnasium's Pusher-v5 (MuJoCo): the shoulder's mass and the strength of all motors vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = value


FAMILY = TaskFamily.from_gymnasium(
    "Pusher-v5",
    {
        "shoulder": Setting("model.body_mass[1]", Uniform(5, 10, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
