"""A training's life in its folder: killed, stopped, diverged, resumed, and always the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssm_metarl.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl import training_data, training_run
from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
from ssm_metarl.meta_rl.training_run import LOCK_NAME, LOG_NAME, TrainingRun

MakeConfig = Callable[..., MetaTrainingConfig]
EPOCHS, EVERY = 7, 2
_event_writer = training_run._event_writer

# Trains like the test below, and waits to be killed at the point that it is told.
TRAINING = """
import json, os, sys, time
from pathlib import Path
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl import training_run

out, settings, place, at, command = sys.argv[1:]
training_run.CHECKPOINT_EVERY = 2
training_run._event_writer = lambda *_: None  # its import takes seconds
replace = os.replace

def wait():
    print("here", flush=True)
    time.sleep(120)

def on_epoch(metrics, line):
    if place == "after" and metrics.epoch == int(at):
        wait()

def slow_replace(source, target):
    if place == "saving" and run and run.trainer.epoch == int(at):
        wait()
    replace(source, target)

run = None
os.replace = slow_replace
config = MetaTrainingConfig(**json.loads(settings))
start = training_run.TrainingRun.start
run = start(config, Path(out), on_epoch=on_epoch) if command == "start" else (
    training_run.TrainingRun.resume(Path(out), on_epoch=on_epoch))
run.train()
"""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every two epochs, and no TensorBoard, which takes longer than the training."""
    monkeypatch.setattr(training_run, "CHECKPOINT_EVERY", EVERY)
    monkeypatch.setattr(training_run, "_event_writer", lambda *_: None)


@pytest.fixture
def with_events(often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard all the same."""
    monkeypatch.setattr(training_run, "_event_writer", _event_writer)


@contextlib.contextmanager
def training_until(
    out: Path, config: MetaTrainingConfig, place: str, epoch: int, command: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that trains until epoch ``epoch`` and waits there, to be killed at the end."""
    arguments = [str(out), json.dumps(asdict(config)), place, str(epoch), command]
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        try:
            if line == "here\n":
                yield process
        finally:
            process.kill()
        assert line == "here\n", process.stderr.read()


def kill_at(out: Path, config: MetaTrainingConfig, place: str, epoch: int, command: str) -> None:
    """Train in a process of its own until epoch ``epoch``, and kill it there."""
    with training_until(out, config, place, epoch, command):
        pass


def fingerprint(out: Path) -> dict[str, Any]:
    """What must come out the same: the checkpoint's tensors and counters, the log but its times."""
    checkpoint = load_checkpoint(out)
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        digest.update(name.encode() + checkpoint.tensors[name].numpy().tobytes())
    return {
        "tensors": digest.hexdigest(),
        "counters": checkpoint.counters,
        "training": checkpoint.training,
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in log(out)],
    }


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG_NAME).read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def uninterrupted(config: MetaTrainingConfig, out: Path) -> dict[str, Any]:
    TrainingRun.start(config, out).train()
    return fingerprint(out)


