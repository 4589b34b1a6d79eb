"""POPGym's NoisyPositionOnlyPendulumEasy: gravity, mass and length vary behind noise."""

from popgym.envs.noisy_position_only_pendulum import NoisyPositionOnlyPendulumEasy

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    NoisyPositionOnlyPendulumEasy,
    {"g": Uniform(8, 12, unit="m/s^2"), "m": Uniform(0.7, 1.4), "l": Uniform(0.7, 1.4)},
    max_episode_steps=200,
)
