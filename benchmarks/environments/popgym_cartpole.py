"""POPGym's PositionOnlyCartPoleEasy: the pole's length and the force vary, no speed is shown."""

from popgym.envs.position_only_cartpole import PositionOnlyCartPoleEasy

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    PositionOnlyCartPoleEasy,
    {"length": Uniform(0.3, 0.8, unit="m"), "force_mag": Uniform(7, 14, unit="N")},
    max_episode_steps=200,
    dead_time=1,  # a force shows in a speed at once, in a position one step later
)
