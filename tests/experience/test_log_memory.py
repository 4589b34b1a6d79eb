"""A log of any length takes the memory of a few blocks: reading it, and adapting to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

NAMES = ("x", "x_dot", "theta", "theta_dot")
BLOCK = 100_000

CHILD = """
import json, sys
import pyarrow.parquet
from ssm_metarl import StandardAdapter, StandardAdaptationConfig, load_pretrained
from benchmarks.child import peak_memory
from ssm_metarl.experience.plant_log import open_plant_log

policy = load_pretrained("cartpole")
result = {"start": peak_memory() / 1e6}
log = open_plant_log(
    sys.argv[1], obs_dim=4, action_space=policy.action_space,
    obs_names=("x", "x_dot", "theta", "theta_dot"),
)
result["read"] = peak_memory() / 1e6
if sys.argv[2] == "adapt":
    StandardAdapter(StandardAdaptationConfig(rollback=False)).adapt(policy, log.rollout)
    result["adapted"] = peak_memory() / 1e6
print(json.dumps(result | {"rows": log.num_rows, "used": log.used_rows, "notes": log.notes}))
"""


def write_log(path: Path, rows: int) -> None:
    """Numbers of a log with their full digits, in blocks: 90 bytes a row in text."""
    rng = np.random.default_rng(0)
    kinds = [(n, pyarrow.float64()) for n in ("time", *NAMES)]
    schema = pyarrow.schema([*kinds, ("action", pyarrow.int64()), ("episode", pyarrow.int64())])
    text = path.suffix == ".csv"
    with open(path, "wb") as file:
        if text:
            file.write((",".join(schema.names) + "\n").encode())
        writer = None if text else parquet.ParquetWriter(file, schema)
        for first in range(0, rows, BLOCK):
            row = np.arange(first, min(first + BLOCK, rows))
            columns = [row * 0.02, *rng.normal(size=(4, len(row))), row % 2, row // 200]
            if writer is None:
                formats = ["%.2f", *["%.15g"] * 4, "%d", "%d"]
                np.savetxt(file, np.stack(columns, axis=1), fmt=formats, delimiter=",")
            else:
                arrays = [pyarrow.array(column) for column in columns]
                writer.write_table(pyarrow.table(arrays, schema=schema))
        if writer is not None:
            writer.close()


def read_in_a_child(path: Path, then: str) -> dict[str, float]:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), then], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    result: dict[str, float] = json.loads(child.stdout)
    print(path.name, result)
    return result


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_200_000_rows_take_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    write_log(path, 200_000)
    result = read_in_a_child(path, "stop")
    assert (result["rows"], result["used"]) == (200_000, 20_000)
    assert result["notes"] == ["the last 20,000 of 200,000 rows are used"]
    assert result["read"] - result["start"] <= 150


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ten_million_rows_take_400_mb_at_most(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    write_log(path, 10_000_000)
    result = read_in_a_child(path, "adapt")
    path.unlink()
    assert (result["rows"], result["used"]) == (10_000_000, 20_000)
    assert result["read"] - result["start"] <= 400
    assert result["adapted"] - result["start"] <= 400
