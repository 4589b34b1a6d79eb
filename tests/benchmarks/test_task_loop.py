"""The per-task loop does the same work as `MetaMAML`: the benchmark's peer is no straw man."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.numpy_cartpole import NumpyCartPole
from benchmarks.plain_policy import PlainPolicy, Style
from benchmarks.plain_state_space import PlainStateSpace
from benchmarks.task_loop import TaskLoop, scaled_advantages
from float32 import assert_only_rounded
from ssm_metarl.adaptation.inner_objective import task_loss
from ssm_metarl.config import Core, MetaTrainingConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.meta_maml import MetaMAML
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.types import Rollout

CARTPOLE = family_of_env("cartpole")
CONFIG = MetaTrainingConfig(
    seed=3,
    num_epochs=6,
    tasks_per_epoch=3,
    episodes_per_task=2,
    state_dim=5,
    hidden_dim=6,
    horizon=12,
    full_horizon_every=0,
    update_epochs=1,
    max_grad_norm=1e9,
    entropy_coef=0.01,
    min_support_steps=30,  # episodes of random actions end within them: resets inside
)


@pytest.fixture(scope="module", params=["diagonal", "state_space"])
def batch(request: pytest.FixtureRequest) -> tuple[Policy, Rollout, Rollout]:
    """A trainer's policy in float64, with support data and query episodes of three tasks."""
    trainer = MetaTrainer(replace(CONFIG, core=request.param))
    trainer.run_epoch()
    tasks = trainer.family.sample("train", 3, seed=0)
    support = trainer._collect_support(tasks, 35)
    query, _ = trainer._collect_query(tasks, trainer.policy.meta_params())
    torch.manual_seed(0)
    policy = trainer.policy.double()
    with torch.no_grad():  # away from the start, where heads and step sizes are all alike
        for p in policy.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        policy.step_size.abs_()

    def double(rollout: Rollout) -> Rollout:
        return rollout.map(lambda x: x.double() if x.is_floating_point() else x)

    return policy, double(support), double(query)


@pytest.mark.parametrize("style", ["cell", "layer"])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_the_meta_gradient_is_that_of_meta_maml(
    batch: tuple[Policy, Rollout, Rollout], style: Style, inner_steps: int
) -> None:
    policy, support, query = copy.deepcopy(batch[0]), *batch[1:]
    advantage = advantages(query, gamma=0.99, gae_lambda=0.95, shared_scale=True)
    loop = TaskLoop(policy, CONFIG, CARTPOLE, style)
    total = loop.backward(
        [support.task(k) for k in range(3)],
        [query.task(k) for k in range(3)],
        list(advantage.unbind(1)),
        inner_steps,
    )

    loss = task_loss(policy, "prediction", support, gamma=0.99, gae_lambda=0.95)
    update = MetaMAML(policy, CONFIG).update(
        loss, query, advantage, num_steps=inner_steps, progress=0.0
    )  # one outer step, unclipped: the gradient before it is still there

    assert total == pytest.approx(update.loss, rel=1e-9)
    sizes = loop.step_sizes.values()
    step_grads = [torch.zeros_like(s) if s.grad is None else s.grad for s in sizes]
    got = {n: p.grad for n, p in loop.params.items()}
    got["step_size"] = torch.cat([g.flatten() for g in step_grads])
    norm = 0.0
    for name, p in policy.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        found = got[name]
        found = torch.zeros_like(p) if found is None else found
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10, msg=name)
        norm += float(expected.norm())
    assert norm > 0.01


def test_the_advantages_are_those_of_the_trainer(
    batch: tuple[Policy, Rollout, Rollout],
) -> None:
    _, _, query = batch
    config = replace(CONFIG, gamma=0.99, gae_lambda=0.95)
    expected = advantages(query, gamma=0.99, gae_lambda=0.95, shared_scale=True)
    got = scaled_advantages([query.task(k) for k in range(3)], config)
    torch.testing.assert_close(torch.stack(got, dim=1), expected)


@pytest.mark.parametrize(
    ("core", "kind"), [("diagonal", PlainPolicy), ("state_space", PlainStateSpace)]
)
def test_acting_step_by_step_is_the_unrolled_policy(core: Core, kind: type[PlainPolicy]) -> None:
    config = architecture(replace(CONFIG, core=core), CARTPOLE)
    policy = build_policy(config, seed=0, inner_lr=0.1)
    weights = {n: p.detach() for n, p in policy.meta_params().items()}
    obs = torch.randn(7, 1, 3, 4)
    plain, found = kind(config), []
    state = plain.start(3, obs)
    for t in range(7):
        logits, state = plain.act(weights, obs[t, 0], state)
        found.append(logits.log_softmax(-1))

    def unrolled(policy: Policy, obs: torch.Tensor) -> torch.Tensor:
        reset = torch.zeros(7, 1, 3, dtype=torch.bool)
        out, _ = policy.unroll(policy.meta_params(), obs, policy.init_hidden(1, 3), reset)
        return out.distribution.logits[:, 0].log_softmax(-1)

    assert_only_rounded(torch.stack(found), unrolled, policy, obs)


def test_an_epoch_takes_the_steps_of_the_trainers_epoch() -> None:
    trainer = MetaTrainer(CONFIG)
    loop = TaskLoop(trainer.policy, CONFIG, CARTPOLE)
    before = {n: p.clone() for n, p in loop.params.items()}
    epoch = loop.run_epoch(0)
    metrics = trainer.run_epoch()
    support = metrics.support_steps * CONFIG.tasks_per_epoch
    assert support < epoch.env_steps <= support + 3 * 2 * CONFIG.horizon
    assert any(not torch.equal(before[n], p) for n, p in loop.params.items())


def test_numpy_cartpole_is_the_familys_physics() -> None:
    tasks = CARTPOLE.sample("train", 1, seed=5)
    dynamics = CARTPOLE.dynamics
    assert dynamics is not None
    world = NumpyCartPole(tasks.as_dicts()[0], 4, np.random.default_rng(0), max_steps=500)
    state = torch.from_numpy(world.reset())[None]
    parameters = {n: v.float()[:, None].expand(1, 4) for n, v in tasks.values.items()}
    for action in ([0, 1, 1, 0], [1, 1, 0, 0]):
        obs, terminated, _ = world.step(np.array(action))
        arguments = state, torch.tensor([action]), parameters
        _, _, expected = dynamics.step(*arguments)
        state = torch.from_numpy(obs)[None]
        assert_only_rounded(state, lambda *of: dynamics.step(*of)[0], *arguments)
        np.testing.assert_array_equal(terminated, expected[0])


def test_an_ended_episode_stays_until_it_is_reset() -> None:
    task = CARTPOLE.default_task
    world = NumpyCartPole(task, 2, np.random.default_rng(0), max_steps=3)
    world.reset()
    for _ in range(2):
        _, _, truncated = world.step(np.array([0, 1]))
        assert not truncated.any()
    ended, _, truncated = world.step(np.array([0, 1]))
    assert truncated.all()
    after, terminated, truncated = world.step(np.array([0, 1]))
    assert (after == ended).all()
    assert not terminated.any()
    assert not truncated.any()
    world.reset(np.array([True, False]))
    moved, _, _ = world.step(np.array([0, 1]))
    assert (moved[0] != ended[0]).any()
    assert (moved[1] == ended[1]).all()
