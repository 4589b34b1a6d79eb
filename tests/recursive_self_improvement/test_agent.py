"""Whole generations: what is kept, what is not, and what an interruption changes (nothing)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssm_metarl import seeding
from ssm_metarl.checkpoint import load_checkpoint, unpack
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.executor import InlineExecutor
from ssm_metarl.recursive_self_improvement.generation import Outcome, Stage
from ssm_metarl.recursive_self_improvement.metrics import Measured, Measurement
from ssm_metarl.recursive_self_improvement.store import name_of
from ssm_metarl.tasks.task_family import TaskFamily

from .conftest import crash

FEW = {"num_candidates": 2, "train_steps": 1000}


def by_role(changed, control=0.0, placebo=0.0):
    """Gains of candidates, of the control and of the placebo (the job with another seed)."""
    seeds = []

    def gain(job):
        seeds.append(job.seed)
        if job.changes:
            return changed
        return control if job.seed == seeds[0] or seeds.count(job.seed) > 1 else placebo

    return gain


def named(agent, role):
    return [c for c in agent.lineage.candidates if c.role == role]


def test_a_true_gain_is_accepted_and_none_is_not(make_agent, simulated, tmp_path):
    agent = make_agent(simulated(gain=by_role(50.0)), **FEW)
    first = agent.lineage.champion
    record = agent.improve()
    assert (record.outcome, record.label) == (Outcome.ACCEPTED, "change")
    assert record.champion == agent.lineage.champion != first
    assert agent.lineage.records == [record]
    other = make_agent(simulated(gain=lambda job: 0.0), tmp_path / "other", **FEW)
    assert [other.improve().outcome for _ in range(3)] == [Outcome.REJECTED] * 3
    assert other.lineage.champion == first and other.lineage.confirmations == 0


def test_a_loss_and_a_gain_that_only_training_brings(make_agent, simulated, tmp_path):
    agent = make_agent(simulated(gain=by_role(-40.0, -40.0, -40.0)), **FEW)
    assert agent.improve().outcome == Outcome.REJECTED
    trained = make_agent(simulated(gain=lambda job: 50.0), tmp_path / "other", **FEW)
    record = trained.improve()
    assert (record.outcome, record.label) == (Outcome.ACCEPTED, "training")


def test_a_control_may_win_and_a_placebo_never(make_agent, simulated, tmp_path):
    agent = make_agent(simulated(gain=by_role(0.0, 50.0, 100.0)), **FEW)
    record = agent.improve()
    assert (record.outcome, record.label, record.changes) == (Outcome.ACCEPTED, "training", {})
    means = dict(record.candidates)
    assert means["placebo"] == pytest.approx(0.2) and means["control"] == pytest.approx(0.1)
    lucky = make_agent(simulated(gain=by_role(0.0, 0.0, 200.0)), tmp_path / "lucky", **FEW)
    assert lucky.improve().outcome == Outcome.REJECTED


class Worsens:
    """An executor whose candidates are good until they are champions: then 5 points worse.

    Differences have a spread of ``spread`` points, drawn anew for each side.
    """

    def __init__(self, simulated, seed, loss=25.0, spread=0.1):
        self.inner, self.seed, self.loss, self.scale = simulated(), seed, loss, 500 * spread

    def run(self, jobs, *, on_done=None):
        outcomes = self.inner.run(jobs, on_done=on_done)
        return [self._worse(job, o) for job, o in zip(jobs, outcomes, strict=True)]

    def _worse(self, job, outcome):
        if getattr(job, "stream", "") != "canary":
            return outcome
        is_new = unpack(job.weights, "weights").card.get("quality") is not None
        scores = []
        for index in range(job.start, job.start + job.count):
            rng = seeding.generator(self.seed, f"canary-{is_new}", index)
            scores.append(250 - self.loss * is_new + self.scale / math.sqrt(2) * rng.normal())
        return replace(outcome, value=Measured({"generalization": np.clip(scores, 0, 500).tolist()},
                                               100 * job.count))  # fmt: skip

    def close(self):
        pass


def planted(make_agent, simulated, tmp_path, count):
    undone = 0
    for seed in range(count):
        settings = FEW | {"screen_pairs": (16,), "attribution_pairs": 64}
        agent = make_agent(Worsens(simulated, seed), tmp_path / str(seed), **settings)
        before = agent.lineage.champion
        record = agent.improve()
        within = agent.lineage.next_index["canary"] <= 512  # 500, in whole batches of 64
        undone += record.outcome == Outcome.ROLLED_BACK and within
        if record.outcome == Outcome.ROLLED_BACK:
            assert agent.lineage.champion == agent.lineage.best == before
            assert name_of(agent.store.get(agent.ledger.champion)) == before
        agent.close()
    return undone


def test_planted_regressions_are_rolled_back(make_agent, simulated, tmp_path):
    assert planted(make_agent, simulated, tmp_path, 20) >= 17


@pytest.mark.nightly
def test_a_hundred_planted_regressions_are_rolled_back(make_agent, simulated, tmp_path):
    assert planted(make_agent, simulated, tmp_path, 100) >= 95


def test_without_harm_the_canary_lets_it_be(make_agent, simulated, tmp_path):
    agent = make_agent(Worsens(simulated, 0, loss=0.0), canary_pairs=200, **FEW)
    assert agent.improve().outcome == Outcome.ACCEPTED


# Crashes count.


def spoil(simulated, values, streams):
    """An executor in which candidates' scores on some streams are no numbers, or fail."""

    class Spoiled(simulated):
        def _answer(self, job):
            answer = super()._answer(job)
            new = isinstance(job, Measurement) and job.stream in streams
            if new and unpack(job.weights, "weights").card.get("quality") is not None:
                for scores in answer.scores.values():
                    scores[:values] = [math.nan] * len(scores[:values])
            return answer

    return Spoiled


