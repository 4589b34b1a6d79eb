"""gym-electric-motor's Cont-CC-PMSM-v0: the stator's resistance and the magnet's flux vary."""

import gym_electric_motor  # noqa: F401  (registers its environments)

from ssm_metarl import Setting, TaskFamily, Uniform


def motor_parameter(name):
    def set_it(env, value):
        motor = env.physical_system.unwrapped.electrical_motor
        motor.motor_parameter[name] = value
        motor._update_model()  # which the solver reads, made when the motor was

    return set_it


FAMILY = TaskFamily.from_gymnasium(
    "Cont-CC-PMSM-v0",
    {
        "r_s": Setting(motor_parameter("r_s"), Uniform(0.01, 0.1, unit="Ohm"), default=0.018),
        "psi_p": Setting(motor_parameter("psi_p"), Uniform(0.05, 0.08, unit="Vs"), default=0.066),
    },
    max_episode_steps=200,
)
