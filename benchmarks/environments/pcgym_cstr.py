"""pc-gym's stirred tank reactor: how well it is cooled varies."""

import numpy as np
from pcgym import make_env
from pcgym.model_classes import cstr

from ssm_metarl import TaskFamily, Uniform

STEPS = 60


def reactor():
    return make_env(
        {
            "custom_model": cstr(int_method="casadi"),  # "model" is made anew in every reset
            "N": STEPS,
            "tsim": 26,
            "SP": {"Ca": [0.85] * (STEPS // 2) + [0.9] * (STEPS // 2)},
            "x0": np.array([0.8, 330, 0.8]),
            "o_space": {"low": np.array([0.7, 300, 0.8]), "high": np.array([1, 350, 0.9])},
            "a_space": {"low": np.array([295]), "high": np.array([302])},
            "r_scale": {"Ca": 1e3},
        }
    )


FAMILY = TaskFamily.from_gymnasium(
    reactor, {"model.UA": Uniform(4e4, 6e4)}, name="cstr", max_episode_steps=STEPS
)
