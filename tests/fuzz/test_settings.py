"""Settings of any type and value: taken, or refused in a line that names the field."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from benchmarks.adaptation.fine_tuning import FineTuningConfig
from ssm_metarl.config import (
    Calibration,
    EvaluationConfig,
    HybridAdaptationConfig,
    MetaTrainingConfig,
    OnlineAdaptationConfig,
    PolicyConfig,
    SingleTaskConfig,
    StandardAdaptationConfig,
)
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.settings import rebuild

from .junk import json_value, pick, python_value, rng_of

KINDS: dict[type[Any], dict[str, Any]] = {
    MetaTrainingConfig: {},
    InContextConfig: {},
    PolicyConfig: {"obs_scale": (1.0, 2.0), "num_actions": 2},
    Calibration: {"objective": "prediction", "max_loss": (1.0,), "max_kl": 1.0},
    EvaluationConfig: {},
    StandardAdaptationConfig: {},
    HybridAdaptationConfig: {},
    OnlineAdaptationConfig: {},
    SingleTaskConfig: {},
    FineTuningConfig: {"lr": 0.1},
    RSIConfig: {},
}
COUNTS = [200, pytest.param(10_000, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_field_is_taken_or_refused_by_name(kind: type[Any], count: int) -> None:
    names, taken = [field.name for field in fields(kind)], 0
    for index in range(count):
        rng = rng_of(1, index)
        changes = {pick(rng, names): python_value(rng) for _ in range(int(rng.integers(1, 4)))}
        try:
            config = kind(**(KINDS[kind] | changes))
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and message.split(":")[0] in names, (changes, message)
            continue
        taken += 1
        json.dumps(asdict(config))  # as a checkpoint keeps it
        recorded = json.loads(json.dumps(asdict(config)))
        if "NaN" not in json.dumps(recorded):
            assert rebuild(kind, recorded, "record") == config
    assert 0 < taken < count


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_record_is_taken_or_refused(kind: type[Any], count: int) -> None:
    names = [*(field.name for field in fields(kind)), "another", ""]
    sound = json.loads(json.dumps(asdict(kind(**KINDS[kind]))))
    for index in range(count):
        rng = rng_of(2, index)
        record: Any = dict(sound)
        for _ in range(int(rng.integers(1, 4))):
            record[pick(rng, names)] = json_value(rng)
        if rng.random() < 0.2:
            record.pop(pick(rng, list(record)))
        if rng.random() < 0.05:
            record = json_value(rng)
        try:
            rebuild(kind, record, "record")
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("record: ")
