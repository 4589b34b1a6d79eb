"""Distributions against torch's own, heads, actors and step sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_identity, assert_only_rounded
from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.distributions import ActionDistribution, Categorical, Gaussian
from ssm_metarl.core.heads import LinearHeads, SliceHeads
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import Params

STEPS, TASKS, ENVS, OBS = 6, 3, 2, 4
SCALE = (0.5, 1.0, 2.0, 1.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_policy(kind: str) -> Policy:
    kind, *how = kind.split("-")
    reflection = (-1.0,) * (OBS - 1) + (1.0 if "told" in how else -1.0,)
    actions: dict[str, Any] = {
        "slice": {"core": "state_space", "num_actions": 2, "predicted_dims": (1, 3)},
        "discrete": {"num_actions": 3},
        "continuous": {"action_dim": 2, "action_low": -2.0, "action_high": 2.0},
    }
    config = PolicyConfig(
        obs_scale=SCALE,
        mirror="mirror" in how,
        reflection=reflection if "mirror" in how else (),
        memory="memoryless" not in how,
        **actions[kind],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads: LinearHeads | SliceHeads
        if kind == "slice":
            heads = SliceHeads(4, Discrete(2), predicted_dims=(1, 3))
            policy = Policy(StateSpaceModel(8, OBS, 4, 16), heads, config, inner_lr=0.1)
        else:
            space = {"discrete": Discrete(3), "continuous": Continuous(2, -2.0, 2.0)}[kind]
            heads = LinearHeads(6, space, OBS)
            core = DiagonalSSM(OBS, model_dim=6, state_dim=5, num_layers=2)
            policy = Policy(core, heads, config, inner_lr=0.1)
        with torch.no_grad():  # away from the uniform start, so that a mix-up would show
            for name, p in policy.meta_params().items():
                p += 0.3 * draw(*p.shape, seed=len(name))
        return policy


SLICES = PolicyConfig(core="state_space", obs_scale=SCALE, num_actions=2, predicted_dims=(1, 3))
KINDS = ("slice", "discrete", "continuous")
MIRRORED = tuple(f"{kind}-mirror" for kind in KINDS)
MEMORYLESS = tuple(f"{kind}-memoryless" for kind in (*KINDS, *MIRRORED))
TOLD = tuple(f"{kind}-told" for kind in MIRRORED)
every_policy = pytest.mark.parametrize("kind", [*KINDS, *MIRRORED, *MEMORYLESS, *TOLD])


def per_task(policy: Policy) -> dict[str, Tensor]:
    """Different parameters for each task."""
    return {
        name: p.detach() + 0.1 * draw(TASKS, *p.shape, seed=len(name))
        for name, p in policy.meta_params().items()
    }


class TestCategorical:
    def test_log_prob_entropy_and_mode_against_torch(self) -> None:
        logits = 2 * draw(5, 3, 4).double()
        action = draw(5, 3).abs().long().clamp(max=3)
        oracle = torch.distributions.Categorical(logits=logits)
        distribution = Categorical(logits)
        torch.testing.assert_close(distribution.log_prob(action), oracle.log_prob(action))
        torch.testing.assert_close(distribution.entropy(), oracle.entropy())
        assert torch.equal(distribution.mode(), oracle.mode)

    def test_kl_against_torch(self) -> None:
        one, other = (Categorical(draw(5, 3, 4, seed=seed).double()) for seed in (0, 1))
        oracle = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=one.logits),
            torch.distributions.Categorical(logits=other.logits),
        )
        torch.testing.assert_close(one.kl(other), oracle)

    def test_evenly_spread_noise_gives_every_action_its_share(self) -> None:
        probs = torch.tensor([0.1, 0.0, 0.65, 0.25])
        grid = (torch.arange(10_000) + 0.5) / 10_000
        action = Categorical(probs.log().expand(10_000, 4)).sample(grid[:, None])
        share = torch.bincount(action, minlength=4) / 10_000
        torch.testing.assert_close(share, probs, rtol=0, atol=1e-3)
        assert share[1] == 0

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_the_ends_of_the_noise_give_the_first_and_the_last_action(self, n: int) -> None:
        noise = torch.tensor([[0.0], [1 - 2.0**-24]])
        action = Categorical(torch.zeros(2, n)).sample(noise)
        assert action.tolist() == [0, n - 1]

    def test_an_impossible_first_action_is_not_sampled(self) -> None:
        logits = torch.tensor([[0.0, 1.0]]).log()
        assert Categorical(logits).sample(torch.zeros(1, 1)).tolist() == [1]


class TestGaussian:
    def test_log_prob_entropy_and_mode_against_torch(self) -> None:
        mean, log_std, action = (draw(5, 2, seed=seed).double() for seed in range(3))
        oracle = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        distribution = Gaussian(mean, log_std)
        torch.testing.assert_close(distribution.log_prob(action), oracle.log_prob(action))
        torch.testing.assert_close(distribution.entropy(), oracle.entropy())
        assert torch.equal(distribution.mode(), oracle.mode)

    def test_kl_against_torch(self) -> None:
        one, other = (
            Gaussian(draw(5, 2, seed=seed).double(), 0.5 * draw(5, 2, seed=seed + 1).double())
            for seed in (0, 2)
        )
        oracle = torch.distributions.kl_divergence(
            *(torch.distributions.Normal(g.mean, g.log_std.exp()) for g in (one, other))
        )
        torch.testing.assert_close(one.kl(other), oracle.sum(-1))

    def test_standard_normal_noise_gives_its_mean_and_spread(self) -> None:
        grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        noise = torch.special.ndtri(grid)[:, None].expand(-1, 2)
        mean = torch.tensor([1.0, -3.0], dtype=torch.float64)
        std = torch.tensor([0.5, 2.0], dtype=torch.float64)
        action = Gaussian(mean.expand(10_000, 2), std.log().expand(10_000, 2)).sample(noise)
        torch.testing.assert_close(action.mean(0), mean)
        torch.testing.assert_close(action.std(0), std, rtol=1e-3, atol=0)


def assert_actions_equal(
    action: Tensor, expected: Callable[..., Tensor], policy: Policy, params: Params, obs: Tensor
) -> None:
    """Choices are the same; numbers are but for rounding."""
    if isinstance(policy.action_space, Discrete):
        assert torch.equal(action, expected(policy, params, obs))
    else:
        assert_only_rounded(action, expected, policy, params, obs)


def predict(policy: Policy, output: Tensor, action: Tensor) -> Tensor:
    return policy.predict(output, policy.action_space.code(action).to(output.dtype))


@every_policy
def test_actor_step_by_step_equals_unroll_over_the_rollout(kind: str) -> None:
    policy = make_policy(kind)
    for params in (policy.meta_params(), per_task(policy)):
        obs = draw(STEPS, TASKS, ENVS, OBS, seed=3)
        reset = torch.rand(STEPS, TASKS, ENVS, generator=torch.Generator().manual_seed(4)) < 0.3
        noise = TaskNoise(0, "test", range(TASKS))
        act = policy.actor(params, TASKS, ENVS, noise=noise, num_steps=STEPS)
        steps = [act(o, r) for o, r in zip(obs, reset, strict=True)]
        action = torch.stack([a for a, _ in steps])
        log_prob = torch.stack([lp for _, lp in steps])

        def distribution(policy: Policy, params: Params, obs: Tensor) -> ActionDistribution:
            hidden = policy.init_hidden(TASKS, ENVS)
            return policy.unroll(params, obs, hidden, reset)[0].distribution  # noqa: B023

        seen = policy, params, obs
        same_noise = policy.action_space.draw_noise(TaskNoise(0, "test", range(TASKS)), STEPS, ENVS)
        assert_only_rounded(log_prob, lambda *of: distribution(*of).log_prob(action), *seen)  # noqa: B023
        assert_actions_equal(action, lambda *of: distribution(*of).sample(same_noise), *seen)  # noqa: B023


@every_policy
def test_a_greedy_actor_takes_the_mode(kind: str) -> None:
    policy = make_policy(kind)
    obs = draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    params = policy.meta_params()
    act = policy.actor(params, TASKS, ENVS)
    action = torch.stack([act(o, r)[0] for o, r in zip(obs, reset, strict=True)])

    def mode(policy: Policy, params: Params, obs: Tensor) -> Tensor:
        out, _ = policy.unroll(params, obs, policy.init_hidden(TASKS, ENVS), reset)
        return out.distribution.mode()

    assert_actions_equal(action, mode, policy, params, obs)
    assert not action.requires_grad


@every_policy
def test_per_task_parameters_equal_each_task_alone(kind: str) -> None:
    policy = make_policy(kind)
    params, obs = per_task(policy), draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    noise = policy.action_space.draw_noise(TaskNoise(1, "x", range(TASKS)), STEPS, ENVS)
    out, _ = policy.unroll(params, obs, policy.init_hidden(TASKS, ENVS), reset)
    action = out.distribution.sample(noise)

    def told(
        policy: Policy, params: Params, obs: Tensor, reset: Tensor, action: Tensor
    ) -> dict[str, Tensor]:
        """All that is read from an unroll, with the axis of tasks in the second place."""
        tasks = obs.shape[1]
        out, last = policy.unroll(params, obs, policy.init_hidden(tasks, ENVS), reset)
        found = {
            "log-probability": out.distribution.log_prob(action),
            "prediction": predict(policy, out.output, action),
            "last state": last[None],
        }
        if isinstance(policy.heads, LinearHeads):
            found["value"] = policy.value(out.output)
        return found

    def sides(policy: Policy, params: Params, obs: Tensor) -> tuple[Any, Any]:
        together, alone = told(policy, params, obs, reset, action), []
        for k in range(TASKS):
            one, slot = {name: p[k] for name, p in params.items()}, slice(k, k + 1)
            alone.append(told(policy, one, obs[:, slot], reset[:, slot], action[:, slot]))
        return together, {name: torch.cat([a[name] for a in alone], 1) for name in together}

    assert_identity(sides, policy, params, obs)


@pytest.mark.parametrize("kind", TOLD)
def test_what_a_task_tells_is_the_same_in_the_mirror(kind: str) -> None:
    policy = make_policy(kind)
    obs = draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    params, hidden = policy.meta_params(), policy.init_hidden(TASKS, ENVS)
    noise = policy.action_space.draw_noise(TaskNoise(1, "x", range(TASKS)), STEPS, ENVS)
    out, _ = policy.unroll(params, obs, hidden, reset)
    action = out.distribution.sample(noise)
    mirrored = -action if kind.startswith("continuous") else policy.action_space.n - 1 - action  # type: ignore[union-attr]
    same_told, all_negated = (-obs).clone(), -obs
    same_told[..., -1] = obs[..., -1]
    image, other = (
        policy.unroll(params, seen, hidden, reset)[0].distribution.log_prob(mirrored)
        for seen in (same_told, all_negated)
    )

    def sides(policy: Policy, params: Params, obs: Tensor, same_told: Tensor) -> tuple[Any, Any]:
        hidden = policy.init_hidden(TASKS, ENVS)
        here, image = (policy.unroll(params, seen, hidden, reset)[0] for seen in (obs, same_told))
        return here.distribution.log_prob(action), image.distribution.log_prob(mirrored)

    assert_identity(sides, policy, params, obs, same_told)
    assert not torch.allclose(other, image)


@pytest.mark.parametrize("kind", MIRRORED)
def test_a_mirrored_history_is_met_with_mirrored_actions_and_predictions(kind: str) -> None:
    policy = make_policy(kind)
    params, obs = per_task(policy), draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.rand(STEPS, TASKS, ENVS, generator=torch.Generator().manual_seed(4)) < 0.3
    noise = policy.action_space.draw_noise(TaskNoise(1, "x", range(TASKS)), STEPS, ENVS)
    hidden = policy.init_hidden(TASKS, ENVS)
    out, _ = policy.unroll(params, obs, hidden, reset)
    action = out.distribution.sample(noise)
    mirrored = -action if kind.startswith("continuous") else policy.action_space.n - 1 - action  # type: ignore[union-attr]

    def sides(policy: Policy, params: Params, obs: Tensor) -> tuple[Any, Any]:
        found = []
        for sign, taken in ((1, action), (-1, mirrored)):
            hidden = policy.init_hidden(TASKS, ENVS)
            out, _ = policy.unroll(params, sign * obs, hidden, reset)
            told = [out.distribution.log_prob(taken), sign * predict(policy, out.output, taken)]
            if isinstance(policy.heads, LinearHeads):
                told.append(policy.value(out.output))
            found.append(told)
        return found[0], found[1]

    assert_identity(sides, policy, params, obs)


@pytest.mark.parametrize("kind", KINDS)
def test_mirroring_is_a_mean_over_the_history_and_its_image(kind: str) -> None:
    plain, policy = make_policy(kind), make_policy(f"{kind}-mirror")
    params, obs = plain.meta_params(), draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)

    def sides(plain: Policy, policy: Policy, params: Params, obs: Tensor) -> tuple[Tensor, Tensor]:
        here, image = (
            plain.unroll(params, sign * obs, plain.init_hidden(TASKS, ENVS), reset)[0].distribution
            for sign in (1, -1)
        )
        out, _ = policy.unroll(params, obs, policy.init_hidden(TASKS, ENVS), reset)
        if isinstance(out.distribution, Categorical):
            return (here.logits + image.logits.flip(-1)) / 2, out.distribution.logits  # type: ignore[union-attr]
        return (here.mean - image.mean) / 2, out.distribution.mean  # type: ignore[union-attr]

    assert_identity(sides, plain, policy, params, obs)


@pytest.mark.parametrize("kind", MEMORYLESS)
def test_without_memory_a_step_is_what_it_would_be_as_the_first(kind: str) -> None:
    policy, remembering = make_policy(kind), make_policy(kind.replace("-memoryless", ""))
    obs = draw(STEPS, TASKS, ENVS, OBS, seed=3)
    never = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    for params in (policy.meta_params(), per_task(policy)):

        def sides(policy: Policy, remembering: Policy, params: Params, obs: Tensor) -> Any:
            hidden = policy.init_hidden(TASKS, ENVS)
            out, last = policy.unroll(params, obs, hidden + 1.0, never)
            alone, alone_last = remembering.unroll(params, obs, hidden, ~never)
            return (out.output, last), (alone.output, alone_last)

        assert_identity(sides, policy, remembering, params, obs)
        hidden = policy.init_hidden(TASKS, ENVS)
        alone, kept = (remembering.unroll(params, obs, hidden, r)[0] for r in (~never, never))
        assert not torch.allclose(kept.output[1:], alone.output[1:])


def test_slice_heads_read_logits_and_signed_effects() -> None:
    policy = make_policy("slice")
    obs = draw(STEPS, TASKS, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    params = policy.meta_params()
    out, _ = policy.unroll(params, obs, policy.init_hidden(TASKS, ENVS), reset)
    assert isinstance(out.distribution, Categorical)
    assert torch.equal(out.distribution.logits, out.output[..., :2])
    with pytest.raises(TypeError, match="received SliceHeads"):
        policy.value(out.output)
    action = (draw(STEPS, TASKS, ENVS, seed=5) > 0).long()
    assert 0 < action.sum() < action.numel()
    expected = (2 * action - 1)[..., None] * out.output[..., 2:4]
    assert torch.equal(predict(policy, out.output, action), expected)


def test_the_core_sees_scaled_observations() -> None:
    policy = make_policy("slice")
    obs = draw(STEPS, 1, ENVS, OBS, seed=3)
    reset = torch.zeros(STEPS, 1, ENVS, dtype=torch.bool)

    def sides(policy: Policy, obs: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = policy.unroll(policy.meta_params(), obs, policy.init_hidden(1, ENVS), reset)
        core, scaled = policy.core, obs[:, 0] * torch.tensor(SCALE)
        assert isinstance(core, StateSpaceModel)
        expected, _ = core(scaled, core.init_hidden(ENVS).to(scaled.dtype))
        return expected, out.output[:, 0]

    assert_identity(sides, policy, obs)


def test_observations_are_clipped_in_their_own_units() -> None:
    limits = (1.0, 0.5, 2.0, 1.0)
    core, heads = StateSpaceModel(), SliceHeads(4, Discrete(2), predicted_dims=(1, 3))
    clipped, free = (
        Policy(core, heads, replace(SLICES, obs_limit=limit), inner_lr=0.1)
        for limit in (limits, ())
    )
    obs = 3 * draw(STEPS, 1, ENVS, OBS, seed=3)
    inside = torch.stack([o.clamp(-v, v) for o, v in zip(obs.unbind(-1), limits, strict=True)], -1)
    assert not torch.equal(obs, inside)
    reset = torch.zeros(STEPS, 1, ENVS, dtype=torch.bool)
    params, hidden = free.meta_params(), free.init_hidden(1, ENVS)
    expected, _ = free.unroll(params, inside, hidden, reset)
    out, _ = clipped.unroll(params, obs, hidden, reset)
    assert torch.equal(out.output, expected.output)


def test_linear_prediction_is_linear_in_the_actions_code() -> None:
    """P0 f + P1 (f x code): the three one-hot codes minus 1/3 sum to zero."""
    policy = make_policy("discrete").double()
    params, features = policy.meta_params(), draw(STEPS, TASKS, ENVS, 6, seed=3).double()
    output = policy.heads.readout(params, features)
    each = [predict(policy, output, torch.full((STEPS, TASKS, ENVS), a)) for a in range(3)]
    weight = params["heads.prediction.weight"].view(OBS, 4, 6)[:, 0]
    bias = params["heads.prediction.bias"].view(OBS, 4)[:, 0]
    torch.testing.assert_close(torch.stack(each).mean(0), features @ weight.T + bias)
    assert not torch.allclose(each[0], each[1])


@every_policy
def test_step_sizes_have_the_parameters_shapes_and_are_learned(kind: str) -> None:
    policy = make_policy(kind)
    sizes, params = policy.step_sizes(), policy.meta_params()
    assert {n: s.shape for n, s in sizes.items()} == {n: p.shape for n, p in params.items()}
    assert "step_size" not in params
    assert policy.num_parameters() == sum(p.numel() for p in params.values())
    for size in sizes.values():
        assert torch.equal(size, torch.full_like(size, 0.1))
    sum(s.sum() for s in sizes.values()).backward()
    assert torch.equal(policy.step_size.grad, torch.ones_like(policy.step_size))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a discrete action space"):
        SliceHeads(4, Continuous(1), predicted_dims=(1,))
    with pytest.raises(ValueError, match=r"output_dim: expected at least 4 .* received 3"):
        SliceHeads(3, Discrete(2), predicted_dims=(1, 3))
    heads = SliceHeads(4, Discrete(2), predicted_dims=(1, 3))
    with pytest.raises(ValueError, match="core: expected 3 inputs, received 4"):
        Policy(StateSpaceModel(), heads, PolicyConfig(obs_scale=(1.0,) * 3, num_actions=2),
               inner_lr=0.1)  # fmt: skip


def test_a_nonlinear_model_starts_as_sensitive_to_each_observation() -> None:
    """Raw observations of different sizes: the first weights stand in for a scale."""
    limits = (2.5, 2.0, 0.2, 2.0)
    settings: dict[str, Any] = {
        "core": "state_space",
        "obs_scale": (1.0,) * 4,
        "num_actions": 2,
        "predicted_dims": (1, 3),
    }
    scaled, plain = (
        build_policy(PolicyConfig(**settings, obs_limit=limit), seed=0, inner_lr=0.1)
        for limit in (limits, ())
    )
    for name, value in plain.meta_params().items():
        sees_inputs = name in ("core.input_projection.weight", "core.feedthrough.weight")
        expected = value / torch.tensor(limits) if sees_inputs else value
        torch.testing.assert_close(scaled.meta_params()[name], expected)


def test_a_policy_is_built_with_or_without_memory_and_never_without_in_context() -> None:
    settings: dict[str, Any] = {"obs_scale": SCALE, "num_actions": 2}
    for memory in (True, False):
        config = PolicyConfig(**settings, memory=memory)
        assert build_policy(config, seed=0, inner_lr=0.1).memory == memory
    with pytest.raises(ValueError, match="memory: expected True in context, received False"):
        PolicyConfig(**settings, memory=False, in_context=True)
