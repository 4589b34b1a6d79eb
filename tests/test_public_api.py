"""The names that the documents promise: they resolve, they are cheap, they do what is said."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssm_metarl

DOCUMENTED = (
    "ssm_metarl.core.ssm:StateSpaceModel",
    "ssm_metarl.core.diagonal_ssm:DiagonalSSM",
    "ssm_metarl.core.policy:Policy",
    "ssm_metarl.meta_rl.meta_maml:MetaMAML",
    "ssm_metarl.meta_rl.trainer:MetaTrainer",
    "ssm_metarl.adaptation.standard_adapter:StandardAdapter",
    "ssm_metarl.adaptation.hybrid_adapter:HybridAdapter",
    "ssm_metarl.experience.experience_buffer:ExperienceBuffer",
    "ssm_metarl.env_runner.environment:Environment",
    "ssm_metarl.tasks.task_family:TaskFamily",
    "ssm_metarl.tasks.task_family:Uniform",
    "ssm_metarl.config:HybridAdaptationConfig",
    "ssm_metarl.config:StandardAdaptationConfig",
    "ssm_metarl.checkpoint:load_pretrained",
)


@pytest.mark.parametrize("name", ssm_metarl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(ssm_metarl, name)
    assert name == "__version__" or value.__name__ == name
    assert name in dir(ssm_metarl)


def test_no_other_name_resolves() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'StateSpaceModels'"):
        ssm_metarl.StateSpaceModels  # noqa: B018


@pytest.mark.parametrize("path", DOCUMENTED)
def test_a_documented_path_is_the_public_name(path: str) -> None:
    module, _, name = path.partition(":")
    assert getattr(importlib.import_module(module), name) is getattr(ssm_metarl, name)


def test_everything_public_has_a_docstring() -> None:
    for name in set(ssm_metarl.__all__) - {"__version__"}:
        assert (getattr(ssm_metarl, name).__doc__ or "").strip(), name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import ssm_metarl", "torch gymnasium matplotlib gradio tyro numpy"),
        ("import ssm_metarl.config", "torch gymnasium matplotlib gradio tyro numpy"),
        ("from ssm_metarl import StateSpaceModel, load_pretrained", "gymnasium matplotlib gradio"),
        ("from ssm_metarl import StandardAdapter, evaluate, MetaTrainer", "matplotlib gradio"),
    ],
)
def test_an_import_brings_in_only_what_it_needs(statement: str, absent: str) -> None:
    script = f"import sys\n{statement}\nassert 'ssm_metarl' in sys.modules\n" + (
        f"found = set({absent.split()!r}) & set(sys.modules)\nassert not found, found\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_the_documented_snippet_runs(tmp_path: Path) -> None:
    from ssm_metarl import (
        Environment,
        ExperienceBuffer,
        HybridAdaptationConfig,
        HybridAdapter,
        Rollout,
        StandardAdaptationConfig,
        StandardAdapter,
        StateSpaceModel,
        load_pretrained,
    )

    model = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
    assert sum(p.numel() for p in model.parameters()) == 6744
    hidden = model.init_hidden(batch_size=1)
    output, hidden = model(torch.zeros(1, 4), hidden)
    assert output.shape == (1, 4) and hidden.shape == (1, 32)
    outputs, _ = model(torch.zeros(7, 1, 4), model.init_hidden(batch_size=1))
    assert outputs.shape == (7, 1, 4)
    path = tmp_path / "model.pth"
    model.save(path)
    other = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
    assert other.load(path) is other
    assert torch.equal(other.feedthrough.weight, model.feedthrough.weight)
    policy = load_pretrained(path)
    assert policy.num_parameters() == 6744

    env = Environment("CartPole-v1")
    current_data = one_episode(env, Rollout)
    experience_buffer = ExperienceBuffer(max_size=10000)
    experience_buffer.add(current_data, [0])
    assert len(experience_buffer) == current_data.num_steps

    config = HybridAdaptationConfig(adapt_lr=0.01, num_adapt_steps=10, experience_weight=0.5)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    adapted = HybridAdapter(config).adapt(policy, current_data, experience_buffer)
    assert adapted.report.num_steps == 10
    assert adapted.report.loss_after < adapted.report.loss_before
    standard = StandardAdapter(StandardAdaptationConfig(adapt_lr=0.01, num_adapt_steps=10))
    for start in (policy, model):  # a raw model is taken wherever a policy is
        adapted = standard.adapt(start, current_data)
        assert adapted.report.loss_after < adapted.report.loss_before
        assert adapted.report.env_steps == current_data.num_steps
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert not torch.equal(adapted.core.feedthrough.weight, model.feedthrough.weight)


def one_episode(env: ssm_metarl.Environment, rollout: type[ssm_metarl.Rollout]) -> object:
    """A reader's own loop with Gymnasium's five-tuple, as a rollout of one task."""
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    rows = []
    done = False
    while not done:
        action = int(env.action_space.sample())
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs, done = next_obs, terminated or truncated

    def column(index: int, dtype: torch.dtype) -> torch.Tensor:
        values = torch.stack([torch.as_tensor(row[index], dtype=dtype) for row in rows])
        return values[:, None, None]  # (T, 1, 1, ...)

    first = torch.arange(len(rows))[:, None, None] == 0
    return rollout(
        obs=column(0, torch.float32),
        action=column(1, torch.int64),
        reward=column(2, torch.float32),
        next_obs=column(3, torch.float32),
        terminated=column(4, torch.bool),
        truncated=column(5, torch.bool),
        reset=first,
        mask=torch.ones_like(first),
        log_prob=torch.full(first.shape, -0.6931),
    )


def test_the_promised_shortcuts_of_the_facade() -> None:
    from ssm_metarl import Environment, TaskFamily, Uniform

    task = Environment("cartpole", {"force": 7.0, "sign": -1.0}, seed=0)
    obs, info = task.reset()
    assert obs.shape == (4,) and info == {}
    assert len(task.step(0)) == 5
    family = TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")})
    family.verify()
    assert family.task({"g": 7}).as_dicts() == [{"g": 7.0}]