class TestKillAndResume:
    """A kill before the first checkpoint, between two, and while one is being written."""

    def test_a_killed_training_resumes_as_if_nothing_had_been(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        config, out = tiny(num_epochs=EPOCHS), tmp_path / "killed"
        kill_at(out, config, "after", 1, "start")
        assert load_checkpoint(out).counters["epoch"] == 0
        assert len(log(out)) == 1
        TrainingRun.resume(out).train()
        assert fingerprint(out) == uninterrupted(config, tmp_path / "whole")

    def test_and_hybrid_training_killed_twice(self, tiny: MakeConfig, tmp_path: Path) -> None:
        config = tiny(num_epochs=EPOCHS, adaptation_mode="hybrid", adaptation_steps=2)
        out = tmp_path / "killed"
        kill_at(out, config, "after", 3, "start")
        assert load_checkpoint(out).counters["epoch"] == 2
        assert len(log(out)) == 3
        kill_at(out, config, "saving", 6, "resume")
        assert (out / f"{FILE_NAME}.tmp").exists()
        run = TrainingRun.resume(out)
        assert run.trainer.epoch == 4
        assert len(log(out)) == 4
        assert len(run.trainer.buffer) > 0
        run.train()
        assert fingerprint(out) == uninterrupted(config, tmp_path / "whole")
        assert not (out / f"{FILE_NAME}.tmp").exists()


class TestResume:
    def stopped_at(self, epoch: int, config: MetaTrainingConfig, out: Path) -> TrainingRun:
        def on_epoch(metrics: Any, line: dict[str, Any]) -> None:
            if metrics.epoch == epoch:
                run.request_stop()

        run = TrainingRun.start(config, out, on_epoch=on_epoch)
        run.train()
        return run

    def test_a_requested_stop_saves_and_is_exact_to_resume(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        config = tiny(num_epochs=EPOCHS)
        run = self.stopped_at(3, config, tmp_path / "a")
        assert run.stopped
        assert load_checkpoint(tmp_path / "a").counters["epoch"] == 3  # not a multiple of EVERY
        run = TrainingRun.resume(tmp_path / "a")
        run.train()
        assert not run.stopped
        assert fingerprint(tmp_path / "a") == uninterrupted(config, tmp_path / "b")

    def test_a_stop_asked_for_in_the_last_epoch_is_the_end(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        assert not self.stopped_at(2, tiny(num_epochs=2), tmp_path).stopped

    def test_the_log_is_cut_back_to_the_checkpoint(self, tiny: MakeConfig, tmp_path: Path) -> None:
        self.stopped_at(3, tiny(), tmp_path)
        lines = (tmp_path / LOG_NAME).read_text()
        later = lines.splitlines()[-1].replace('"epoch": 3', '"epoch": 4')
        assert later not in lines
        (tmp_path / LOG_NAME).write_text(lines + later + "\n" + later[:20])  # the last line torn
        TrainingRun.resume(tmp_path)
        assert (tmp_path / LOG_NAME).read_text() == lines

    def test_a_log_that_is_gone_begins_anew(self, tiny: MakeConfig, tmp_path: Path) -> None:
        self.stopped_at(3, tiny(num_epochs=4), tmp_path)
        (tmp_path / LOG_NAME).unlink()
        TrainingRun.resume(tmp_path).train()
        assert [line["epoch"] for line in log(tmp_path)] == [4]

    @pytest.mark.parametrize(
        "damage", [b"\0" * 300 + b"\n", b"\n", b"\xff\xfe\n", b'{"epoch": 3, "env_', b'{"a": 1}\n']
    )
    @pytest.mark.parametrize("at", [0, 1, 3])
    def test_a_damaged_log_costs_its_damaged_lines(
        self, tiny: MakeConfig, tmp_path: Path, damage: bytes, at: int
    ) -> None:
        config = tiny(num_epochs=4)
        self.stopped_at(3, config, tmp_path / "a")
        lines = (tmp_path / "a" / LOG_NAME).read_bytes().splitlines(keepends=True)
        if at < 3 and not damage.endswith(b"\n"):
            damage += b"\n"
        lines.insert(at, damage)
        (tmp_path / "a" / LOG_NAME).write_bytes(b"".join(lines))
        run = TrainingRun.resume(tmp_path / "a")
        assert run.damaged_lines == 1
        run.train()
        assert fingerprint(tmp_path / "a") == uninterrupted(config, tmp_path / "b")

    def test_without_its_device_a_training_goes_on_where_it_can(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        config = tiny(num_epochs=4)
        self.stopped_at(2, config, tmp_path / "a")
        whole = load_checkpoint(tmp_path / "a")
        nowhere = replace(whole, training=whole.training | {"device": "hpu:9"})
        for given in (None, "cpu"):
            save_checkpoint(tmp_path / "a" / FILE_NAME, nowhere)
            run = TrainingRun.resume(tmp_path / "a", device=given)
            assert run.fallen_back_from == ("hpu:9" if given is None else None)
            assert run.trainer.config.device == "cpu"  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"device: expected one .* received 'hpu:8'"):
            TrainingRun.resume(tmp_path / "a", device="hpu:8")
        run.train()
        assert fingerprint(tmp_path / "a") == uninterrupted(config, tmp_path / "b")

    def test_a_run_that_another_has_overtaken_writes_nothing(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        self.stopped_at(2, tiny(), tmp_path)
        late = TrainingRun.resume(tmp_path, num_epochs=3)
        TrainingRun.resume(tmp_path, num_epochs=4).train()
        before = content(tmp_path)
        with pytest.raises(ValueError, match="expected the checkpoint that this training stands"):
            late.train()
        assert content(tmp_path) == before

    def test_new_limits_replace_the_old_ones(self, tiny: MakeConfig, tmp_path: Path) -> None:
        self.stopped_at(2, tiny(num_epochs=4, max_env_steps=10_000), tmp_path)

        def limits(**given: int) -> tuple[int | None, int | None]:
            config = TrainingRun.resume(tmp_path, **given).trainer.config  # type: ignore[arg-type]
            return config.num_epochs, config.max_env_steps

        assert limits() == (4, 10_000)
        assert limits(num_epochs=9) == (9, None)
        assert limits(max_env_steps=77) == (None, 77)
        assert limits(num_epochs=9, max_env_steps=77) == (9, 77)

    def test_a_finished_training_goes_on_with_a_new_limit(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        uninterrupted(tiny(num_epochs=2), tmp_path)
        finished = fingerprint(tmp_path)
        TrainingRun.resume(tmp_path).train()
        assert fingerprint(tmp_path) == finished
        TrainingRun.resume(tmp_path, num_epochs=3).train()
        assert [line["epoch"] for line in log(tmp_path)] == [1, 2, 3]

    def test_what_cannot_be_resumed(self, tiny: MakeConfig, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"checkpoint\.safetensors: expected a check"):
            TrainingRun.resume(tmp_path)
        uninterrupted(tiny(num_epochs=1), tmp_path)
        whole = load_checkpoint(tmp_path)
        model = Checkpoint(policy_config=whole.policy_config, tensors=whole.tensors)
        save_checkpoint(tmp_path / FILE_NAME, model)
        with pytest.raises(ValueError, match="expected a training's checkpoint, received a model"):
            TrainingRun.resume(tmp_path)
        other = Checkpoint(
            policy_config=whole.policy_config,
            tensors=whole.tensors,
            counters=whole.counters,
            training=whole.training | {"momentum": 0.9},
        )
        save_checkpoint(tmp_path / FILE_NAME, other)
        with pytest.raises(ValueError, match=r"training: expected fields .* received \['momentum"):
            TrainingRun.resume(tmp_path)
        # an older version's policy, of the same tensors, which today's settings would change
        later = ("mirror", "reflection", "obs_limit")
        older = {k: v for k, v in whole.policy_config.items() if k not in later}
        save_checkpoint(tmp_path / FILE_NAME, replace(whole, policy_config=older))
        with pytest.raises(ValueError, match=r"expected a training of this version.*received"):
            TrainingRun.resume(tmp_path)
        assert load_checkpoint(tmp_path).policy_config == older


class TestStart:
    def test_a_folder_that_holds_a_training_is_refused_and_left_alone(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        uninterrupted(tiny(num_epochs=1), tmp_path)
        before = content(tmp_path)
        with pytest.raises(ValueError, match=r"expected a folder without a training.*--resume"):
            TrainingRun.start(tiny(seed=1), tmp_path)
        assert content(tmp_path) == before

    def test_a_new_folder_can_be_resumed_at_once(self, tiny: MakeConfig, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "er"
        TrainingRun.start(tiny(num_epochs=2), out)
        assert set(content(out)) == {FILE_NAME, LOG_NAME}
        TrainingRun.resume(out).train()
        assert fingerprint(out) == uninterrupted(tiny(num_epochs=2), tmp_path / "whole")

    def test_a_wrong_configuration_makes_no_folder(self, tiny: MakeConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task family"):
            TrainingRun.start(tiny(family="tightrope"), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestTwoProcesses:
    """One trains, in a process of its own, and the other comes too late."""

    def test_the_second_is_refused_until_the_first_has_died(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        config, out = tiny(num_epochs=EPOCHS), tmp_path / "run"
        with training_until(out, config, "after", 3, "start") as process:
            before = content(out)
            refused = rf"run: expected a training that no .* received one of process {process.pid}$"
            with pytest.raises(ValueError, match=refused):
                TrainingRun.resume(out)
            with pytest.raises(ValueError, match="expected a folder without a training"):
                TrainingRun.start(config, out)
            assert content(out) == before
        TrainingRun.resume(out).train()  # the lock has died with its process
        assert fingerprint(out) == uninterrupted(config, tmp_path / "whole")
        assert not (out / LOCK_NAME).exists()


class TestLog:
    def test_a_line_an_epoch_and_evaluations_now_and_then(
        self, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training_run, "NUM_EVALUATIONS", 3)
        seen: list[dict[str, Any]] = []
        run = TrainingRun.start(
            tiny(num_epochs=6),
            tmp_path,
            on_epoch=lambda metrics, line: seen.append(line),
            on_eval=lambda policy: {"size": float(policy.num_parameters())},
        )
        policy = run.train()
        assert policy is run.trainer.policy
        assert log(tmp_path) == seen
        assert [line["epoch"] for line in seen] == [1, 2, 3, 4, 5, 6]
        evaluated = {line["epoch"]: line["eval_size"] for line in seen if "eval_size" in line}
        assert evaluated == dict.fromkeys((1, 2, 4, 6), policy.num_parameters())

    @pytest.mark.usefixtures("with_events")
    def test_tensorboard_gets_the_same(self, tiny: MakeConfig, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        uninterrupted(tiny(num_epochs=2), tmp_path)
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        received = [(e.step, e.value) for e in events.Scalars("env_steps")]
        assert received == [(line["epoch"], line["env_steps"]) for line in log(tmp_path)]

    @pytest.mark.usefixtures("with_events")
    def test_and_is_not_needed(
        self, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        uninterrupted(tiny(num_epochs=1), tmp_path)
        assert set(content(tmp_path)) == {FILE_NAME, LOG_NAME}


class TestTrouble:
    def test_a_nan_in_mid_training_leaves_the_last_good_checkpoint(
        self, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, collect = TrainingRun.start(tiny(), tmp_path), training_data.collect_rollout

        def spoiled(*args: Any, **kwargs: Any) -> Any:
            rollout = collect(*args, **kwargs)
            if run.trainer.epoch == 3:
                rollout.reward[0] = torch.nan
            return rollout

        monkeypatch.setattr(training_data, "collect_rollout", spoiled)
        with pytest.raises(TrainingDiverged, match="expected a finite loss"):
            run.train()
        checkpoint = load_checkpoint(tmp_path)
        assert checkpoint.counters["epoch"] == 2
        assert all(torch.isfinite(v).all() for v in checkpoint.tensors.values())
        checkpoint.policy()
        assert [line["epoch"] for line in log(tmp_path)] == [1, 2, 3]
        monkeypatch.undo()
        TrainingRun.resume(tmp_path).train()
        assert fingerprint(tmp_path) == uninterrupted(tiny(), tmp_path / "whole")

    def test_a_disk_that_is_full_leaves_the_last_good_checkpoint(
        self, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, replace = TrainingRun.start(tiny(), tmp_path), os.replace

        def full(*args: Any) -> None:
            if run.trainer.epoch >= 4:
                raise OSError("disk full")
            replace(*args)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            run.train()
        monkeypatch.undo()
        assert load_checkpoint(tmp_path).counters["epoch"] == 2
        assert not list(tmp_path.glob("*.tmp"))
