"""A lineage without computing: candidates whose quality is written on them.

`SimulatedExecutor` answers an agent's jobs at once. A training gives its parent's checkpoint with
another ``quality`` in the card; a measurement gives returns around the quality, which depend on the
task alone but for it. So the whole state machine runs in milliseconds, and its truth is known.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssm_metarl import seeding
from ssm_metarl.checkpoint import pack, unpack
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent
from ssm_metarl.recursive_self_improvement.candidates import Trained, Training
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.executor import Executor
from ssm_metarl.recursive_self_improvement.metrics import CURVE_METRICS, Measured, Measurement
from ssm_metarl.recursive_self_improvement.worker import Outcome

GENERATIONS = 4
SETTINGS = {"num_candidates": 1, "canary_pairs": 64, "attribution_pairs": 64, "min_free_mb": 0.0}
"""Of the lineages that something happens to."""
QUALITY, SPREAD = 200.0, 60.0  # of generation 0, and of a task's return around a quality


@dataclass
class SimulatedExecutor(Executor):
    """Answers jobs at once.

    Args:
        gain: How much better than its parent a training's result is, given the job.
        break_job: Returns a failure's text for jobs that are to fail, else None.
    """

    gain: Callable[[Training], float] = lambda job: 50.0
    break_job: Callable[[Any], str | None] = lambda job: None
    jobs: list[Any] = field(default_factory=list)

    def run(self, jobs: Any, *, on_done: Any = None) -> list[Outcome]:
        outcomes = []
        for index, job in enumerate(jobs):
            self.jobs.append(job)
            failure = self.break_job(job)
            value = None if failure else self._answer(job)
            outcomes.append(Outcome(value=value, failure=failure))
            if on_done is not None:
                on_done(index, outcomes[-1])
        return outcomes

    def close(self) -> None:
        """There is nothing to close."""

    def _answer(self, job: Any) -> Any:
        if isinstance(job, Training):
            parent = unpack(job.parent, "parent")
            quality = min(parent.card.get("quality", QUALITY) + self.gain(job), 500.0)
            card = {"quality": quality, "seed": job.seed, "changes": str(sorted(job.changes))}
            return Trained(pack(replace(parent, card=card)), 1000, job.env_steps)
        assert isinstance(job, Measurement)
        quality = unpack(job.weights, "weights").card.get("quality", QUALITY)
        names = ("generalization", *CURVE_METRICS) if job.with_curve else ("generalization",)
        scores = {name: [] for name in names}
        for index in range(job.start, job.start + job.count):
            rng = seeding.generator(job.seed, f"simulated-{job.stream}", index)
            noise = SPREAD * rng.standard_normal()
            for values in scores.values():
                values.append(float(np.clip(quality + noise, 0, 500)))
        return Measured(scores, 100 * job.count)


def crash(job):
    return "crash: worker ended with exit code 3" if isinstance(job, Training) else None


TINY = {"state_dim": 4, "hidden_dim": 4, "num_layers": 1, "tasks_per_epoch": 4, "horizon": 30,
        "full_horizon_every": 0, "episodes_per_task": 2, "num_epochs": 1, "calibration_tasks": 0,
        "buffer_size": 200}  # fmt: skip


@pytest.fixture(scope="session")
def generation_zero(tmp_path_factory) -> Path:
    """A run's folder with a tiny model that was hardly trained."""
    folder = tmp_path_factory.mktemp("generation-zero")
    config = MetaTrainingConfig(**TINY)
    run = TrainingRun(MetaTrainer(config), folder)
    (folder / "training_log.jsonl").write_text("")
    run.train()
    return folder


@pytest.fixture
def make_agent(generation_zero, tmp_path):
    """Makes an agent with a simulated executor; what is left open is closed."""
    agents = []

    def make(executor: Any = None, folder: Path | None = None, **settings: Any):
        folder = folder or tmp_path / "lineage"
        new = not (folder / "ledger.sqlite").exists()
        defaults = {"min_free_mb": 0.0} | settings
        agents.append(
            RecursiveSelfImprovementAgent(
                initial_model=str(generation_zero) if new else None,
                config=RSIConfig(**defaults),
                folder=folder,
                executor=executor or SimulatedExecutor(),
            )
        )
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


@pytest.fixture
def simulated():
    """The class, for tests that set its gain or break its jobs."""
    return SimulatedExecutor


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Path:
    """Where what several tests begin with is made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def undisturbed(make_agent, kept) -> list[str]:
    """Hashes of a lineage that nothing happens to."""
    agent = make_agent(folder=kept / "undisturbed", **SETTINGS)
    while len(agent.lineage.records) < GENERATIONS:
        agent.improve()
    assert len(set(agent.lineage.champions)) > 1
    return [e.hash for e in agent.ledger.events()]


@pytest.fixture
def begun(make_agent, kept, tmp_path) -> Path:
    """A lineage with its first generation behind it."""
    agent = make_agent(folder=kept / "begun", **SETTINGS)
    while not agent.lineage.records:
        agent.improve()
    agent.close()
    return Path(shutil.copytree(agent.folder, tmp_path / "begun"))
