"""The audit: three policies on vault tasks, and a difference that says which way it fell."""

import pytest

from ssm_metarl.checkpoint import unpack
from ssm_metarl.recursive_self_improvement.audit import audit
from ssm_metarl.recursive_self_improvement.candidates import Training
from ssm_metarl.recursive_self_improvement.generation import Outcome
from ssm_metarl.recursive_self_improvement.metrics import Measurement

FEW = {"num_candidates": 2, "train_steps": 1000}


def of_kind(agent, kind):
    return [job for job in agent.executor.jobs if isinstance(job, kind)]


@pytest.fixture
def improved(make_agent, simulated):
    agent = make_agent(simulated(), **FEW)
    assert agent.improve().outcome == Outcome.ACCEPTED
    agent.executor = simulated(gain=lambda job: 20.0)
    return agent


def test_known_differences_on_vault_tasks_alone(improved):
    agent = improved
    head, spent = agent.ledger.head, agent.lineage.env_steps
    shares = []
    result = audit(agent, num_tasks=150, on_progress=lambda share, _: shares.append(share))
    (plain,) = of_kind(agent, Training)
    assert plain.env_steps == spent and plain.changes == {}
    assert plain.parent == agent.store.get(agent.lineage.first)
    assert {job.stream for job in of_kind(agent, Measurement)} == {"vault"}
    assert sorted({(j.start, j.count) for j in of_kind(agent, Measurement)}) == [
        (0, 100),
        (100, 50),
    ]
    for reference, gain in (("generation 0", 50.0), ("plain training", 30.0)):
        for split in ("id", "ood"):
            difference = result["differences"][f"champion - {reference}"][split]
            low, high = difference["ci95"]
            assert difference["mean"] == pytest.approx(gain, abs=1e-6)
            assert low == pytest.approx(gain) and high == pytest.approx(gain)
    assert set(result["arms"]) == {"champion", "generation 0", "plain training"}
    assert result["outcomes"]["accepted"] == 1 and result["env_steps"] == spent
    assert agent.ledger.head == head and agent.ledger.last_audit() == result
    assert shares[0] == 0 and shares[-1] == 1


def test_plain_training_is_made_once(improved):
    agent = improved
    first = audit(agent, num_tasks=10)
    assert audit(agent, num_tasks=10) == first
    assert len(of_kind(agent, Training)) == 1


def test_a_lineage_that_found_nothing_says_zero(make_agent, simulated):
    agent = make_agent(simulated(gain=lambda job: 0.0), **FEW)
    agent.improve()
    result = audit(agent, num_tasks=10, with_plain_training=False)
    assert result["differences"]["champion - generation 0"]["ood"] == {
        "mean": 0.0,
        "ci95": [0.0, 0.0],
    }
    assert set(result["arms"]) == {"champion", "generation 0"}
    (measured,) = {job.weights for job in of_kind(agent, Measurement) if job.stream == "vault"}
    assert unpack(measured, "x").card == {}, "one policy is measured once"


def test_a_failure_is_no_result(improved, simulated):
    improved.executor = simulated(break_job=lambda job: "timeout: more than 3600 s")
    with pytest.raises(ValueError, match="audit: expected a result, received timeout"):
        audit(improved, num_tasks=10)
    assert improved.ledger.last_audit() is None
