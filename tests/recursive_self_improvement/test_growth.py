"""Growth keeps the function and trains at once; shrinking drops what is weakest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded
from ssm_metarl.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.recursive_self_improvement import growth
from ssm_metarl.recursive_self_improvement.growth import (
    checked_output,
    relative_change,
    resize,
)
from ssm_metarl.settings import rebuild
from ssm_metarl.types import FlatParams

CONFIGURATIONS = 60
NIGHTLY_CONFIGURATIONS = 500
FLOAT64 = 1e-12
OBS_DIM = 3
ACTIONS: tuple[dict[str, Any], ...] = ({"num_actions": 2}, {"num_actions": 3}, {"action_dim": 2})
SIZES = ("state_dim", "hidden_dim", "num_layers")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Case:
    """A checkpoint, the architecture to grow it to, and the result."""

    old: Checkpoint
    config: PolicyConfig
    new: Checkpoint


def random_checkpoint(config: PolicyConfig, seed: int) -> Checkpoint:
    """Every tensor random, none zero: what a training in full swing looks like."""
    g = torch.Generator().manual_seed(seed)
    policy = build_policy(config, seed=seed, inner_lr=0.02)
    tensors = {}
    for name, p in policy.named_parameters():
        value = p.detach() + 0.1 * torch.randn(p.shape, generator=g)
        tensors[f"policy.{name}"] = value
        tensors[f"optimizer.{name}.step"] = torch.tensor(37.0)
        tensors[f"optimizer.{name}.exp_avg"] = torch.randn(p.shape, generator=g)
        tensors[f"optimizer.{name}.exp_avg_sq"] = torch.rand(p.shape, generator=g) + 0.1
    tensors["experience.reward"] = torch.rand(5, generator=g)
    training = asdict(MetaTrainingConfig(core=config.core))
    training |= {name: getattr(config, name) for name in (*SIZES, "norm_dim")}
    return Checkpoint(
        policy_config=asdict(config),
        tensors=tensors,
        training=training,
        counters={"epoch": 3, "env_steps": 50, "recent_return": 1.5},
        card={"note": "kept"},
        calibration={"objective": "prediction", "max_loss": [1.0], "max_kl": 1.0},
    )


def random_case(index: int) -> Case:
    """A random model, and a random growth of some of its dimensions."""
    rng = np.random.default_rng(index)
    core = ("diagonal", "state_space")[index % 2]
    actions = ACTIONS[int(rng.integers(3 if core == "diagonal" else 2))]
    layers, width = int(rng.integers(1, 4)), int(rng.integers(3, 13))
    old = PolicyConfig(
        core=core,  # type: ignore[arg-type]
        state_dim=int(rng.integers(3, 13)),
        hidden_dim=width,
        num_layers=layers,
        norm_dim=max(3, width - 1) if core == "diagonal" and rng.random() < 0.3 else None,
        output_dim=actions.get("num_actions", 0) + 1,
        obs_scale=tuple(rng.uniform(0.5, 2, OBS_DIM).tolist()),
        obs_limit=(1.0, 2.0, 0.5) if rng.random() < 0.5 else (),
        predicted_dims=(1,) if actions == {"num_actions": 2} and core == "state_space" else (),
        mirror=bool(rng.random() < 0.5),
        **actions,
    )
    names = SIZES if core == "diagonal" else SIZES[:2]
    chosen = [n for n in names if rng.random() < 0.5] or [str(rng.choice(names))]
    more = {n: int(rng.integers(1, 3 if n == "num_layers" else 6)) for n in chosen}
    sizes = {n: getattr(old, n) + more.get(n, 0) for n in SIZES}
    checkpoint = random_checkpoint(old, index)
    return Case(checkpoint, replace(old, **sizes), resize(checkpoint, sizes, seed=index))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [random_case(index) for index in range(CONFIGURATIONS)]


def diagonal(**settings: Any) -> PolicyConfig:
    sizes = {"state_dim": 4, "hidden_dim": 6, "num_layers": 2, "num_actions": 3}
    return PolicyConfig(**(sizes | {"obs_scale": (1.0,) * OBS_DIM} | settings))


def sized(config: PolicyConfig, **changes: int) -> dict[str, int]:
    return {n: getattr(config, n) for n in SIZES} | changes


def shapes_of(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return checkpoint.policy().step_sizes().shapes


def old_block(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where an entry of a grown parameter was there before, by the shapes alone."""
    block = torch.zeros(shape, dtype=torch.bool)
    if name in old:
        block[tuple(slice(size) for size in old[name])] = True
    return block


