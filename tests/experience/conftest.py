"""A log from its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssm_metarl.action_space import Discrete
from ssm_metarl.experience.plant_log import PlantLog, open_plant_log

Log = Callable[..., PlantLog]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Opens a log of text or bytes: observations x and v, two actions."""

    def run(content: str | bytes, name: str = "log.csv", **options: object) -> PlantLog:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        settings = {"obs_dim": 2, "obs_names": ("x", "v"), "action_space": Discrete(2)} | options
        return open_plant_log(path, **settings)  # type: ignore[arg-type]

    return run
