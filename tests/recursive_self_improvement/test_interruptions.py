"""A generation that is interrupted anywhere goes on as if nothing had happened."""

import math

import pytest

from ssm_metarl.recursive_self_improvement.executor import Stopped
from ssm_metarl.recursive_self_improvement.generation import Outcome, Stage

FEW = {"num_candidates": 2, "train_steps": 1000}


def head_after(agent, generations=2):
    while len(agent.lineage.records) < generations:
        agent.step()
    return agent.ledger.head


def test_an_interruption_at_every_boundary_changes_nothing(make_agent, simulated, tmp_path):
    settings = FEW | {"confirm_pairs": 300, "canary_pairs": 128}
    gain = lambda job: 50.0 if job.changes else 20.0  # noqa: E731
    whole = make_agent(simulated(gain=gain), tmp_path / "whole", **settings)
    expected = head_after(whole)
    agent, stages = make_agent(simulated(gain=gain), tmp_path / "cut", **settings), set()
    while len(agent.lineage.records) < 2:
        stages.add(agent.lineage.stage)
        agent.step()
        agent.close()
        agent = make_agent(simulated(gain=gain), tmp_path / "cut")
    assert agent.ledger.head == expected
    assert stages >= {Stage.BASELINE, Stage.PROPOSE, Stage.TRAIN, Stage.SCREEN, Stage.CONFIRM,
                      Stage.ATTRIBUTE, Stage.COMMIT, Stage.CANARY, Stage.DECIDED}  # fmt: skip


def test_an_interrupted_training_keeps_its_results(make_agent, simulated, tmp_path):
    class StopsAfter:
        """Stops after every job."""

        def __init__(self):
            self.inner = simulated()

        def run(self, jobs, *, on_done=None):
            outcomes = self.inner.run(jobs[:1], on_done=on_done)
            if len(jobs) > 1:
                raise Stopped(f"{len(jobs) - 1} left")
            return outcomes

        def close(self):
            pass

    expected = head_after(make_agent(simulated(), tmp_path / "whole", **FEW), 1)
    agent = make_agent(simulated(), tmp_path / "cut", **FEW)
    while agent.lineage.stage != Stage.TRAIN:
        agent.step()
    runs, stops = [], 0
    while agent.lineage.stage == Stage.TRAIN:
        agent.close()
        agent = make_agent(StopsAfter(), tmp_path / "cut")
        agent._compiled = True
        try:
            agent.step()
        except Stopped:
            stops += 1
        runs += agent.executor.inner.jobs
    assert (len(runs), stops) == (4, 3), "each candidate was trained once"
    agent.executor = simulated()
    assert head_after(agent, 1) == expected


def test_a_disk_that_is_full_leaves_the_state_that_the_ledger_says(make_agent, monkeypatch):
    agent = make_agent(**FEW)
    agent.step()
    append = agent.ledger.append

    def full(*event):
        raise OSError(28, "full")

    monkeypatch.setattr(agent.ledger, "append", full)
    monkeypatch.setattr(agent, "_propose", lambda: math.log(0))  # a failure, unwritten
    for _ in range(4):
        with pytest.raises(OSError, match="full"):
            agent.step()
        assert agent.lineage.failures == 0 and agent.lineage.stage == Stage.PROPOSE
    monkeypatch.undo()
    assert agent.ledger.append == append
    assert agent.improve().outcome == Outcome.ACCEPTED


def test_an_interrupt_between_folding_and_writing(make_agent, monkeypatch):
    agent = make_agent(**FEW)

    def interrupted(*event):
        raise KeyboardInterrupt

    monkeypatch.setattr(agent.ledger, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.step()
    assert agent.lineage.stage == Stage.BASELINE
    monkeypatch.undo()
    assert agent.improve().outcome == Outcome.ACCEPTED