def joints(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where an old unit reads a new one: entries that must be zero, and must train at once."""
    found = torch.zeros(shape, dtype=torch.bool)
    if name in old:
        if len(shape) == 2:
            rows, columns = old[name]
            found[:rows, columns:] = True
    elif name.endswith(("C.weight", "C.bias", ".D")):  # of a new layer, into old channels
        found[: old["core.encoder.bias"][0]] = True
    return found


# The function stays.


def assert_function_kept(case: Case, seed: int) -> None:
    change = relative_change(case.old, case.new, seed=seed, dtype=torch.float64)
    assert change <= FLOAT64, f"{case.old.policy_config} -> {case.config}: {change:.1e}"

    def output(policy: Policy) -> Tensor:
        return checked_output(policy, seed)

    assert_only_rounded(output(case.new.policy()), output, case.old.policy())


def test_growth_keeps_the_function(cases: list[Case]) -> None:
    for seed, case in enumerate(cases):
        assert_function_kept(case, seed)


def test_growth_twice_keeps_the_function() -> None:
    old = random_checkpoint(diagonal(), 0)
    once = resize(old, sized(diagonal(), hidden_dim=8), seed=1)
    twice = resize(once, sized(diagonal(), hidden_dim=9, state_dim=6, num_layers=3), seed=2)
    assert_function_kept(Case(old, diagonal(), twice), 0)
    assert twice.policy_config["norm_dim"] == 6


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
@pytest.mark.parametrize("name", SIZES)
def test_without_the_zeros_the_function_changes(
    core: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if core == "state_space" and name == "num_layers":
        return  # it has none
    config = diagonal(core=core)
    old, larger = random_checkpoint(config, 0), sized(config, **{name: getattr(config, name) + 2})
    new = resize(old, larger, seed=1)
    assert relative_change(old, new, seed=0, dtype=torch.float64) <= FLOAT64
    monkeypatch.setattr(growth, "silenced", lambda fresh, plan: fresh.meta_params())
    with torch.no_grad():
        wrong = resize(old, larger, seed=1)
    assert relative_change(old, wrong, seed=0) > 0.01


def test_with_the_norm_over_new_channels_too_the_function_changes() -> None:
    old = random_checkpoint(diagonal(), 0)
    new = resize(old, sized(diagonal(), hidden_dim=8), seed=1)
    wrong = replace(new, policy_config=new.policy_config | {"norm_dim": None})
    assert relative_change(old, wrong, seed=0) > 0.01


def test_nan_is_no_small_change() -> None:
    old = random_checkpoint(diagonal(), 0)
    broken = replace(old, tensors={n: v * torch.nan for n, v in old.tensors.items()})
    for pair in ((old, broken), (broken, old), (broken, broken)):
        assert not relative_change(*pair, seed=0) <= 1
    assert relative_change(old, old, seed=0) == 0


# The new weights train.


def unroll(policy: Policy, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A random linear loss of the output, and which hidden neurons fire (state_space)."""
    g = torch.Generator().manual_seed(seed)
    steps, tasks, envs = 12, 2, 4
    obs = torch.randn(steps, tasks, envs, OBS_DIM, generator=g, dtype=torch.float64)
    reset = torch.rand(steps, tasks, envs, generator=g) < 0.1
    params, hidden = policy.meta_params(), policy.init_hidden(tasks, envs)
    output = policy.unroll(params, obs, hidden, reset)[0].output
    loss = (output * torch.randn(output.shape, generator=g, dtype=torch.float64)).sum()
    if "core.state_transition.0.weight" not in params:
        return loss, {}
    states = []
    with torch.no_grad():
        for t in range(steps):
            _, hidden = policy.unroll(params, obs[t : t + 1], hidden, reset[t : t + 1])
            states.append(torch.cat(hidden.chunk(2, -1), 1) if policy.mirror else hidden)
    h, fires = torch.stack(states), {}
    # where a state came from another one: elsewhere A's first weights multiply zeros
    carried = ~(torch.cat([reset, reset], 2) if policy.mirror else reset)[1:]
    for name, seen in (("state_transition", h[:-1][carried]), ("output_network", h)):
        weight, bias = (params[f"core.{name}.0.{kind}"] for kind in ("weight", "bias"))
        fires[f"core.{name}"] = ((seen @ weight.T + bias) > 0).flatten(0, -2).any(0)
    return loss, fires


def third(name: str, old: dict[str, torch.Size], shape: torch.Size) -> Tensor:
    """True where a new layer's gate belongs to a new channel: what it reads or scales is zero until
    C has moved, which waits for a reader of the channel to have moved."""
    found = torch.zeros(shape, dtype=torch.bool)
    if name not in old and ".gate." in name:
        width = old["core.encoder.bias"][0]
        found[width:] = True
        if len(shape) == 2:
            found[:, width:] = True
    return found


def reachable(name: str, shape: torch.Size, fires: dict[str, Tensor]) -> Tensor:
    """False where a parameter stands before or behind a neuron that never fires."""
    mask = torch.ones(shape, dtype=torch.bool)
    for network, fire in fires.items():
        if name.startswith(f"{network}.0."):
            mask &= fire[:, None] if len(shape) == 2 else fire
        elif name == f"{network}.2.weight":
            mask &= fire
    return mask


def assert_everything_trains(case: Case, seed: int) -> tuple[int, int]:
    """Returns how many new entries there are, and how many could not be judged."""
    old, policy = shapes_of(case.old), case.new.policy().double()
    params = policy.meta_params()
    judged = skipped = 0
    fires: dict[str, Tensor] = {}  # a neuron that was silent has a reader that did not move
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        loss, firing = unroll(policy, seed)
        loss.backward()
        fires = {name: fires.get(name, now) & now for name, now in firing.items()}
        for name, p in params.items():
            assert p.grad is not None or name == "heads.log_std"
            if p.grad is None:
                continue
            joint = joints(name, old, p.shape)
            if step == 0:
                assert not p[joint].any(), name
            asked = joint if step == 0 else ~old_block(name, old, p.shape)
            if step == 1:
                asked &= ~third(name, old, p.shape)
            live = asked & reachable(name, p.shape, fires)
            where = f"{case.old.policy_config} -> {case.config}: {name}"
            assert p.grad[live].all(), f"{where}: no gradient after {step} steps"
            judged, skipped = judged + int(asked.sum()), skipped + int((asked & ~live).sum())
        optimizer.step()
    return judged, skipped


def test_what_reads_a_new_unit_trains_at_once_and_all_that_is_new_soon_after(
    cases: list[Case],
) -> None:
    counts = torch.tensor([assert_everything_trains(c, i) for i, c in enumerate(cases)])
    judged, skipped = counts.sum(0).tolist()
    assert judged > 100 * CONFIGURATIONS
    assert skipped < 0.05 * judged


def test_without_fresh_writers_nothing_would_train() -> None:
    """The gradient test can fail: zeros on both sides stay zeros."""
    old = random_checkpoint(diagonal(), 0)
    new = resize(old, sized(diagonal(), state_dim=6), seed=1)
    silent = dict(new.tensors)
    for layer in (0, 1):
        for kind in ("weight", "bias"):
            name = f"policy.core.layers.{layer}.B.{kind}"
            silent[name] = silent[name].clone()
            silent[name][4:] = 0
    with pytest.raises(AssertionError, match="after 0 steps"):
        assert_everything_trains(Case(old, diagonal(), replace(new, tensors=silent)), 0)


@pytest.mark.nightly
def test_growth_of_hundreds_of_models() -> None:
    for index in range(1000, 1000 + NIGHTLY_CONFIGURATIONS):
        case = random_case(index)
        assert_function_kept(case, index)
        assert_everything_trains(case, index)


# What moves along.


def test_weights_step_sizes_and_moments_move_along(cases: list[Case]) -> None:
    for case in cases:
        before, after = shapes_of(case.old), shapes_of(case.new)

        def values(
            name: str, old_name: str, key: str, case: Case = case, shapes: Any = (before, after)
        ) -> Iterator[tuple[Tensor, Tensor]]:
            """A key of a parameter and of its step sizes, before and after."""
            checkpoints, names = (case.old, case.new), (old_name, name)
            yield tuple(  # type: ignore[misc]
                c.tensors[f"optimizer.{n}.{key}"] for c, n in zip(checkpoints, names, strict=True)
            )
            yield tuple(  # type: ignore[misc]
                FlatParams(c.tensors[f"optimizer.step_size.{key}"], s)[n]
                for c, n, s in zip(checkpoints, names, shapes, strict=True)
            )

        sizes = FlatParams(case.new.tensors["policy.step_size"], after)
        old_sizes = FlatParams(case.old.tensors["policy.step_size"], before)
        numbers = [sum(shape.numel() for shape in shapes.values()) for shapes in (before, after)]
        shorter = math.sqrt(numbers[0] / numbers[1])  # as the gradient's RMS will be
        last = case.old.policy_config["num_layers"] - 1
        for name, shape in after.items():
            kept = old_block(name, before, shape)
            assert not sizes[name][~kept].any()
            source = name
            if name in before:
                weight = case.old.tensors[f"policy.{name}"]
                assert torch.equal(case.new.tensors[f"policy.{name}"][kept], weight.flatten())
                assert torch.allclose(sizes[name][kept], shorter * old_sizes[name].flatten())
            else:
                source = f"core.layers.{last}.{name.split('.', 3)[3]}"
            for key in MOMENTS:
                for old, new in values(name, source, key):
                    fill = 0.0 if key == "exp_avg" else float(old.mean())
                    assert (new[~kept] == fill).all(), name
                    assert name not in before or torch.equal(new[kept], old.flatten()), name
            assert case.new.tensors[f"optimizer.{name}.step"] == 37
        assert case.new.tensors["optimizer.step_size.step"] == 37


def test_everything_else_is_kept_and_the_old_checkpoint_left_alone(tmp_path: Path) -> None:
    old = random_checkpoint(diagonal(), 0)
    copies = {name: value.clone() for name, value in old.tensors.items()}
    new = resize(old, sized(diagonal(), hidden_dim=8, num_layers=3), seed=1)
    assert all(torch.equal(old.tensors[n], copies[n]) for n in copies)
    assert torch.equal(new.tensors["experience.reward"], old.tensors["experience.reward"])
    assert (new.counters, new.card) == (old.counters, old.card)
    assert old.calibration and new.calibration == {}
    trained = {name: new.training[name] for name in (*SIZES, "norm_dim")}
    assert trained == {"state_dim": 4, "hidden_dim": 8, "num_layers": 3, "norm_dim": 6}
    save_checkpoint(tmp_path / "grown.safetensors", new)
    loaded = load_checkpoint(tmp_path / "grown.safetensors")
    assert relative_change(old, loaded, seed=0, dtype=torch.float64) <= FLOAT64


def test_a_model_without_optimiser_or_training_grows() -> None:
    old = random_checkpoint(diagonal(), 0)
    alone = {n: v for n, v in old.tensors.items() if n.startswith("policy.")}
    new = resize(replace(old, tensors=alone, training={}), sized(diagonal(), state_dim=6), seed=1)
    assert new.training == {}
    assert all(name.startswith("policy.") for name in new.tensors)
    assert relative_change(old, new, seed=0, dtype=torch.float64) <= FLOAT64


def test_the_same_sizes_give_the_same_checkpoint() -> None:
    old = random_checkpoint(diagonal(norm_dim=4), 0)
    assert resize(old, sized(diagonal()), seed=1) is old


def test_the_seed_names_the_new_weights() -> None:
    old, larger = random_checkpoint(diagonal(), 0), sized(diagonal(), state_dim=6)
    one, same, other = (resize(old, larger, seed=seed).tensors for seed in (1, 1, 2))
    name = "policy.core.layers.0.B.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


# Shrinking.


def test_growing_and_shrinking_again_gives_the_old_tensors(cases: list[Case]) -> None:
    for case in cases:
        old = PolicyConfig.from_dict(case.old.policy_config)
        back = resize(case.new, sized(old), seed=0)
        assert PolicyConfig.from_dict(back.policy_config) == old
        assert back.training == case.old.training
        assert back.tensors.keys() == case.old.tensors.keys()
        for name, value in case.old.tensors.items():
            exact = name != "policy.step_size"  # multiplied by a root and by its inverse
            rtol, atol = (0.0, 0.0) if exact else (1e-6, 1e-8)
            assert torch.allclose(back.tensors[name], value, rtol, atol), f"{case.config}: {name}"


def weakened(checkpoint: Checkpoint, columns: dict[str, list[int]]) -> Checkpoint:
    """With small weights wherever the named parameters read the given units."""
    tensors = dict(checkpoint.tensors)
    for name, units in columns.items():
        value = tensors[f"policy.{name}"].clone()
        value[..., units] *= 1e-3
        tensors[f"policy.{name}"] = value
    return replace(checkpoint, tensors=tensors)


def without(value: Tensor, *dropped: list[int]) -> Tensor:
    for axis, units in enumerate(dropped):
        keep = [i for i in range(value.shape[axis]) if i not in units]
        value = value.index_select(axis, torch.tensor(keep))
    return value


def test_shrinking_drops_the_weakest_channels_modes_and_layers() -> None:
    config = diagonal(state_dim=6, hidden_dim=8, num_layers=3, norm_dim=5)
    width = {f"heads.{n}.weight": [1, 6] for n in ("action", "value", "prediction")}
    width |= {f"core.layers.{i}.{n}.weight": [1, 6] for i in (0, 2) for n in ("B", "gate")}
    modes = {"core.layers.0.C.weight": [0], "core.layers.2.C.weight": [5]}
    layer = {f"core.layers.1.{n}": list(range(6)) for n in ("C.weight", "C.bias", "D")}
    old = weakened(random_checkpoint(config, 0), width | modes | layer)
    new = resize(old, sized(config, state_dim=5, hidden_dim=6, num_layers=2), seed=1)
    assert new.policy_config["norm_dim"] == new.training["norm_dim"] == 4
    for part, tail in (("policy.", ""), ("optimizer.", ".exp_avg"), ("optimizer.", ".exp_avg_sq")):

        def both(name: str, source: str, part: str = part, tail: str = tail) -> list[Tensor]:
            return [new.tensors[f"{part}{name}{tail}"], old.tensors[f"{part}{source}{tail}"]]

        for there, here, mode in ((0, 0, 0), (1, 2, 5)):
            at, source = f"core.layers.{there}.", f"core.layers.{here}."
            for name, dropped in (
                ("log_rate", [[mode]]), ("D", [[1, 6]]), ("B.bias", [[mode]]),
                ("B.weight", [[mode], [1, 6]]), ("C.weight", [[1, 6], [mode]]),
                ("gate.weight", [[1, 6], [1, 6]]), ("gate.bias", [[1, 6]]),
            ):  # fmt: skip
                shrunk, whole = both(at + name, source + name)
                assert torch.equal(shrunk, without(whole, *dropped)), name
        shrunk, whole = both("heads.action.weight", "heads.action.weight")
        assert torch.equal(shrunk, without(whole, [], [1, 6]))
    new.policy()  # all shapes fit, the flat step sizes' too
    assert new.tensors["policy.step_size"].numel() == new.policy().num_parameters()


def test_shrinking_a_state_space_model_drops_the_weakest() -> None:
    config = diagonal(core="state_space", output_dim=3)
    old = weakened(
        random_checkpoint(config, 0),
        {
            "core.state_transition.0.weight": [2],
            "core.output_network.0.weight": [2],
            "core.state_transition.2.weight": [0, 5],
            "core.output_network.2.weight": [3, 4],
        },
    )
    new = resize(old, sized(config, state_dim=3, hidden_dim=4), seed=1)
    for name, dropped in (
        ("state_transition.0.weight", [[0, 5], [2]]),
        ("state_transition.0.bias", [[0, 5]]),
        ("state_transition.2.weight", [[2], [0, 5]]),
        ("input_projection.weight", [[2]]),
        ("output_network.0.weight", [[3, 4], [2]]),
        ("output_network.2.weight", [[], [3, 4]]),
        ("feedthrough.weight", []),
    ):
        expected = without(old.tensors[f"policy.core.{name}"], *dropped)
        assert torch.equal(new.tensors[f"policy.core.{name}"], expected), name
    new.policy()


@pytest.mark.parametrize(
    ("norm_dim", "weak", "expected"),
    [(4, [4, 5], None), (None, [0, 1], None), (4, [0, 5], 3), (1, [0, 1], 1)],
)
def test_the_norm_keeps_its_channels(
    norm_dim: int | None, weak: list[int], expected: int | None
) -> None:
    config = diagonal(norm_dim=norm_dim)
    readers = [f"heads.{n}.weight" for n in ("action", "value", "prediction")]
    readers += [f"core.layers.{i}.{n}.weight" for i in (0, 1) for n in ("B", "gate")]
    old = weakened(random_checkpoint(config, 0), dict.fromkeys(readers, weak))
    new = resize(old, sized(config, hidden_dim=4), seed=1)
    assert new.policy_config["norm_dim"] == expected
    bias = old.tensors["policy.core.encoder.bias"]
    kept = new.tensors["policy.core.encoder.bias"]
    assert (kept[0] == bias[0]) == (0 not in weak or norm_dim == 1), "one channel must stay"


# Training goes on.


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
def test_a_grown_training_goes_on(core: Any) -> None:
    config = MetaTrainingConfig(
        core=core, state_dim=4, hidden_dim=5, num_layers=2, num_epochs=9, tasks_per_epoch=3,
        episodes_per_task=2, horizon=8, full_horizon_every=0, max_support_steps=9,
    )  # fmt: skip
    trainer = MetaTrainer(config)
    trainer.run_epoch()
    policy_config = architecture(config, trainer.family)
    old = Checkpoint(
        policy_config=asdict(policy_config),
        tensors=trainer.tensors(),
        training=asdict(config),
        counters=trainer.counters(),
    )
    layers = 3 if core == "diagonal" else 2
    larger = sized(policy_config, state_dim=6, hidden_dim=15, num_layers=layers)
    new = resize(old, larger, seed=1)
    grown = MetaTrainer(rebuild(MetaTrainingConfig, new.training, "training"))
    assert asdict(architecture(grown.config, grown.family)) == new.policy_config
    grown.restore(new.tensors, new.counters)
    final = replace(new, tensors=grown.tensors())
    assert relative_change(old, final, seed=0, dtype=torch.float64) <= FLOAT64
    metrics = grown.run_epoch()
    assert metrics.epoch == 2 and np.isfinite(metrics.meta_loss)
    after = grown.tensors()
    for name in ("core.layers.2.C.weight", "core.layers.0.C.weight", "heads.action.weight",
                 "core.state_transition.2.weight"):  # fmt: skip
        key = f"policy.{name}"
        if key in after:
            moved = after[key] != new.tensors[key]
            share = moved[joints(name, shapes_of(old), moved.shape)].float().mean()
            # some of a tiny nonlinear model's neurons never fire
            assert share == 1 if core == "diagonal" else share > 0.2, name
    assert float(after["optimizer.step_size.step"]) == 4
