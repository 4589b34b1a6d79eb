"""The types of settings: NumPy's numbers are numbers, and what is none is refused by its field."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from benchmarks.adaptation.fine_tuning import FineTuningConfig
from ssm_metarl.config import (
    EvaluationConfig,
    HybridAdaptationConfig,
    MetaTrainingConfig,
    OnlineAdaptationConfig,
    PolicyConfig,
    SingleTaskConfig,
)
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.recursive_self_improvement.config import RSIConfig

NUMBERS: dict[str, Any] = {"seed": np.int64(3), "hidden_dim": np.int16(16),
                           "inner_lr": np.float32(0.5), "gamma": np.float64(0.9),
                           "memory": np.bool_(True), "max_env_steps": np.array(7),
                           "family": np.str_("cartpole")}  # fmt: skip


class TestTypes:
    """Numbers that NumPy drew are numbers; what is none is refused by the field's name."""

    def test_numpy_scalars_become_pythons_numbers(self) -> None:
        config = MetaTrainingConfig(**NUMBERS)
        plainly = MetaTrainingConfig(
            seed=3, hidden_dim=16, inner_lr=0.5, gamma=0.9, max_env_steps=7
        )
        assert config == plainly
        assert json.dumps(asdict(config)) == json.dumps(asdict(plainly))
        assert {type(getattr(config, name)) for name in NUMBERS} == {int, float, bool, str}

    def test_sequences_become_tuples_of_them(self) -> None:
        for given in (np.array([0.5, 2.0]), [0.5, 2], (np.float32(0.5), np.int8(2))):
            config = PolicyConfig(obs_scale=given, num_actions=np.uint8(2))  # type: ignore[arg-type]
            assert config == PolicyConfig(obs_scale=(0.5, 2), num_actions=2)
            assert json.loads(json.dumps(asdict(config)))["obs_scale"] == [0.5, 2]

    def test_whole_numbers_stay_whole_in_a_fields_place_for_any(self) -> None:
        assert repr(MetaTrainingConfig(gamma=1).gamma) == "1"

    @pytest.mark.parametrize(
        ("config", "values"),
        [
            (MetaTrainingConfig, {"seed": 1.5}),
            (MetaTrainingConfig, {"seed": True}),
            (MetaTrainingConfig, {"hidden_dim": "16"}),
            (MetaTrainingConfig, {"outer_lr": None}),
            (MetaTrainingConfig, {"outer_lr": float("inf")}),
            (MetaTrainingConfig, {"outer_lr": 10**400}),
            (MetaTrainingConfig, {"memory": 1}),
            (MetaTrainingConfig, {"family": 3}),
            (MetaTrainingConfig, {"objective": np.array(["prediction", "prediction"])}),
            (MetaTrainingConfig, {"horizon": np.array([3])}),
            (MetaTrainingConfig, {"device": None}),
            (InContextConfig, {"lr": "fast"}),
            (InContextConfig, {"horizon": 2.0}),
            (EvaluationConfig, {"rollback": "no"}),
            (EvaluationConfig, {"num_tasks": []}),
            (HybridAdaptationConfig, {"adapt_lr": {}}),
            (OnlineAdaptationConfig, {"window": 2.5}),
            (SingleTaskConfig, {"env_name": None}),
            (RSIConfig, {"return_bounds": (1.0,)}),
            (RSIConfig, {"screen_pairs": 3}),
            (FineTuningConfig, {"lr": "x"}),
        ],
        ids=str,
    )
    def test_what_is_of_another_type_is_refused_by_name(
        self, config: type[Any], values: dict[str, Any]
    ) -> None:
        (name,) = values
        with pytest.raises(ValueError, match=rf"^{name}: expected .*, received "):
            config(**values)
