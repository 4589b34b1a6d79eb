"""The evaluator's hash, and room on the disk."""

import errno
import shutil

import pytest

from ssm_metarl.recursive_self_improvement.safety import (
    EVALUATOR,
    PACKAGE,
    evaluator_hash,
    is_disk_trouble,
    require_room,
)
from ssm_metarl.recursive_self_improvement.summary import disk_usage


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "models"))
    return copy


def test_a_copy_has_the_same_hash_and_any_change_another(package):
    expected = evaluator_hash()
    assert evaluator_hash(package) == expected and len(expected) == 32
    for part in EVALUATOR:
        path = package / part
        file = sorted(path.rglob("*.py"))[-1] if path.is_dir() else path
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert evaluator_hash(package) != expected, part
        file.write_bytes(content)
    assert evaluator_hash(package) == expected
    (package / "core" / "another.py").write_text("")
    assert evaluator_hash(package) != expected
    (package / "core" / "another.py").rename(package / "cli" / "another.py")
    assert evaluator_hash(package) == expected, "the command line decides nothing"


def test_a_part_that_is_missing_is_another_evaluator(package):
    expected = evaluator_hash(package)
    shutil.rmtree(package / "tasks")
    without = evaluator_hash(package)
    (package / "types.py").unlink()
    assert len({expected, without, evaluator_hash(package)}) == 3


def test_room(tmp_path):
    require_room(tmp_path, 0.001)
    with pytest.raises(OSError, match="MB of free disk") as error:
        require_room(tmp_path, 1e12)
    assert error.value.errno == errno.ENOSPC and is_disk_trouble(error.value)


def test_what_disk_trouble_is():
    assert is_disk_trouble(OSError(errno.EIO, "x"))
    assert is_disk_trouble(OSError(None, "database or disk is full", "x"))
    assert not is_disk_trouble(FileNotFoundError(errno.ENOENT, "x"))
    assert not is_disk_trouble(OSError(None, "no such table"))


def test_disk_usage_counts_what_is_still_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    (tmp_path / "gone").symlink_to(tmp_path / "never")  # as a file that was deleted meanwhile
    assert disk_usage(tmp_path) == 8
