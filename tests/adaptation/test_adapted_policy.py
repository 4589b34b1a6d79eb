"""An adapted policy is its policy with other parameters: nothing is lost, and nothing is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssm_metarl.adaptation.adapter import AdaptedPolicy
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import Checkpoint, load_pretrained, save_checkpoint
from ssm_metarl.config import (
    Calibration,
    HybridAdaptationConfig,
    PolicyConfig,
    StandardAdaptationConfig,
)
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.objectives.prediction import prediction_loss
from ssm_metarl.types import FlatParams, Rollout

KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "memoryless": {"memory": False},
    "mirrored": {"mirror": True},
    "told": {"mirror": True, "told_dims": 2},
    "told memoryless": {"mirror": True, "told_dims": 1, "memory": False},
    "clipped": {"obs_limit": (0.05,) * 4},
    "grown": {"norm_dim": 4},
    "in context": {"in_context": True},
    "in context mirrored": {"in_context": True, "mirror": True},
    "state_space": {"core": "state_space", "predicted_dims": (1, 3)},
    "state_space memoryless": {"core": "state_space", "predicted_dims": (1, 3), "memory": False},
    "state_space told": {"core": "state_space", "predicted_dims": (1, 3), "mirror": True,
                         "told_dims": 1},
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
STANDARD = StandardAdapter(StandardAdaptationConfig(rollback=False))


def make_policy(kind: str) -> Policy:
    settings = {"obs_scale": (0.5, 1.0, 5.0, 1.0), "num_actions": 2, "state_dim": 5}
    config = PolicyConfig(**(settings | {"hidden_dim": 6} | KINDS[kind]))
    policy = build_policy(config, seed=3, inner_lr=0.05)
    with torch.no_grad():
        for p in policy.meta_params().values():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    policy.calibration = Calibration(objective="prediction", max_loss=(9.0,), max_kl=9.0)
    return policy


def outputs(policy: Policy, params: Any, rollout: Rollout) -> torch.Tensor:
    with torch.no_grad():
        return policy.look(params, rollout).output


@every_kind
@pytest.mark.parametrize("arm", ["standard", "hybrid"])
def test_it_is_what_the_report_speaks_of(
    kind: str, arm: str, make_support: Callable[..., Rollout], tmp_path: Path
) -> None:
    """The same numbers from adapt(), adapt_tasks(), the report, and the file that is loaded."""
    policy, support = make_policy(kind), make_support(1)
    if arm == "standard":
        adapted = STANDARD.adapt(policy, support)
        params, _ = STANDARD.adapt_tasks(policy, support)
    else:
        buffer = ExperienceBuffer()
        buffer.add(make_support(3, seed=1), range(3))
        hybrid = HybridAdapter(HybridAdaptationConfig(rollback=False))
        adapted = hybrid.adapt(policy, support, buffer)
        params, _ = hybrid.adapt_tasks(policy, support, buffer)
    assert isinstance(adapted, AdaptedPolicy)
    own = FlatParams(torch.cat([p.flatten() for p in adapted.meta_params().values()]).detach(),
                     params.shapes)  # fmt: skip
    assert torch.equal(own.flat, params.flat[0])
    other = make_support(1, steps=40, seed=5)
    assert torch.equal(outputs(adapted, own, other), outputs(policy, params, other))
    after = float(prediction_loss(adapted, own, support))
    assert after == pytest.approx(adapted.report.loss_after, rel=1e-5)
    assert adapted.report.loss_after != adapted.report.loss_before

    calibration = adapted.calibration
    assert calibration is not None and adapted.config is not None
    save_checkpoint(
        tmp_path / "a.safetensors",
        Checkpoint(
            policy_config=asdict(adapted.config),
            tensors={f"policy.{n}": v for n, v in adapted.state_dict().items()},
            calibration=asdict(calibration),
        ),
    )
    loaded = load_pretrained(tmp_path / "a.safetensors")
    assert torch.equal(outputs(loaded, loaded.meta_params(), other), outputs(adapted, own, other))
    assert loaded.calibration == calibration


@every_kind
def test_whatever_a_policy_has_its_adapted_one_has_too(
    kind: str, make_support: Callable[..., Rollout]
) -> None:
    policy = make_policy(kind)
    policy.set_later = {"anything": [1, 2]}  # type: ignore[assignment]
    policy.register_buffer("extra", torch.arange(3.0), persistent=False)
    policy.core.note = "in a child, too"  # type: ignore[assignment]
    adapted = STANDARD.adapt(policy, make_support(1))
    assert vars(policy).keys() <= vars(adapted).keys()
    for name, value in vars(policy).items():
        if isinstance(value, (bool, int, float, str, tuple)):
            assert getattr(adapted, name) == value, name
    for name, buffer in policy.named_buffers():
        assert torch.equal(dict(adapted.named_buffers())[name], buffer), name
    assert adapted.set_later == policy.set_later and adapted.core.note == policy.core.note
    assert torch.equal(adapted.step_size, policy.step_size)
    # nothing that can change is shared
    theirs = {t.data_ptr() for t in (*policy.parameters(), *policy.buffers())}
    assert not theirs & {t.data_ptr() for t in (*adapted.parameters(), *adapted.buffers())}
    assert adapted.set_later is not policy.set_later
    assert {id(m) for m in policy.modules()}.isdisjoint(id(m) for m in adapted.modules())


def test_the_methods_of_a_class_of_ones_own_stay(make_support: Callable[..., Rollout]) -> None:
    class Louder(Policy):
        def scaled(self, obs: torch.Tensor) -> torch.Tensor:
            return 2 * super().scaled(obs)

    policy = make_policy("diagonal")
    policy.__class__ = Louder
    support = make_support(1)
    adapted = STANDARD.adapt(policy, support)
    assert isinstance(adapted, AdaptedPolicy) and isinstance(adapted, Louder)
    obs = support.obs[0]
    assert torch.equal(adapted.scaled(obs), policy.scaled(obs))
    plain_descent = StandardAdapter(StandardAdaptationConfig(adapt_lr=1e-3, rollback=False))
    assert type(plain_descent.adapt(adapted, support)) is type(adapted)


def test_gradients_and_the_report_before_are_not_taken_along(
    make_support: Callable[..., Rollout],
) -> None:
    policy, support = make_policy("diagonal"), make_support(1)
    prediction_loss(policy, policy.meta_params(), support).sum().backward()
    first = STANDARD.adapt(policy, support)
    config = StandardAdaptationConfig(num_adapt_steps=3, adapt_lr=1e-3, rollback=False)
    second = StandardAdapter(config).adapt(first, support)
    assert all(p.grad is None for p in (*first.parameters(), *second.parameters()))
    assert (first.report.num_steps, second.report.num_steps) == (1, 3)
    assert any(p.grad is not None for p in policy.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: 2 * a - 1, "action: expected whole numbers from 0 to 1, received -1"),
        (lambda a: a + 1, "action: expected whole numbers from 0 to 1, received 2"),
        (lambda a: a.float(), r"action: expected whole numbers \(int64\), received float32"),
        (lambda a: a[..., None], r"action: expected shape \(T, K, N\) = \(24, 1, 1\), received"),
        (lambda a: torch.nn.functional.one_hot(a, 2), r"action: expected shape \(T, K, N\)"),
    ],
)
@pytest.mark.parametrize("kind", ["diagonal", "in context", "state_space"])
def test_actions_of_another_space_are_refused(
    kind: str, change: Any, message: str, make_support: Callable[..., Rollout]
) -> None:
    policy, support = make_policy(kind), make_support(1)
    wrong = replace(support, action=change(support.action))
    buffer = ExperienceBuffer()
    for use in (
        lambda: STANDARD.adapt(policy, wrong),
        lambda: HybridAdapter().adapt(policy, wrong, buffer),
        lambda: policy.look(policy.meta_params(), wrong),
        lambda: policy.read(policy.meta_params(), wrong),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    some = support.mask.clone()
    some[5:] = False
    unseen = support.action.clone()
    unseen[5:] = 7  # where no step was taken, anything may stand
    STANDARD.adapt(policy, replace(support, action=unseen, mask=some))
