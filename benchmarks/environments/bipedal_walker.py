"""Gymnasium's BipedalWalker-v3 (Box2D): gravity and friction of the world vary."""

from ssm_metarl import Setting, TaskFamily, Uniform


def set_gravity(env, value):
    env.world.gravity = (0, value)


FAMILY = TaskFamily.from_gymnasium(
    "BipedalWalker-v3",
    {"gravity": Setting(set_gravity, Uniform(-13, -7, unit="m/s^2"), default=-10.0)},
)
