"""The row of in-context training, and that its GRU is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssm_metarl.benchmarks.in_context import GRUModel, gru_trainer, in_context
from ssm_metarl.benchmarks.settings import Settings
from ssm_metarl.config_in_context import InContextConfig


def test_the_row_runs() -> None:
    rows = in_context(Settings(size="tiny"))
    assert [row.name for row in rows] == ["in_context/state32", "in_context/state128"]
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)


def test_the_model_is_torchs_gru_behind_an_encoder() -> None:
    model = GRUModel(5, width=7)
    x, hidden = torch.randn(6, 2, 3, 5), torch.randn(2, 3, 7)
    reset = torch.zeros(6, 2, 3, dtype=torch.bool)
    out, last = model.unroll(dict(model.named_parameters()), x, hidden, reset)
    for task in range(2):
        expected, state = model.gru(model.encoder(x[:, task]), hidden[task : task + 1])
        torch.testing.assert_close(out[:, task], expected)
        torch.testing.assert_close(last[task : task + 1], state)


def test_a_reset_clears_the_state_at_the_start_and_is_refused_later() -> None:
    model = GRUModel(5, width=7)
    params = dict(model.named_parameters())
    x, hidden = torch.randn(2, 1, 3, 5), torch.randn(1, 3, 7)
    reset = torch.zeros(2, 1, 3, dtype=torch.bool)
    reset[0, 0, 1] = True
    cleared, kept = hidden.clone(), hidden
    cleared[0, 1] = 0
    one = model.unroll(params, x, kept, reset)[0]
    other = model.unroll(params, x, cleared, torch.zeros_like(reset))[0]
    torch.testing.assert_close(one, other)
    reset[1, 0, 2] = True
    with pytest.raises(ValueError, match="expected no reset inside a sequence"):
        model.unroll(params, x, hidden, reset)


def test_the_gru_learns_by_the_same_training() -> None:
    config = InContextConfig(
        tasks_per_epoch=4, steps_per_epoch=16, sequence_steps=16, trial_episodes=100, horizon=8
    )
    trainer = gru_trainer(config)
    assert isinstance(trainer.policy.core, GRUModel)
    assert isinstance(trainer.policy.core.gru, nn.GRU)
    before = trainer.policy.core.gru.weight_hh_l0.detach().clone()
    trainer.run_epoch()
    assert not torch.equal(trainer.policy.core.gru.weight_hh_l0, before)
