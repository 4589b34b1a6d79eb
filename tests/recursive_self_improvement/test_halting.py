"""What halts a lineage: failures in a row, and another evaluator."""

import shutil

import pytest

from ssm_metarl.recursive_self_improvement import agent as agent_module
from ssm_metarl.recursive_self_improvement import safety
from ssm_metarl.recursive_self_improvement.generation import Outcome, Stage

from .conftest import crash

FEW = {"num_candidates": 2, "train_steps": 1000}


def test_three_failures_in_a_row_halt_for_good(make_agent, simulated, tmp_path):
    bad, good = simulated(break_job=crash), simulated(gain=lambda job: 0.0)
    agent = make_agent(bad, **FEW)
    for executor, failures in ((bad, 1), (bad, 2), (good, 0), (bad, 1), (bad, 2), (bad, 3)):
        assert agent.finished is None
        agent.executor = executor
        agent.improve()
        assert agent.lineage.failures == failures
        assert (agent.lineage.stage == Stage.HALTED) == (failures == 3)
    champion, folder = agent.lineage.champion, agent.folder
    for _ in range(10):
        agent.close()
        agent = make_agent(good, folder)
        for call in (agent.improve, agent.step):
            with pytest.raises(ValueError, match=r"halted: .*resume --ack"):
                call()
        assert agent.lineage.stage == Stage.HALTED
    agent.acknowledge()
    with pytest.raises(ValueError, match="expected a halted lineage"):
        agent.acknowledge()
    assert agent.improve().outcome == Outcome.REJECTED and agent.lineage.champion == champion


def test_another_evaluator_halts_at_once(make_agent, monkeypatch):
    agent = make_agent(**FEW)
    for _ in range(4):
        agent.step()
    assert agent.lineage.stage == Stage.SCREEN
    jobs = len(agent.executor.jobs)
    monkeypatch.setattr(agent_module, "evaluator_hash", lambda: "another")
    agent.step()
    assert agent.lineage.stage == Stage.HALTED and len(agent.executor.jobs) == jobs
    assert "changed" in agent.finished and agent.lineage.champion == agent.lineage.first
    agent.acknowledge()
    assert agent.improve().outcome == Outcome.ACCEPTED


def test_numbers_of_an_evaluator_that_changed_meanwhile_do_not_count(make_agent, monkeypatch):
    agent = make_agent(**FEW)
    true = safety.evaluator_hash()
    while agent.lineage.stage != Stage.CONFIRM:
        agent.step()
    answers = iter([true, "another"])
    monkeypatch.setattr(agent_module, "evaluator_hash", lambda: next(answers))
    agent.step()
    assert agent.lineage.stage == Stage.HALTED
    assert "confirm" not in [e.kind for e in agent.ledger.events()]


def tampered_files(package):
    for part in safety.EVALUATOR:
        path = package / part
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def tamper(make_agent, tmp_path, monkeypatch, count):
    package = tmp_path / "package"
    shutil.copytree(safety.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "models"))
    monkeypatch.setattr(agent_module, "evaluator_hash", lambda: safety.evaluator_hash(package))
    files = list(tampered_files(package))
    halts = 0
    agent = make_agent(**FEW)
    for number in range(count):
        file = files[number * len(files) // count]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        agent.step()
        assert agent.lineage.stage != Stage.HALTED
        file.write_bytes(content)
        agent.step()
        halts += agent.lineage.stage == Stage.HALTED
        agent.acknowledge()
    assert halts == count


def test_a_byte_of_the_evaluator(make_agent, tmp_path, monkeypatch):
    tamper(make_agent, tmp_path, monkeypatch, 3)


@pytest.mark.nightly
def test_twenty_bytes_of_the_evaluator(make_agent, tmp_path, monkeypatch):
    tamper(make_agent, tmp_path, monkeypatch, 20)
