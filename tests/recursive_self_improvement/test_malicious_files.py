"""Malicious files: whatever is read, no code runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssm_metarl.checkpoint import unpack
from ssm_metarl.recursive_self_improvement import agent as agent_module
from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger, LedgerDamaged

MALICIOUS, NIGHTLY_MALICIOUS = 20, 200


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def malicious(marker: Path, rng: np.random.Generator) -> bytes:
    """A file that makes a marker where reading it runs code."""
    code = f"open({str(marker)!r}, 'w')"
    bomb: Any = [
        Bomb(os.system, f"touch {marker}"),
        Bomb(exec, code),
        Bomb(eval, code),
        Bomb(subprocess.call, ["touch", str(marker)]),
        Bomb(Path.touch, marker),
        Bomb(open, str(marker), "w"),
    ][rng.integers(6)]
    if rng.random() < 0.5:
        bomb = {"state_dict": {"A": bomb}, "config": {"state_dim": 1, "input_dim": bomb}}
    plain = pickle.dumps(bomb, protocol=int(rng.integers(6)))
    file = io.BytesIO()
    match rng.integers(5):
        case 0:
            return plain
        case 1:
            torch.save(bomb, file)
        case 2:
            torch.save(bomb, file, _use_new_zipfile_serialization=False)
        case 3:
            np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
        case 4:  # behind a safetensors header
            header = b'{"__metadata__":{"format":"ssm-metarl-checkpoint-1"}}'
            file.write(len(header).to_bytes(8, "little") + header + plain)
    return file.getvalue()


def check_malicious(begun: Path, make_agent: Any, folder: Path, count: int) -> None:
    marker, rng = folder / "marker", np.random.default_rng(23)
    folder.mkdir(exist_ok=True)
    agent = make_agent(folder=begun)
    champion = agent.lineage.champion
    for index in range(count):
        content = malicious(marker, rng)
        path = folder / f"{index}{('.pth', '.safetensors', '.pt', '')[index % 4]}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected"):
            make_lineage(path, folder / f"lineage-{index}")
        with pytest.raises(ValueError, match="expected"):
            unpack(agent.store.get(agent.store.put(content)), "weights")
        agent.store.path(champion).write_bytes(content)
        with pytest.raises(ValueError, match="expected weights with the hash"):
            _ = agent.current_model
        (folder / f"ledger-{index}").mkdir()
        (folder / f"ledger-{index}" / FILE_NAME).write_bytes(content)
        with pytest.raises(LedgerDamaged):
            Ledger(folder / f"ledger-{index}")
        assert not marker.exists()


def make_lineage(model: Path, folder: Path) -> None:
    agent_module.RecursiveSelfImprovementAgent(initial_model=model, folder=folder)


class TestMaliciousFiles:
    def test_run_nothing(self, begun, make_agent, tmp_path):
        check_malicious(begun, make_agent, tmp_path / "files", MALICIOUS)

    @pytest.mark.nightly
    def test_never_run_anything(self, begun, make_agent, tmp_path):
        check_malicious(begun, make_agent, tmp_path / "files", NIGHTLY_MALICIOUS)

    def test_would_run_if_they_were_unpickled(self, tmp_path):
        marker, rng = tmp_path / "marker", np.random.default_rng(23)
        for _ in range(MALICIOUS):
            with contextlib.suppress(Exception):
                pickle.loads(malicious(marker, rng))
        assert marker.exists()