@pytest.mark.parametrize("stream", ["screen", "confirm"])
def test_scores_that_are_no_numbers_count_as_the_worst(make_agent, simulated, stream):
    agent = make_agent(spoil(simulated, 16, [stream])(), **FEW)
    first = agent.lineage.champion
    record = agent.improve()
    assert record.outcome == Outcome.REJECTED and record.champion == first
    if stream == "confirm":  # 16 of every 64 pairs lost 100 points, the others won 10
        assert record.gain == pytest.approx(0.25 * -1 + 0.75 * 0.1)
        assert agent.lineage.next_index["confirm"] == len(record.wealth), "none was dropped"


@pytest.mark.parametrize("failure", ["timeout: more than 3600 s", "error: ValueError: x"])
def test_a_measurement_that_hangs_or_raises_loses_its_pairs(make_agent, simulated, failure):
    def break_job(job):
        return failure if getattr(job, "stream", "") == "confirm" else None

    agent = make_agent(simulated(break_job=break_job), **FEW)
    record = agent.improve()
    assert record.outcome == Outcome.REJECTED and record.gain == -1
    assert record.champion == agent.lineage.first


def test_scores_out_of_bounds_fail_the_generation_and_use_up_its_tasks(make_agent, simulated):
    class Outside(simulated):
        def _answer(self, job):
            answer = super()._answer(job)
            if getattr(job, "stream", "") == "confirm":
                answer.scores["generalization"][0] = 501.0
            return answer

    agent = make_agent(Outside(), **FEW)
    record = agent.improve()
    assert record.outcome == Outcome.FAILED and "expected returns from 0 to 500" in record.reason
    assert agent.lineage.next_index["confirm"] == 64
    agent.improve()
    starts = [j.start for j in agent.executor.jobs if getattr(j, "stream", "") == "confirm"]
    assert starts == [0, 0, 64, 64], "both sides of a pair meet the same tasks, and once"


def test_failed_trainings_cost_what_they_may_have_taken(make_agent, simulated):
    agent = make_agent(simulated(break_job=crash), **FEW)
    agent.step()
    before = agent.lineage.env_steps
    agent.improve()
    assert agent.lineage.env_steps - before == 4 * FEW["train_steps"]


