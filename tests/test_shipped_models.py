"""The models that come with the package do what their cards say."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from float32 import assert_identity
from ssm_metarl.adaptation.change_detector import needs_adaptation
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_checkpoint, load_pretrained, shipped_models
from ssm_metarl.cli import main
from ssm_metarl.cli.parsing import parse
from ssm_metarl.command_line import command_line
from ssm_metarl.config import HybridAdaptationConfig, StandardAdaptationConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Params, Rollout

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "ssm_metarl/models"
BY_GRADIENT = ("cartpole", "cartpole_hybrid_real_model")
IN_CONTEXT = ("cartpole_in_context", "pendulum_in_context")
NAMES = tuple(sorted((*BY_GRADIENT, *IN_CONTEXT)))
every_model = pytest.mark.parametrize("name", NAMES)
every_gradient_model = pytest.mark.parametrize("name", BY_GRADIENT)

sys.path.insert(0, str(ROOT / "docs"))
try:
    import ship_models
finally:
    sys.path.pop(0)


def test_there_are_four() -> None:
    assert tuple(shipped_models()) == NAMES
    small = load_pretrained("cartpole")
    assert isinstance(small.core, DiagonalSSM) and small.num_parameters() <= 10_000
    documented = load_pretrained("cartpole_hybrid_real_model")
    assert isinstance(documented.core, StateSpaceModel) and documented.num_parameters() == 6_744
    assert 28_000 < (MODELS / "cartpole_hybrid_real_model.pth").stat().st_size < 36_000
    assert all(path.stat().st_size < 1_000_000 for path in MODELS.iterdir())


@every_model
def test_verify_reproduces_the_cards_figures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", name, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["matches_card"] is True
    number = r"(-?[\d.]+)"
    figures = rf"mean {number} ±\s+{number}, minimum {number}, maximum\s+{number};"
    shown = re.search(figures, card(name))
    assert shown is not None
    assert [float(x) for x in shown.groups()] == pytest.approx(
        [measured["mean"], measured["std"], measured["min"], measured["max"]], abs=0.05
    )
    assert measured["mean"] > measured["frozen_mean"] or name in IN_CONTEXT


@every_model
def test_the_card_is_made_from_the_committed_results(name: str) -> None:
    results = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    log = (MODELS / f"{name}.training.jsonl").read_text().splitlines()
    checkpoint = load_checkpoint(MODELS / f"{name}.safetensors")
    assert ship_models.card(name, checkpoint, results, json.loads(log[-1])) == card(name)
    for row in results:
        assert "--seed 20000" in row["command"] and row["evaluation"]["seed"] == 20_000
        assert row["evaluation"]["num_tasks"] == 200


def test_the_readme_shows_the_committed_results() -> None:
    assert ship_models.shipped_table() in (ROOT / "docs/figures.md").read_text()


@every_model
def test_the_cards_command_is_the_trainings_own(name: str) -> None:
    checkpoint = load_checkpoint(MODELS / f"{name}.safetensors")
    command = checkpoint.card["command"]
    assert f"\n{command}\n" in card(name)
    train = parse(command.split()[1:])
    for field, value in checkpoint.training.items():
        if field in ("mode", "family_fingerprint"):  # no flag of this command
            continue
        # the device is this machine's where none is named
        assert getattr(train, field) == (None if field == "device" else value), field
    log = [json.loads(x) for x in (MODELS / f"{name}.training.jsonl").read_text().splitlines()]
    assert log[0]["epoch"] == 1 and log[-1]["env_steps"] >= train.env_step_limit
    score = "eval_episode_1_mean" if name in IN_CONTEXT else "eval_adapted_mean"
    assert len(log) > 50 and sum(score in row for row in log) >= 10
    recipe = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text())
    made_by = re.search(rf"\.venv/bin/ssm-metarl (train .*) --out runs/{name}\n", recipe)
    assert made_by is not None
    words = ["train", "--mode in_context"] if name in IN_CONTEXT else ["train"]
    again = command_line(" ".join(words), parse(made_by[1].split()))
    assert again == command, "the Makefile says the same"


def run_plant(policy: Policy, sign: int, steps: int) -> tuple[Rollout, float]:
    """A policy's greedy steps on the default plant, episode after episode, and the mean return."""
    tasks = CARTPOLE.task({"sign": sign})
    worlds = make_worlds(tasks, 1, seed=5, purpose="test")
    rollout = collect_rollout(
        worlds, policy.actor(policy.meta_params(), 1, 1), steps, autoreset=True
    )
    return rollout, steps / float(rollout.reset.sum())


