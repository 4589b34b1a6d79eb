"""A model that is ready to run: what it can do, and that doing it leaves it as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssm_metarl.checkpoint import load_model, save_checkpoint
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.evaluation.episodes import (
    collect_support,
    plays_disturbed,
    run_episodes,
)
from ssm_metarl.evaluation.opened_model import OpenedModel, open_experience, open_model
from ssm_metarl.evaluation.score import score
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.frozen import AdaptedTo, Frozen
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.recursive_self_improvement.generation_zero import generation_zero
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from trials import trial_episodes


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_model("cartpole")


def test_its_modes_are_those_that_it_has_the_means_for(opened: OpenedModel, tmp_path: Path) -> None:
    assert opened.modes == ("standard", "hybrid")
    assert replace(opened, buffer=None).modes == ("standard",)
    StateSpaceModel(output_dim=2).save(tmp_path / "raw.pth")  # no outputs to predict with
    assert open_model(str(tmp_path / "raw.pth")).modes == ()
    assert replace(opened, trained=MetaTrained(gradient=False)).modes == ()


def test_a_model_that_remembers_adapts_in_context_and_by_gradient_if_trained_for_it(
    opened: OpenedModel,
) -> None:
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.01)
    for trained, modes in (
        (MetaTrained(gradient=False), ("in_context",)),
        (MetaTrained(), ("standard", "hybrid", "in_context", "both")),
    ):
        remembers = replace(opened, policy=policy, trained=trained)
        assert remembers.modes == modes
        assert remembers.gradient_modes == modes[:-2]
        assert trained.online().num_adapt_steps == int(trained.gradient)


def test_the_episodes_of_a_trial_follow_each_other() -> None:
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.01)
    params, tasks = policy.meta_params(), CARTPOLE.task()
    episodes = trial_episodes(policy, params, tasks, num_trials=2, num_episodes=3, seed=4)
    assert len(episodes) == 3
    alone = run_episodes(tasks, policy.actor(params, 1, 2), 2, seed=4)
    lengths = alone.steps[0].tolist()
    assert episodes[0].mask.sum(0)[0].tolist() == lengths and len(set(lengths)) == 2
    actor = policy.actor(params, 1, 1)
    for episode in episodes:  # one of the trials again, step by step
        steps = int(episode.mask[:, 0, 1].sum())
        assert episode.mask[:steps, 0, 1].all() and episode.terminated[steps - 1, 0, 1]
        assert episode.reset[:, 0, 1].nonzero()[:1].tolist() == [[0]]
        for t in range(steps):
            action, _ = actor(episode.obs[t, :, 1:], episode.reset[t, :, 1:])
            assert torch.equal(action, episode.action[t, :, 1:])
            actor.rewarded(episode.reward[t, :, 1:])  # type: ignore[attr-defined]


def test_a_shipped_model_has_its_log_beside_it(opened: OpenedModel, tmp_path: Path) -> None:
    assert opened.training_log is not None
    assert opened.training_log.name == "cartpole.training.jsonl"
    StateSpaceModel().save(tmp_path / "raw.pth")
    assert open_model(str(tmp_path / "raw.pth")).training_log is None


def test_adapting_leaves_it_as_it_was(opened: OpenedModel) -> None:
    before = {n: v.clone() for n, v in opened.policy.state_dict().items()}
    tasks = CARTPOLE.task({"sign": 1})
    support = collect_support(opened.policy, tasks, 20, "random", seed=0)
    for mode in opened.modes:
        adapted = opened.adapt(support, mode, opened.trained.adaptation())
        assert adapted.report.num_steps == 1
    assert all(torch.equal(v, before[n]) for n, v in opened.policy.state_dict().items())


def test_a_mode_that_it_does_not_have_is_refused(opened: OpenedModel) -> None:
    bare = replace(opened, buffer=None)
    support = collect_support(opened.policy, CARTPOLE.task(), 20, "random", seed=0)
    with pytest.raises(ValueError, match="mode: expected 'standard' for a model without exper"):
        bare.adapt(support, "hybrid", opened.trained.adaptation())


def test_experience_of_another_family_is_not_replayed(opened: OpenedModel) -> None:
    """Its observations are as large: only the name tells."""
    assert opened.buffer is not None and opened.buffer.family == "cartpole"
    scrambled = open_model("cartpole", "cartpole_scrambled")
    assert scrambled.modes == ("standard",)
    result = scrambled.evaluate(
        EvaluationConfig(num_tasks=2, episodes_per_task=1), lambda done, arm: None
    )
    assert "standard" in result["arms"] and "hybrid" not in result["arms"]
    support = collect_support(scrambled.policy, CARTPOLE_SCRAMBLED.task(), 20, "random", seed=0)
    config = scrambled.trained.adaptation()
    with pytest.raises(
        ValueError, match="experience: expected that of cartpole_scrambled, received that of cartp"
    ):
        scrambled.adapt(support, "hybrid", config)
    # One that does not say where it is from may be replayed.
    unnamed = replace(scrambled, buffer=ExperienceBuffer(99))
    assert unnamed.modes == ("standard",), "nothing to replay"
    assert unnamed.buffer is not None
    unnamed.buffer.add(support, [0])
    assert unnamed.modes == ("standard", "hybrid") and unnamed.experience(config) is unnamed.buffer


def test_experience_comes_from_a_buffers_file_or_from_a_model(
    opened: OpenedModel, tmp_path: Path
) -> None:
    assert opened.buffer is not None
    opened.buffer.save(tmp_path / "buffer")
    for source in (tmp_path / "buffer", "cartpole"):
        experience = open_experience(source)
        assert (len(experience), experience.family) == (len(opened.buffer), "cartpole")
    StateSpaceModel().save(tmp_path / "raw.pth")
    with pytest.raises(ValueError, match=r"a model with experience, received .*raw.pth without"):
        open_experience(tmp_path / "raw.pth")
    with pytest.raises(FileNotFoundError, match="received 'none'"):
        open_experience("none")


def test_an_adapted_policy_and_its_model_meet_the_same_episodes(opened: OpenedModel) -> None:
    policy, tasks = opened.policy, CARTPOLE.task({"sign": 1, "force": 7})
    support = collect_support(policy, tasks, 20, "random", seed=0)
    adapted = opened.adapt(support, "standard", opened.trained.adaptation()).meta_params()
    methods = (Frozen(), AdaptedTo("adapted", adapted))
    table = score(methods, opened, tasks, None, num_episodes=3, seed=4)
    for row, params in zip(table.scores, (policy.meta_params(), adapted), strict=True):
        alone = run_episodes(tasks, policy.actor(params, 1, 3), 3, seed=4)
        assert row.returns.tolist() == alone.returns.tolist()
        assert row.episodes.steps.tolist() == alone.steps.tolist()
    assert table["adapted"].returns.min() > table["frozen"].returns.max()


def test_an_unadapted_policy_plays_the_plant_on_which_it_earns_more(opened: OpenedModel) -> None:
    plays = plays_disturbed(opened.policy, opened.family)
    totals = {
        sign: float(
            run_episodes(
                CARTPOLE.task({"sign": sign}),
                opened.policy.actor(opened.policy.meta_params(), 1, 1),
                1,
                seed=0,
            ).returns[0, 0]
        )
        for sign in (1.0, -1.0)
    }
    assert plays == (totals[-1.0] > totals[1.0]) and totals[1.0] != totals[-1.0]
    assert not plays_disturbed(opened.policy, replace(CARTPOLE, disturbances={}))


def test_a_model_of_a_device_that_is_not_here_adapts_on_the_processor(tmp_path: Path) -> None:
    checkpoint = load_model("cartpole")
    elsewhere = replace(checkpoint, training=checkpoint.training | {"device": "cuda:99"})
    save_checkpoint(tmp_path / "x.safetensors", elsewhere)
    opened = open_model(str(tmp_path / "x.safetensors"))
    assert opened.modes == open_model("cartpole").modes != ()
    config = EvaluationConfig(num_tasks=1, episodes_per_task=1)
    assert "standard" in opened.evaluate(config, lambda *_: None)["arms"]
    assert generation_zero(elsewhere, None)[1].name == "cartpole"
