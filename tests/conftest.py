"""What the whole suite needs: kernels that are compiled once, before tests run side by side.

Processes that compile at the same time do not all get the same machine code: what one finds on disk
another compiles into its callers. Sums may then differ in the last bit, and tests of bit-identical
trainings compare processes.
"""

from __future__ import annotations

import pytest

from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import Core, MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.meta_rl.trainer import MetaTrainer

CORES: tuple[Core, ...] = ("diagonal", "state_space")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Train a little and adapt, in the process that starts the others."""
    if hasattr(session.config, "workerinput"):
        return
    InContextTrainer(
        InContextConfig(
            family="cartpole_scrambled", tasks_per_epoch=4, steps_per_epoch=16, sequence_steps=16,
            imitation_coef=1.0,
        )
    ).run_epoch()  # fmt: skip
    for core in CORES:
        config = MetaTrainingConfig(
            core=core, tasks_per_epoch=2, horizon=10, adaptation_mode="hybrid", adaptation_steps=1
        )
        trainer = MetaTrainer(config)
        for _ in range(2):
            trainer.run_epoch()
        tasks = trainer.family.sample("id", 2, seed=0)
        support = trainer._collect_support(tasks, 10)
        adapted, _ = StandardAdapter().adapt_tasks(trainer.policy, support)
        for params in (adapted, trainer.policy.meta_params()):
            worlds = make_worlds(tasks, 1, seed=0, purpose="warm-up")
            collect_rollout(worlds, trainer.policy.actor(params, 2, 1), 5, autoreset=True)
