"""The GRU that stands in for the state space model: torch's own, cleared where it should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gru import GRUModel, gru_policy, gru_trainer, pieces
from float32 import assert_only_rounded
from ssm_metarl.action_space import Continuous
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import run_trials
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily

STEPS, TASKS, ENVS, INPUTS, WIDTH = 9, 2, 3, 5, 7


def tiny(**changes: Any) -> InContextConfig:
    settings: dict[str, Any] = {
        "tasks_per_epoch": 4, "steps_per_epoch": 48, "sequence_steps": 16, "trial_episodes": 2,
        "horizon": 7, "minibatches": 2, "state_dim": 4, "hidden_dim": 8, "num_epochs": 4,
    }  # fmt: skip
    return InContextConfig(**(settings | changes))


def starts(share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(STEPS, TASKS, ENVS, generator=generator) < share


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_model_is_torchs_gru_behind_an_encoder_cleared_at_every_start(share: float) -> None:
    model = GRUModel(INPUTS, WIDTH).double()
    params = dict(model.named_parameters())
    x, hidden = torch.randn(STEPS, TASKS, ENVS, INPUTS), torch.randn(TASKS, ENVS, WIDTH)
    x, hidden = x.double(), hidden.double()
    reset = starts(share)
    out, last = model.unroll(params, x, hidden, reset)
    state, expected = hidden.flatten(0, 1)[None], []
    for t in range(STEPS):
        state = state * ~reset[t].flatten()[None, :, None]
        step, state = model.gru(model.encoder(x[t].flatten(0, 1))[None], state)
        expected.append(step[0].view(TASKS, ENVS, WIDTH))
    torch.testing.assert_close(out, torch.stack(expected))
    torch.testing.assert_close(last, state[0].view(TASKS, ENVS, WIDTH))
    (gradient,) = torch.autograd.grad(out.square().sum(), model.encoder.weight)
    (naive,) = torch.autograd.grad(torch.stack(expected).square().sum(), model.encoder.weight)
    torch.testing.assert_close(gradient, naive)


def test_pieces_of_a_known_pattern() -> None:
    reset = torch.tensor([[1, 0], [0, 0], [1, 0]], dtype=torch.bool)
    order, lengths = pieces(reset)
    # Row 1 has one piece of three steps, row 0 one of two and one of one.
    assert order.tolist() == [1, 0, 4, 3, 2, 5]
    assert lengths.tolist() == [3, 2, 1]


@pytest.mark.parametrize("mirror", [False, True])
def test_sequences_give_the_probabilities_of_acting(mirror: bool) -> None:
    """From stored states, trials starting inside: what the clipped steps learn from."""
    trainer = gru_trainer(tiny(num_epochs=1), family(mirror))
    tasks = trainer.family.sample("train", 4, seed=0)
    rollout = trainer._collect(tasks)
    sequences, _ = trainer._rate(rollout, None)
    assert bool(sequences.reset[1:].any())

    def log_prob(policy: Policy, inputs: Tensor, hidden: Tensor) -> Tensor:
        params, reset = policy.meta_params(), sequences.reset[:, None]
        with torch.no_grad():
            out, _ = policy.unroll(params, inputs[:, None], hidden, reset)
        return out.distribution.map(lambda x: x[:, 0]).log_prob(sequences.action)

    seen = trainer.policy, sequences.inputs, sequences.hidden
    assert_only_rounded(sequences.log_prob, log_prob, *seen)


def family(mirror: bool) -> TaskFamily:
    return CARTPOLE if mirror else replace(CARTPOLE, reflection=())


def test_it_is_symmetric_where_the_family_is() -> None:
    policy = gru_trainer(tiny()).policy.double()
    assert policy.mirror
    inputs = torch.randn(6, 1, 5, policy.input_dim).double()
    reset = torch.zeros(6, 1, 5, dtype=torch.bool)
    logits, image = (
        policy.unroll(policy.meta_params(), x, policy.init_hidden(1, 5), reset)[
            0
        ].distribution.logits  # type: ignore[attr-defined]
        for x in (inputs, inputs * policy.reflection)
    )
    torch.testing.assert_close(image, logits.flip(-1))


@pytest.mark.parametrize("sizes", [{}, {"hidden_dim": 96}, {"hidden_dim": 16, "num_layers": 1}])
def test_it_has_as_many_parameters(sizes: dict[str, int]) -> None:
    like = InContextTrainer(InContextConfig(**sizes)).policy
    policy = gru_policy(like, seed=0)
    assert policy.num_parameters() == pytest.approx(like.num_parameters(), rel=0.05)
    assert gru_policy(like, seed=0, width=9).core.output_dim == 9
    assert isinstance(policy.core, GRUModel)


def test_it_learns_by_the_same_training_and_resumes_bit_for_bit() -> None:
    whole, broken, resumed = (gru_trainer(tiny()) for _ in range(3))
    before = whole.policy.get_parameter("core.gru.weight_hh_l0").clone()
    generator = torch.get_rng_state()
    whole.train()
    assert not torch.equal(whole.policy.get_parameter("core.gru.weight_hh_l0"), before)
    for _ in range(2):
        broken.run_epoch()
    resumed.restore(broken.tensors(), broken.counters())
    resumed.train()
    assert all(torch.equal(v, resumed.tensors()[n]) for n, v in whole.tensors().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_it_is_evaluated_like_any_policy() -> None:
    policy: Policy = gru_trainer(tiny()).policy
    tasks = CARTPOLE.sample("id", 3, seed=0)
    config = EvaluationConfig(num_tasks=3, episodes_per_task=2)
    returns = run_trials(tasks, policy.actor(policy.meta_params(), 3, 1), config)
    assert returns.shape == (3, 2) and (returns > 0).all()


def test_continuous_actions() -> None:
    pendulum = TaskFamily.from_gymnasium("Pendulum-v1", {})
    policy = gru_trainer(tiny(), pendulum).policy
    assert isinstance(policy.action_space, Continuous)