def test_the_budget_is_kept(make_agent, simulated):
    agent = make_agent(simulated(gain=lambda job: 0.0), max_env_steps=120_000, **FEW)
    with pytest.raises(ValueError, match="budget is used up"):
        for _ in range(100):
            agent.improve()
    assert 1 <= len(agent.lineage.records) < 100
    assert agent.lineage.env_steps + 4 * FEW["train_steps"] > 120_000
    assert agent.lineage.env_steps < 120_000 + 64 * 100 * 5, "but for the round in which it ended"


# The folder of another lineage.


def test_another_model_family_or_setting_is_refused_in_one_line(make_agent, generation_zero):
    agent = make_agent(**FEW)
    folder = agent.folder
    agent.close()
    model = load_checkpoint(generation_zero)
    other = replace(model, tensors={n: v + 1 for n, v in model.tensors.items()})
    other_family = TaskFamily.from_gymnasium("Acrobot-v1", {})
    before = sorted(folder.rglob("*.safetensors"))
    for arguments, message in (
        ({"initial_model": other}, "model: expected the one"),
        ({"env": other_family}, "env: expected 'cartpole'"),
        ({"config": RSIConfig(seed=1, **FEW)}, "others for seed;"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            RecursiveSelfImprovementAgent(folder=folder, **arguments)
        assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*.safetensors")) == before
    again = make_agent(folder=folder)
    same = RecursiveSelfImprovementAgent(model, config=again.lineage.config, folder=folder)
    same.close()


def test_without_a_model_nothing_begins():
    with pytest.raises(ValueError, match="model: expected one to begin"):
        RecursiveSelfImprovementAgent()


# As documented, nothing simulated.


def test_the_documented_use(generation_zero):
    trained = load_checkpoint(generation_zero)
    policy = trained.policy()
    settings = {"num_candidates": 1, "train_steps": 1, "screen_pairs": (2, 4), "confirm_pairs": 4,
                "attribution_pairs": 4, "canary_pairs": 4, "batch_pairs": 4, "support_steps": 5,
                "curve_steps": (5,), "min_free_mb": 0.0}  # fmt: skip
    events = []
    agent = RecursiveSelfImprovementAgent(
        initial_model=policy,
        env=Environment("CartPole-v1"),
        config=RSIConfig(**settings),
        executor=InlineExecutor(),
        on_update=lambda lineage, kind, detail: events.append(kind),
    )
    with agent:
        folder = agent.folder
        for name, value in policy.state_dict().items():
            assert torch.equal(agent.current_model.state_dict()[name], value), name
        record = agent.improve()
        assert record.outcome != Outcome.FAILED, record.reason
        assert agent.lineage.records == [record] and events[0] == "init" and "screen" in events
        assert events.count("trained") == 3
        assert agent.lineage.env_steps > 0
        config = unpack(agent.store.get(agent.lineage.champion), "x").training
        assert config["max_env_steps"] and config["calibration_tasks"] == 0
    assert not folder.exists()


def test_limits_of_the_run_may_be_others_when_a_lineage_goes_on(make_agent, simulated):
    first = make_agent(seed=3)
    first.close()
    again = RecursiveSelfImprovementAgent(
        config=RSIConfig(train_timeout=5.0, min_free_mb=1e9),
        folder=first.folder,
        executor=simulated(),
    )
    assert again.lineage.config.seed == 3, "what is at its default stands for what it was"
    with again, pytest.raises(OSError, match="MB of free disk"):
        again.improve()


def test_a_first_model_that_cannot_be_measured_is_a_failure(make_agent, simulated):
    agent = make_agent(simulated(break_job=lambda job: "crash: gone"))
    for _ in range(3):
        assert agent.lineage.stage != Stage.HALTED
        agent.improve()
    assert agent.lineage.stage == Stage.HALTED
    assert agent.lineage.reason == "generation 0 could not be measured: crash: gone"
