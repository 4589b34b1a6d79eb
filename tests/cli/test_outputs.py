"""Where commands write: one process at a time, and over nothing that is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssm_metarl.checkpoint import load_model, save_checkpoint
from ssm_metarl.cli.outputs import only_writer_of

from .conftest import Cli


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --model cartpole --num-tasks 2 --report {folder}",
        "bench adaptation --quick --work {parent}",
        "bench adaptation --quick --work other --out {folder}",
        "train --mode policy_gradient --num-episodes 4 --out {folder}",
    ],
)
def test_a_folder_that_is_written_to_is_refused(cli: Cli, tmp_path: Path, words: str) -> None:
    folder = tmp_path / "work" / "quick"
    folder.mkdir(parents=True)
    with only_writer_of(folder):
        refusal = cli(*words.format(folder=folder, parent=folder.parent).split()).refusal()
        before = sorted(folder.iterdir())
    assert str(folder) in refusal
    if "policy_gradient" not in words:  # which wants an empty folder in the first place
        assert refusal.endswith(f"received one of process {os.getpid()}")
    assert [path.name for path in before] == [".ssm-metarl.lock"]


def test_a_file_that_came_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, path = load_model("cartpole"), tmp_path / "adapted.safetensors"
    save_checkpoint(path, checkpoint, new=True)
    whole = path.read_bytes()
    with pytest.raises(FileExistsError, match="expected no file there yet"):
        save_checkpoint(path, checkpoint, new=True)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # it comes after the look
    with pytest.raises(FileExistsError, match="expected no file there yet"):
        save_checkpoint(path, checkpoint, new=True)
    assert path.read_bytes() == whole and os.listdir(tmp_path) == [path.name]


def test_a_file_system_without_links_takes_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    save_checkpoint(tmp_path / "x.safetensors", load_model("cartpole"), new=True)
    assert os.listdir(tmp_path) == ["x.safetensors"]
