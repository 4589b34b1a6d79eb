"""Compile the kernels, so that they lie on disk for every later process.

Place in the flow: stage 10, a process of its own, started by `kernels`; a container's image runs it
when it is built. ``python -m ssm_metarl.app.warm_up adapting training``
"""

from __future__ import annotations

import sys
from typing import get_args

from ssm_metarl.checkpoint import shipped_models
from ssm_metarl.config import Core, MetaTrainingConfig
from ssm_metarl.evaluation.episodes import collect_support, run_episodes
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.meta_rl.trainer import MetaTrainer

STEPS = 10


def warm_up_adapting() -> None:
    """Adapt every shipped model by gradient in all its modes, and run it."""
    for name in shipped_models():
        opened = open_model(name)
        tasks = opened.family.task()
        support = collect_support(opened.policy, tasks, STEPS, "random", seed=0)
        params = [opened.policy.meta_params()]
        for mode in opened.gradient_modes:
            adapted = opened.adapt(support, mode, opened.trained.adaptation())
            params.append(adapted.meta_params())
        for each in params:
            run_episodes(tasks, opened.policy.actor(each, 1, 1), 1, seed=0)


def warm_up_training() -> None:
    """Two epochs of either model: the second replays what the first one stored."""
    for core in get_args(Core):
        config = MetaTrainingConfig(
            core=core, tasks_per_epoch=2, horizon=STEPS, adaptation_mode="hybrid"
        )
        trainer = MetaTrainer(config)
        for _ in range(2):
            trainer.run_epoch()


PARTS = {"adapting": warm_up_adapting, "training": warm_up_training}

if __name__ == "__main__":
    for part in sys.argv[1:]:
        PARTS[part]()
