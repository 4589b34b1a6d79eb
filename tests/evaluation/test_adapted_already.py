"""An adapted model is no start for another adaptation: its step sizes and limits lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssm_metarl.adaptation.adapter import AdaptedPolicy
from ssm_metarl.adaptation.change_detector import needs_adaptation
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_checkpoint, load_pretrained, save_checkpoint
from ssm_metarl.cli import main
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.evaluation.meta_evaluator import evaluate
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.recursive_self_improvement.generation_zero import generation_zero
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Rollout

REFUSED = r"^policy: expected a meta-trained one, received one that is adapted already"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_pretrained("cartpole")


@pytest.fixture(scope="module")
def support(policy: Policy) -> Rollout:
    return collect_support(policy, CARTPOLE.task({"sign": -1}), 20, "random", seed=0)


@pytest.fixture(scope="module")
def adapted(policy: Policy, support: Rollout) -> AdaptedPolicy:
    return StandardAdapter().adapt(policy, support)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line saves."""
    out = tmp_path_factory.mktemp("adapted") / "plant.safetensors"
    task = ["--task", '{"sign": -1}', "--episodes", "1"]
    assert main(["adapt", "--model", "cartpole", *task, "--out", str(out)]) == 0
    return out


def test_in_memory_it_is_refused(adapted: AdaptedPolicy, support: Rollout) -> None:
    assert adapted.report.num_steps == 1
    with pytest.raises(ValueError, match=REFUSED):
        StandardAdapter().adapt(adapted, support)
    with pytest.raises(ValueError, match=REFUSED):
        StandardAdapter().adapt_tasks(adapted, support)
    with pytest.raises(ValueError, match=REFUSED):
        HybridAdapter().adapt(adapted, support, ExperienceBuffer(10))
    with pytest.raises(ValueError, match=REFUSED):
        OnlineAdapter(adapted)
    with pytest.raises(ValueError, match=REFUSED):
        generation_zero(adapted, CARTPOLE)


def test_a_policy_whose_step_was_undone_is_still_the_meta_trained_one(
    policy: Policy, support: Rollout
) -> None:
    undone = AdaptedPolicy(
        policy,
        {name: p[None] for name, p in policy.meta_params().items()},
        StandardAdapter().adapt(policy, support).report.__class__(0, 20, 1.0, 1.0, "too far"),
        support,
    )
    assert StandardAdapter().adapt(undone, support).report.num_steps == 1


def test_it_tells_whether_its_plant_is_still_the_same(
    adapted: AdaptedPolicy, support: Rollout, file: Path
) -> None:
    loaded = load_pretrained(file)
    assert needs_adaptation(adapted, support).score == pytest.approx(
        needs_adaptation(loaded, support).score
    )


def test_it_is_evaluated_as_it_is(adapted: AdaptedPolicy, file: Path) -> None:
    config = EvaluationConfig(num_tasks=4, episodes_per_task=1)
    arms = evaluate(adapted, CARTPOLE, config, model="adapted")["arms"]
    opened = open_model(str(file))
    assert opened.modes == ()
    from_file = opened.evaluate(config, lambda *_: None)["arms"]
    for result in (arms, from_file):
        assert "frozen" in result and not {"standard", "hybrid"} & set(result)
    assert arms["frozen"]["mean"] == pytest.approx(from_file["frozen"]["mean"])


@pytest.mark.parametrize(
    "words",
    [
        "adapt --out again.safetensors",
        "adapt --mode hybrid --out again.safetensors",
        "evaluate --drift flip",
        "evaluate --safety",
        "rsi run --lineage lineage",
    ],
)
def test_the_command_line_names_the_model_that_it_came_from(
    file: Path,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--model", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a meta-trained" in line
    assert line.endswith("adapted already (from 'cartpole': give that one)")
    assert not (tmp_path / "again.safetensors").exists()


def test_no_training_starts_from_it(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^start: expected a meta-trained one, received"):
        TrainingRun.start(MetaTrainingConfig(start=str(file)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_card_without_its_command_is_refused_without_a_name(file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(file)
    for command in (None, 3, "adapt 'half a quote", "adapt --model"):
        checkpoint.card["command"] = command
        save_checkpoint(tmp_path / "x.safetensors", checkpoint)
        with pytest.raises(ValueError, match=r"which is adapted already$"):
            open_model(str(tmp_path / "x.safetensors")).check_gradient("model")
