"""Gymnasium's Reacher-v5 (MuJoCo): the upper arm's mass and the strength of all motors vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = 200 * value


FAMILY = TaskFamily.from_gymnasium(
    "Reacher-v5",
    {
        "arm": Setting("model.body_mass[1]", Uniform(0.025, 0.05, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
