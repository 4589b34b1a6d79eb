"""Weights on disk: under their own hash, whole or not at all, and nowhere but in their folder."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from ssm_metarl.recursive_self_improvement import store as store_module
from ssm_metarl.recursive_self_improvement.store import SUFFIX, WeightStore, name_of

CONTENT, OTHER = b"some weights" * 100, b"other weights"


@pytest.fixture
def store(tmp_path):
    return WeightStore(tmp_path / "lineage" / "weights")


def files(store: WeightStore) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.folder.iterdir()}


class TestPutAndGet:
    def test_what_was_put_comes_back(self, store):
        name = store.put(CONTENT)
        assert store.get(name) == CONTENT
        assert WeightStore(store.folder).get(name) == CONTENT
        assert files(store) == {f"{name}{SUFFIX}": CONTENT}

    def test_the_name_is_the_hash_of_the_content(self, store):
        expected = hashlib.blake2b(CONTENT, digest_size=16).hexdigest()
        assert store.put(CONTENT) == name_of(CONTENT) == expected != store.put(OTHER)

    def test_the_same_again_is_one_file_that_is_not_written_twice(self, store):
        name = store.put(CONTENT)
        before = store.path(name).stat()
        assert store.put(CONTENT) == name
        assert (store.path(name).stat().st_ino, len(files(store))) == (before.st_ino, 1)

    def test_a_damaged_file_is_seen_and_put_again(self, store):
        name = store.put(CONTENT)
        for damaged in (CONTENT[:-1], CONTENT + b"x", b"", OTHER):
            store.path(name).write_bytes(damaged)
            with pytest.raises(ValueError, match="expected weights with the hash"):
                store.get(name)
            assert store.put(CONTENT) == name
            assert store.get(name) == CONTENT

    def test_there_are_none_of_that_name(self, store):
        with pytest.raises(FileNotFoundError):
            store.get(name_of(CONTENT))

    @pytest.mark.parametrize(
        "name",
        [
            "", "a", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "../" + "a" * 29, "/etc/passwd",
            "../ledger.sqlite", "..", ".", "a" * 16 + "/" + "a" * 15, "a" * 31 + "\0",
            "a" * 31 + "\n", "a" * 31 + "\N{FULLWIDTH DIGIT ONE}", "..\\" + "a" * 29,
        ],
    )  # fmt: skip
    def test_what_is_no_name_is_refused(self, store, name):
        for access in (store.path, store.get):
            with pytest.raises(ValueError, match="expected 32 hexadecimal digits"):
                access(name)


class TestPrune:
    def test_those_named_stay_and_leftovers_go(self, store):
        kept, gone = store.put(CONTENT), store.put(OTHER)
        (store.folder / f"{gone}{SUFFIX}.tmp").write_bytes(b"half")
        (store.folder / f"{kept}{SUFFIX}.tmp").write_bytes(b"half")
        store.prune({kept, "f" * 32})
        assert files(store) == {f"{kept}{SUFFIX}": CONTENT}
        store.prune(set())
        assert files(store) == {}


class TestAFailingWrite:
    def fail(self, *_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    @pytest.mark.parametrize("broken", ["open", "fsync", "replace", "write"])
    def test_leaves_what_was_there(self, store, monkeypatch, broken):
        before = store.put(OTHER)
        with monkeypatch.context() as patch:
            if broken == "open":
                patch.setattr(store_module, "open", self.fail, raising=False)
            elif broken == "write":
                patch.setattr(store_module, "open", self.half_open, raising=False)
            else:
                patch.setattr(os, broken, self.fail)
            with pytest.raises(OSError, match="No space"):
                store.put(CONTENT)
        assert files(store) == {f"{before}{SUFFIX}": OTHER}
        assert store.get(store.put(CONTENT)) == CONTENT

    def half_open(self, path: Path, mode: str):
        """A file that takes some bytes and then no more."""
        file = open(path, mode)  # noqa: SIM115
        write = file.write

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, content: bytes) -> None:
                write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Half()

    def test_a_kill_at_any_step_leaves_the_old_and_at_most_a_leftover(self, store, monkeypatch):
        class Killed(BaseException):
            pass

        kept = store.put(OTHER)
        steps: list[str] = []
        for stop in range(4):
            steps.clear()

            def step(*args: object, real, stop=stop) -> object:
                if len(steps) == stop:
                    raise Killed
                steps.append(real.__name__)
                return real(*args)

            with monkeypatch.context() as patch:
                for name in ("fsync", "replace"):
                    real = getattr(os, name)
                    patch.setattr(os, name, lambda *args, real=real: step(*args, real=real))
                patch.setattr(Path, "unlink", lambda *_args, **_kwargs: None)  # it is dead
                if stop < 3:
                    with pytest.raises(Killed):
                        store.put(CONTENT)
                else:
                    store.put(CONTENT)
            whole = {f"{name_of(c)}{SUFFIX}": c for c in (CONTENT, OTHER)}
            assert {n: c for n, c in files(store).items() if n in whole}.items() <= whole.items()
            assert set(files(store)) <= {*whole, f"{name_of(CONTENT)}{SUFFIX}.tmp"}
            store.prune({kept})
            assert files(store) == {f"{kept}{SUFFIX}": OTHER}
        assert steps == ["fsync", "replace", "fsync"]

    def test_a_file_whose_rename_may_not_have_lasted_is_synced(self, store, monkeypatch):
        store.put(CONTENT)
        synced = []
        monkeypatch.setattr(store_module, "sync_folder", synced.append)
        store.put(CONTENT)
        assert synced == [store.folder]
        WeightStore(store.folder.parent / "more")
        assert synced[1:] == [store.folder.parent]
