"""Trainings of a second: few tasks, short episodes, small models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssm_metarl.config import MetaTrainingConfig

TINY = {
    "state_dim": 4,
    "hidden_dim": 4,
    "num_layers": 1,
    "num_epochs": 6,
    "tasks_per_epoch": 3,
    "episodes_per_task": 2,
    "horizon": 8,
    "full_horizon_every": 0,
    "min_support_steps": 5,
    "max_support_steps": 9,
    "update_epochs": 2,
}


@pytest.fixture
def tiny() -> Callable[..., MetaTrainingConfig]:
    """A configuration whose epoch takes a few hundredths of a second; any field can be given."""

    def make(**settings: object) -> MetaTrainingConfig:
        return MetaTrainingConfig(**(TINY | settings))  # type: ignore[arg-type]

    return make
