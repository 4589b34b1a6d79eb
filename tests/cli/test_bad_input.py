"""What a user may get wrong beyond the flags: one line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssm_metarl.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.ssm import StateSpaceModel

from .conftest import Cli

TASKS = {
    '{"force": 7': "task: expected JSON such as",
    "[1, 2]": "task: expected a JSON object, received '[1, 2]'",
    "force=7": "task: expected JSON such as",
    '{"forse": 7}': "task parameter: expected one of ['force', 'gravity', 'length', 'mass', "
    "'sign'], received 'forse'",
    '{"force": 1000}': "task parameter 'force': expected 0.1 to 100 N, received 1000",
    '{"length": -1}': "task parameter 'length': expected 0.01 to 10 m, received -1",
    '{"sign": 0}': "task parameter 'sign': expected one of [-1.0, 1.0], received 0",
    '{"force": "7"}': "task parameter 'force': expected a number, received '7'",
    '{"force": NaN}': "task parameter 'force': expected",
    '{"force": null}': "task parameter 'force': expected a number, received None",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_makes_no_sense(cli: Cli, model: Path, tmp_path: Path, task: str) -> None:
    assert cli("adapt", "--model", model, "--task", task).refusal().startswith(TASKS[task])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["MountainCar-v0", "NoSuch-v9", "cart pole"])
def test_no_family(cli: Cli, model: Path, tmp_path: Path, family: str) -> None:
    for arguments in (
        ("train", "--env_name", family),
        ("train", "--env_name", family, "--out", "run"),
        ("evaluate", "--model", model, "--family", family),
        ("adapt", "--model", model, "--family", family),
    ):
        refusal = cli(*arguments).refusal()
        assert repr(family) in refusal
        assert "TaskFamily.from_gymnasium(" in refusal  # how to declare one
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("NoSuch-v9", "received 'NoSuch-v9'"),
        ("CartPole-v77", "received 'CartPole-v77'"),
        (
            "Blackjack-v1",
            "max_episode_steps: expected a number for Blackjack-v1, which has no time",
        ),
    ],
)
def test_an_environment_that_cannot_be_trained_on(
    cli: Cli, tmp_path: Path, env: str, expected: str
) -> None:
    outcome = cli("train", "--mode", "policy_gradient", "--env_name", env)
    assert expected in outcome.refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    refusal = cli("train", "--device", "nowhere", "--out", "run").refusal()
    assert "device: expected one that PyTorch can use here" in refusal
    assert "received 'nowhere'" in refusal
    assert list(tmp_path.iterdir()) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("hello")


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def not_an_object(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "ssm-metarl-checkpoint-1", "ssm_metarl": "[]"})


def no_architecture(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "ssm-metarl-checkpoint-1", "ssm_metarl": "{}"})


def edited(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        checkpoint = load_checkpoint(path)
        values = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
        save_checkpoint(path, Checkpoint(**(values | changes)))

    return damage


def wrong_shape(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    name = "policy.heads.value.weight"
    edited(tensors={**checkpoint.tensors, name: torch.zeros(1, 2)})(path)


DAMAGES = {
    "truncated": truncated,
    "flipped byte": flipped_byte,
    "empty": empty,
    "text": text,
    "foreign": foreign,
    "huge header": huge_header,
    "not an object": not_an_object,
    "no architecture": no_architecture,
    "wrong shape": wrong_shape,
    "no weights": edited(tensors={"policy.x": torch.zeros(1)}),
    "unknown architecture": edited(policy_config={"core": "lstm", "obs_scale": [1.0]}),
    "architecture without sizes": edited(policy_config={}),
    "architecture of another type": edited(policy_config={"obs_scale": 4, "num_actions": 2}),
    "unknown objective": edited(training={"objective": "guess"}),
    "unknown family": edited(training={"family": "MountainCar-v0"}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_or_foreign_checkpoint(cli: Cli, model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((model / FILE_NAME).read_bytes())
    DAMAGES[kind](path)
    for command in (("evaluate",), ("verify",), ("adapt", "--out", "new.safetensors")):
        cli(*command, "--model", path).refusal()
    assert list(tmp_path.iterdir()) == [path]


def test_resuming_what_is_no_training(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert "expected a checkpoint" in cli_line(cli("train", "--resume", tmp_path).err)
    assert "expected a checkpoint" in cli_line(cli("train", "--resume", tmp_path / "no").err)
    run = tmp_path / "run"
    run.mkdir()
    (run / FILE_NAME).write_bytes((model / FILE_NAME).read_bytes())
    edited(counters={}, training={})(run / FILE_NAME)
    assert "training" in cli("train", "--resume", run).refusal()
    (run / FILE_NAME).write_bytes((model / FILE_NAME).read_bytes())
    edited(training={"flux": 88})(run / FILE_NAME)
    cli("train", "--resume", run).refusal()
    truncated(run / FILE_NAME)
    cli("train", "--resume", run).refusal()


def cli_line(err: str) -> str:
    """The only line, where "found none" stands for "received"."""
    assert err.count("\n") == 1 and err.startswith("ssm-metarl: "), err
    return err


def test_a_resumed_training_takes_no_other_settings(cli: Cli, model: Path) -> None:
    refusal = cli("train", "--resume", model, "--outer_lr", 1, "--out", "x", "--json").refusal()
    assert refusal.endswith("received --outer-lr, --out")


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("was-run"),))


def test_a_pth_that_carries_code_is_not_run(cli: Cli, tmp_path: Path) -> None:
    torch.save({"state_dict": RunsCode(), "config": {}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    pickle.loads(pickle.dumps(RunsCode()))  # it does run, where a file is trusted
    (tmp_path / "was-run").unlink()
    for name in ("evil.pth", "plain.pth"):
        assert "not loaded" in cli("evaluate", "--model", name).refusal()
    assert not (tmp_path / "was-run").exists()


def test_a_pth_of_other_shapes(cli: Cli, tmp_path: Path) -> None:
    StateSpaceModel(input_dim=6).save("six.pth")
    refusal = cli("evaluate", "--model", "six.pth").refusal()
    assert "observations of size 4" in refusal and "observations of size 6" in refusal
    content = torch.load("six.pth", weights_only=True)
    content["config"]["input_dim"] = 4
    torch.save(content, "lies.pth")
    assert "input_projection.weight" in cli("evaluate", "--model", "lies.pth").refusal()
    (tmp_path / "cut.pth").write_bytes((tmp_path / "six.pth").read_bytes()[:500])
    cli("verify", "--model", "cut.pth").refusal()


def test_a_model_for_other_actions(cli: Cli, tmp_path: Path) -> None:
    config = PolicyConfig(obs_scale=(1.0,) * 4, action_dim=1)
    policy = build_policy(config, seed=0, inner_lr=0.1)
    tensors = {f"policy.{n}": v for n, v in policy.state_dict().items()}
    fields = {"obs_scale": [1.0] * 4, "action_dim": 1}
    save_checkpoint("arm.safetensors", Checkpoint(policy_config=fields, tensors=tensors))
    assert "Discrete(n=2)" in cli("evaluate", "--model", "arm.safetensors").refusal()


def test_an_unknown_model(cli: Cli) -> None:
    assert "received 'nobody'" in cli("evaluate", "--model", "nobody").refusal()
    assert "received 'nobody'" in cli("verify", "--model", "nobody").refusal()


UNWRITABLE = ("/dev/null/x", "/proc/x")


@pytest.mark.parametrize("out", UNWRITABLE)
def test_a_place_that_cannot_be_written_to(cli: Cli, model: Path, out: str) -> None:
    for arguments in (
        ("train", "--out", out),
        ("train", "--mode", "policy_gradient", "--out", out),
        ("adapt", "--model", model, "--out", f"{out}/a.safetensors"),
        ("evaluate", "--model", model, "--report", out),
    ):
        assert "a folder that can be written to" in cli(*arguments).refusal()


def test_nothing_is_overwritten(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "training_log.jsonl").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoint = (model / FILE_NAME).read_bytes()
    for arguments in (
        ("train", "--out", "notes"),
        ("train", "--out", "file"),
        ("train", "--out", model),
        ("train", "--mode", "policy_gradient", "--out", "notes"),
        ("train", "--mode", "policy_gradient", "--out", model),
        ("adapt", "--model", model, "--out", "file"),
        ("adapt", "--model", model, "--out", "notes"),
        ("evaluate", "--model", model, "--report", "file"),
    ):
        assert "received" in cli(*arguments).refusal()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (model / FILE_NAME).read_bytes() == checkpoint
    assert f"--resume {model}" in cli("train", "--out", model).refusal()


@pytest.mark.parametrize(
    "arguments",
    ["--adapt_lr nan", "--adapt_lr -1", "--num_adapt_steps -1", "--experience_weight -1"],
)
def test_settings_out_of_range_are_refused_before_the_work(
    cli: Cli, model: Path, arguments: str
) -> None:
    cli("evaluate", "--model", model, *arguments.split()).refusal()  # no progress on stderr


def test_an_adaptation_that_overflows_is_not_saved(cli: Cli, model: Path, tmp_path: Path) -> None:
    flags = ("--adapt_lr", "1e30", "--num_adapt_steps", 5)
    refusal = cli("adapt", "--model", model, *flags, "--no_rollback").refusal()
    assert "received 1e+30" in refusal
    assert not (tmp_path / "adapted.safetensors").exists()


def test_an_evaluation_that_overflows_is_still_json(cli: Cli, model: Path) -> None:
    flags = ("--num_tasks", 2, "--adapt_lr", "1e30", "--num_adapt_steps", 5, "--json")
    flags += ("--no_rollback",)
    outcome = cli("evaluate", "--model", model, *flags)
    result = json.loads(outcome.out, parse_constant=pytest.fail)
    assert result["adaptation"]["standard"]["loss_after"] is None
    assert result["adaptation"]["standard"]["loss_before"] > 0


def test_a_report_without_the_packages_that_draw_it(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssm_metarl.cli.evaluate.find_spec", lambda name: None)
    refusal = cli("evaluate", "--model", model, "--report", "r").refusal()
    assert "pip install 'ssm-metarl[report]'" in refusal
    assert not (tmp_path / "r").exists()


def test_a_missing_dependency_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    def missing(*args: object, **kwargs: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed, run\n`pip ...`")

    monkeypatch.setattr(gymnasium, "make", missing)
    outcome = cli("train", "--mode", "policy_gradient", "--env_name", "Ant-v5")
    assert outcome.code == 2
    assert outcome.err == "ssm-metarl: MuJoCo is not installed, run `pip ...`\n"


def test_a_bug_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("ssm_metarl.checkpoint.shipped_models", broken)
    with pytest.raises(AssertionError, match="a bug"):
        cli("models")
