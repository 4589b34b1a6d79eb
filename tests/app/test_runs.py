"""Tabs 1 and 3: a training, a run of self-improvement, an audit, each a command in the queue."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from ssm_metarl.app import charts, forms, lineage_markup
from ssm_metarl.app.forms import FieldError
from ssm_metarl.app.handlers import improving, training
from ssm_metarl.app.handlers.improving import EFFORTS
from ssm_metarl.app.handlers.models import OWN_RUN, facts
from ssm_metarl.app.jobs import Busy, JobState
from ssm_metarl.app.lineage_markup import METRICS
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.recursive_self_improvement.gate import GUARDRAILS, PRIMARY
from ssm_metarl.tasks.registry import FAMILIES

TRAINING = {
    "family": "cartpole", "core": "diagonal", "objective": "prediction",
    "adaptation_mode": "standard", "max_env_steps": 300_000, "tasks_per_epoch": 16,
    "inner_lr": 0.02, "outer_lr": MetaTrainingConfig.outer_lr, "seed": 0,
}  # fmt: skip
SMALL = {**TRAINING, "max_env_steps": 20_000, "tasks_per_epoch": 4, "seed": 3}
QUICK = {"cycles": 1, "effort": "a quick look", "seed": 0}
FORM = training.training_form(FAMILIES)


def wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_training_is_watched_stopped_and_used(server: Server, visitor: Visitor) -> None:
    assert training.view(visitor, server.jobs).state is None
    training.start(visitor, server.jobs, FAMILIES, SMALL)
    with pytest.raises(Busy, match="Your training is still"):
        training.start(visitor, server.jobs, FAMILIES, SMALL)

    def epochs() -> int:
        return len(training.view(visitor, server.jobs).log)

    wait(lambda: epochs() >= 3)
    view = training.view(visitor, server.jobs)
    assert view.active and not view.usable and 0 < view.progress < 1
    assert view.seconds_left is not None and view.seconds_left > 0
    training.cancel(visitor, server.jobs, training.KIND)
    wait(lambda: not training.view(visitor, server.jobs).active)
    view = training.view(visitor, server.jobs)
    assert view.state == JobState.STOPPED and view.usable and "saved stays" in view.message
    training.use(visitor, server.models)
    opened = server.models.of(visitor)
    assert visitor.model == OWN_RUN and opened.checkpoint.training["seed"] == 3
    assert opened.checkpoint.counters["epoch"] == view.log[-1]["epoch"], "the last epoch was saved"
    assert (
        dict(facts(opened))["meta-trained for"]
        == f"{view.log[-1]['env_steps']:,} environment steps"
    )
    other = server.visitors.arrive("")
    assert OWN_RUN not in server.models.names(other), "a visitor's run is their own"


def test_the_command_is_the_command_line_s(server: Server, visitor: Visitor) -> None:
    training.start(visitor, server.jobs, FAMILIES, SMALL)
    training.cancel(visitor, server.jobs, training.KIND)
    program, command, *flags = shlex.split(training.view(visitor, server.jobs).command)
    assert (program, command) == ("ssm-metarl", "train")
    assert flags[:2] == ["--seed", "3"] and flags[-2:] == ["--out", "run"]


def test_the_form_builds_the_same_configuration() -> None:
    other = {"core": "state_space", "adaptation_mode": "hybrid", "inner_lr": 0.05}
    config = MetaTrainingConfig(**forms.read(FORM, {**TRAINING, **other}))
    assert config == MetaTrainingConfig(
        core="state_space", adaptation_mode="hybrid", inner_lr=0.05, max_env_steps=300_000
    )
    assert MetaTrainingConfig(**forms.read(FORM, TRAINING)) == MetaTrainingConfig(
        max_env_steps=300_000
    )
    assert forms.problems(FORM, TRAINING) == forms.problems(improving.FORM, QUICK) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "/etc/passwd"), ("core", "lstm"), ("objective", None), ("adaptation_mode", 1),
        ("max_env_steps", 10**9), ("max_env_steps", "1; rm"), ("tasks_per_epoch", 0),
        ("inner_lr", float("nan")), ("outer_lr", -1), ("seed", [1]),
    ],
)  # fmt: skip
def test_a_bad_field_is_named_beside_the_good_ones(
    server: Server, visitor: Visitor, field: str, value: Any
) -> None:
    form = {**TRAINING, field: value}
    found = forms.problems(FORM, form)
    assert list(found) == [field] and found[field].startswith("expected")
    with pytest.raises(FieldError):
        training.start(visitor, server.jobs, FAMILIES, form)
    assert visitor.jobs == {} and not visitor.folder.exists()


def test_a_form_with_two_mistakes_names_both() -> None:
    assert set(forms.problems(FORM, {**TRAINING, "core": "x", "seed": -1})) == {"core", "seed"}
    wrong = {**QUICK, "cycles": 99, "effort": "all"}
    assert set(forms.problems(improving.FORM, wrong)) == {"cycles", "effort"}


@pytest.mark.slow
def test_a_cycle_of_self_improvement_and_its_audit(
    server: Server, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "a quick look", {
        **EFFORTS["a quick look"], "train_steps": 1_000, "confirm_pairs": 8,
        "attribution_pairs": 8, "canary_pairs": 8, "batch_pairs": 8,
    })  # fmt: skip
    monkeypatch.setattr(improving, "AUDIT_TASKS", 4)
    with pytest.raises(ValueError, match="audit: expected a lineage"):
        improving.start_audit(visitor, server.jobs)
    improving.start(visitor, server.jobs, QUICK)
    wait(lambda: not improving.view(visitor, server.jobs).active)
    view = improving.view(visitor, server.jobs)
    lineage = view.lineage
    assert view.message == "Done." and view.auditable and lineage is not None
    assert lineage.summary["generation"] == 1 and len(lineage.lineage.records) == 1
    assert list(METRICS) == [PRIMARY, *GUARDRAILS] and len(METRICS) == 5
    candidates = lineage.lineage.candidates
    assert {str(c.role) for c in candidates} == {"candidate", "control", "placebo"}
    assert lineage.audit is None
    drawn = charts.generations(lineage)
    assert {s["name"] for s in drawn["series"]} == {"candidate", "control", "placebo", "champion"}
    html = lineage_markup.lineage(lineage)
    assert str(lineage.lineage.records[0].outcome) in html
    assert all(name.replace("_", " ") in html for name in METRICS)
    improving.start_audit(visitor, server.jobs)
    wait(lambda: not improving.view(visitor, server.jobs).active)
    audited = improving.view(visitor, server.jobs)
    assert audited.message == "Audit: Done." and audited.lineage is not None
    audit = audited.lineage.audit
    assert audit is not None and audit["num_tasks"] == 4
    assert json.dumps(audit["champion"])[1:13] in json.dumps(lineage.summary["champion"])
    assert "champion - generation 0" in lineage_markup.lineage(audited.lineage)


def test_the_full_effort_is_the_daemon_s() -> None:
    run = improving.run_of({"cycles": 10, "effort": "as the daemon does it", "seed": 0}, "cartpole")
    assert run.settings == type(run.settings)() and (run.model, run.cycles) == ("cartpole", 10)