@every_gradient_model
def test_a_plant_that_flips_is_noticed_and_adapted_to(name: str) -> None:
    policy = load_pretrained(name)
    adapted = policy
    for sign in (1, -1, 1):
        running, _ = run_plant(adapted, sign, 20)
        assert needs_adaptation(adapted, running).verdict, "unadapted, or adapted to another plant"
        support = collect_support(policy, CARTPOLE.task({"sign": sign}), 20, "random", seed=sign)
        adapted = StandardAdapter().adapt(policy, support)
        assert adapted.report.num_steps == 1 and adapted.report.rolled_back is None
        running, mean_return = run_plant(adapted, sign, 500)
        assert mean_return == 500
        assert not needs_adaptation(adapted, running).verdict


@every_gradient_model
def test_many_small_steps_of_plain_gradient_descent_are_not_held_to_the_limits(name: str) -> None:
    policy = load_pretrained(name)
    support = collect_support(policy, CARTPOLE.task({"sign": -1}), 20, "random", seed=0)
    config = StandardAdaptationConfig(adapt_lr=1e-3, num_adapt_steps=10)
    report = StandardAdapter(config).adapt(policy, support).report
    assert report.num_steps == 10 and report.loss_after < report.loss_before


def test_hybrid_adaptation_of_many_tasks_equals_each_alone() -> None:
    """With limits, rollback and more tasks than are adapted at once."""
    checkpoint = load_checkpoint(MODELS / "cartpole_hybrid_real_model.safetensors")
    policy, buffer = checkpoint.policy(), checkpoint.experience()
    assert buffer is not None
    tasks = CARTPOLE.sample("ood", 18, seed=0)
    support = collect_support(policy, tasks, 20, "random", seed=0)
    support = replace(
        support, action=torch.cat([support.action[:, :9], 1 - support.action[:, 9:]], 1)
    )
    adapter = HybridAdapter(HybridAdaptationConfig(num_adapt_steps=5))
    some = [0, 8, 9, 17]
    reports = adapter.adapt_tasks(policy, support, buffer)[1]
    for k in some:
        _, (report,) = adapter.adapt_tasks(policy, support.task(k), buffer)
        assert (report.num_steps, report.rolled_back) == (
            reports[k].num_steps,
            reports[k].rolled_back,
        )

    def sides(policy: Policy, support: Rollout) -> tuple[Params, Params]:
        together, _ = adapter.adapt_tasks(policy, support, buffer)
        alone = [adapter.adapt_tasks(policy, support.task(k), buffer)[0] for k in some]
        return (
            {n: torch.cat([a[n] for a in alone]) for n in together},
            {n: p[some] for n, p in together.items()},
        )

    assert_identity(sides, policy, support)


def test_the_documented_file_is_loadable_by_anyone() -> None:
    content = torch.load(MODELS / "cartpole_hybrid_real_model.pth", weights_only=True)
    assert set(content) == {"state_dict", "config"}
    model = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
    assert model.load(MODELS / "cartpole_hybrid_real_model.pth") is model
    hidden = model.init_hidden(batch_size=1)
    output, hidden = model(torch.zeros(1, 4), hidden)
    assert output.shape == (1, 4)
    policy = load_pretrained("cartpole_hybrid_real_model")
    for name, value in model.state_dict().items():
        assert torch.equal(policy.core.state_dict()[name], value)
    # what the .pth has no room for comes from the file beside it
    assert policy.calibration is not None and policy.step_size.std() > 0


def card(name: str) -> str:
    return (MODELS / f"{name}.md").read_text()
