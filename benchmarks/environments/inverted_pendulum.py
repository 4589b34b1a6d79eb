"""Gymnasium's InvertedPendulum-v5 (MuJoCo): the cart's mass and the motor's strength vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_motors(env, value):
    env.model.actuator_gear[:, 0] = 100 * value


FAMILY = TaskFamily.from_gymnasium(
    "InvertedPendulum-v5",
    {
        "cart": Setting("model.body_mass[1]", Uniform(7, 15, unit="kg")),
        "motors": Setting(set_motors, Uniform(0.7, 1.4), default=1.0),
    },
)
