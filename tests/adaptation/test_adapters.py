"""One contract, which every adapter keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded, double
from ssm_metarl.adaptation import hybrid_adapter
from ssm_metarl.adaptation.inner_objective import task_loss
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import Objective, StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Params, Rollout

from .arms import Arm, equal, every_objective, values

MakeSupport = Callable[..., Rollout]


@pytest.fixture(params=["standard", "hybrid"])
def arm(request: pytest.FixtureRequest, buffer: ExperienceBuffer) -> Arm:
    return Arm(request.param, buffer)


class TestContract:
    @every_objective
    @pytest.mark.parametrize("adapt_lr", [None, 0.05])
    def test_the_policy_is_bitwise_unchanged_and_a_new_one_returned(
        self,
        arm: Arm,
        policy: Policy,
        make_support: MakeSupport,
        objective: Objective,
        adapt_lr: float | None,
    ) -> None:
        before, support = values(policy), make_support(1)
        seen = support.map(lambda x: x.clone())
        generator = torch.get_rng_state()
        adapted = arm.adapt(
            policy, support, objective=objective, adapt_lr=adapt_lr, num_adapt_steps=2
        )
        assert equal(values(policy), before)
        assert all(p.requires_grad and p.grad is None for p in policy.parameters())
        assert all(torch.equal(getattr(support, f), getattr(seen, f)) for f in vars(seen))
        assert torch.equal(torch.get_rng_state(), generator)
        assert adapted is not policy
        after = values(adapted)
        assert any(not torch.equal(after[n], before[n]) for n in policy.meta_params())
        for n in ("step_size", "obs_scale"):
            assert torch.equal(after[n], before[n])
        # no storage is shared: changing the new policy leaves the old one alone
        with torch.no_grad():
            for p in adapted.parameters():
                p.zero_()
        assert equal(values(policy), before)

    @every_objective
    def test_the_report(
        self, arm: Arm, policy: Policy, make_support: MakeSupport, objective: Objective
    ) -> None:
        support = make_support(1, 20)
        report = arm.adapt(policy, support, objective=objective, num_adapt_steps=3).report
        assert (report.num_steps, report.env_steps) == (3, 20)
        assert (report.replay_trust is None) == (arm.kind == "standard")
        if arm.kind == "standard":
            adapted = arm.adapt(policy, support, objective=objective, num_adapt_steps=3)

            def losses(policy: Policy, adapted: Policy, support: Rollout) -> Tensor:
                loss = task_loss(policy, objective, support, gamma=0.99, gae_lambda=0.98)
                each = (policy.meta_params(), adapted.meta_params())
                return torch.cat([loss({n: p[None] for n, p in of.items()}) for of in each])

            reported = torch.tensor([report.loss_before, report.loss_after])
            assert_only_rounded(reported, losses, policy, adapted, support)
            assert report.loss_after != pytest.approx(report.loss_before, rel=1e-3)

    def test_only_steps_that_were_taken_count(self, arm: Arm, policy: Policy) -> None:
        """An episode that ended left masked steps behind it."""
        worlds = make_worlds(CARTPOLE.sample("train", 1, seed=0), 2, seed=0, purpose="test")
        support = collect_rollout(worlds, policy.actor(policy.meta_params(), 1, 2), 200)
        taken = int(support.mask.sum())
        assert taken < support.mask.numel()
        assert arm.adapt(policy, support).report.env_steps == taken

    @every_objective
    def test_a_small_plain_rate_lowers_the_loss(
        self, arm: Arm, policy: Policy, make_support: MakeSupport, objective: Objective
    ) -> None:
        losses = [
            arm.adapt(
                policy, make_support(1), objective=objective, adapt_lr=0.01, num_adapt_steps=n
            ).report.loss_after
            for n in (0, 1, 5)
        ]
        assert losses[0] > losses[1] > losses[2]

    @every_objective
    def test_many_tasks_at_once_equal_each_alone(
        self,
        arm: Arm,
        policy: Policy,
        make_support: MakeSupport,
        objective: Objective,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(hybrid_adapter, "TASKS_AT_ONCE", 2)  # the last chunk is not full
        policy, support = double(policy), double(make_support(3))
        settings = {"objective": objective, "num_adapt_steps": 2}
        together, reports = arm.adapt_tasks(policy, support, **settings)
        for k in range(3):
            alone = arm.adapt(policy, support.task(k), **settings)
            for n, p in alone.meta_params().items():
                torch.testing.assert_close(p, together[n][k])
            assert alone.report.loss_after == pytest.approx(reports[k].loss_after)
            assert alone.report.env_steps == reports[k].env_steps
        assert not any(p.requires_grad for p in together.values())

    def test_the_learned_step_sizes_are_used_unless_a_rate_is_given(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        policy, support = double(policy), double(make_support(1))
        start = policy.meta_params()

        def move(**settings: object) -> dict[str, Tensor]:
            adapted = arm.adapt(policy, support, **settings).meta_params()
            return {n: (adapted[n] - start[n]).detach() for n in start}

        learned, plain = move(), move(adapt_lr=0.01)
        with torch.no_grad():
            policy.step_size.mul_(2)
        doubled, same = move(), move(adapt_lr=0.01)
        for n in start:
            torch.testing.assert_close(doubled[n], 2 * learned[n])
            assert torch.equal(same[n], plain[n])

    def test_no_steps_return_equal_parameters(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        adapted = arm.adapt(policy, make_support(1), num_adapt_steps=0)
        assert equal(values(adapted), values(policy))
        assert adapted.report.num_steps == 0
        assert adapted.report.loss_before == adapted.report.loss_after > 0

    def test_the_adapted_policy_acts_and_adapts_again(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        # An anchor holds each adaptation to where it began: to two places here.
        settings = {"adapt_lr": 0.01} | ({"proximal_weight": 0} if arm.kind == "hybrid" else {})
        exact, support = double(policy), double(make_support(1))
        once = arm.adapt(exact, support, **settings)
        twice = arm.adapt(once, support, **settings)
        both = arm.adapt(exact, support, **settings, num_adapt_steps=2)
        for n, p in both.meta_params().items():
            torch.testing.assert_close(twice.meta_params()[n], p)
        twice = arm.adapt(
            arm.adapt(policy, make_support(1), **settings), make_support(1), **settings
        )
        worlds = make_worlds(CARTPOLE.task(), 1, seed=0, purpose="test")
        rollout = collect_rollout(worlds, twice.actor(twice.meta_params(), 1, 1), 5)
        assert torch.isfinite(rollout.log_prob).all()

    def test_double_precision_stays_double(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        policy.double()
        with torch.no_grad():
            policy.step_size += 1e-12
        support = make_support(1).map(lambda x: x.double() if x.is_floating_point() else x)
        adapted = arm.adapt(policy, support)
        assert {v.dtype for v in values(adapted).values()} == {torch.float64}
        assert torch.equal(adapted.step_size, policy.step_size)

    @pytest.mark.parametrize("wrapped", [False, True], ids=["raw", "policy"])
    def test_a_raw_model_is_accepted(
        self, arm: Arm, make_support: MakeSupport, wrapped: bool
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
        before = {n: v.clone() for n, v in model.state_dict().items()}
        adapted = arm.adapt(as_policy(model) if wrapped else model, make_support(1), adapt_lr=0.01)
        assert equal(dict(model.state_dict()), before)
        assert isinstance(adapted.core, StateSpaceModel)
        assert adapted.num_parameters() == 6_744
        assert adapted.report.loss_after < adapted.report.loss_before

    def test_a_raw_model_adapts_to_many_tasks_too(
        self, arm: Arm, make_support: MakeSupport
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = StateSpaceModel(state_dim=4, hidden_dim=8)
        raw, _ = arm.adapt_tasks(model, make_support(2))
        wrapped, _ = arm.adapt_tasks(as_policy(model), make_support(2))
        assert equal(raw, wrapped)

    def test_a_raw_model_without_prediction_outputs_adapts_by_policy_gradient(
        self, arm: Arm, make_support: MakeSupport
    ) -> None:
        model = StateSpaceModel(state_dim=4, input_dim=4, output_dim=2, hidden_dim=8)
        with pytest.raises(ValueError, match=r"expected 'policy_gradient'.*received 'prediction'"):
            arm.adapt(model, make_support(1))
        adapted = arm.adapt(model, make_support(1), objective="policy_gradient", adapt_lr=0.01)
        assert adapted.report.loss_after < adapted.report.loss_before


class TestRefusals:
    def test_several_tasks(self, arm: Arm, policy: Policy, make_support: MakeSupport) -> None:
        with pytest.raises(ValueError, match=r"expected one task, received 3; adapt_tasks"):
            arm.adapt(policy, make_support(3))

    def test_another_observation_size(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        support = make_support(1)
        narrow = replace(support, obs=support.obs[..., :3], next_obs=support.next_obs[..., :3])
        with pytest.raises(ValueError, match=r"expected observations of size 4, received 3"):
            arm.adapt(policy, narrow)

    @pytest.mark.parametrize("name", ["obs", "next_obs", "reward", "log_prob"])
    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_numbers_that_are_none(
        self, arm: Arm, policy: Policy, make_support: MakeSupport, name: str, number: float
    ) -> None:
        support = make_support(1)
        spoiled = getattr(support, name).clone()
        spoiled[3] = number
        with pytest.raises(ValueError, match=rf"expected finite .* received NaN or inf in {name}$"):
            arm.adapt(policy, replace(support, **{name: spoiled}), objective="policy_gradient")

    def test_prediction_needs_no_log_probability(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        support = make_support(1)
        unknown = replace(support, log_prob=torch.full_like(support.log_prob, torch.nan))
        known, other = (arm.adapt(policy, s).meta_params() for s in (support, unknown))
        for name, value in known.items():
            assert torch.equal(other[name], value)

    def test_steps_that_were_not_taken_may_hold_anything(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        support = make_support(1)
        mask = support.mask.clone()
        mask[15:] = False
        short = replace(support, mask=mask)
        spoiled = short.map(
            lambda x: (
                x.index_fill(0, torch.arange(15, 24), torch.nan) if x.is_floating_point() else x
            )
        )
        clean, other = (arm.adapt(policy, s, num_adapt_steps=2) for s in (short, spoiled))
        for n, p in clean.meta_params().items():
            assert torch.equal(other.meta_params()[n], p)

    @pytest.mark.parametrize("how", ["no time", "no step taken"])
    def test_no_data(self, arm: Arm, policy: Policy, make_support: MakeSupport, how: str) -> None:
        support = make_support(1)
        if how == "no time":
            support = support.map(lambda x: x[:0])
        else:
            support = replace(support, mask=torch.zeros_like(support.mask))
        with pytest.raises(ValueError, match=r"expected at least one step .* received none"):
            arm.adapt(policy, support)

    def test_one_task_of_several_without_data(
        self, arm: Arm, policy: Policy, make_support: MakeSupport
    ) -> None:
        support = make_support(3)
        mask = support.mask.clone()
        mask[:, 1] = False
        with pytest.raises(ValueError, match=r"at least one step in every task"):
            arm.adapt_tasks(policy, replace(support, mask=mask))

    def test_what_is_no_policy(self, arm: Arm, make_support: MakeSupport) -> None:
        with pytest.raises(TypeError, match=r"expected a Policy or a StateSpaceModel.*Linear"):
            arm.adapt(torch.nn.Linear(4, 4), make_support(1))  # type: ignore[arg-type]


def test_an_adapted_policy_still_remembers(remembering: Policy, make_support: MakeSupport) -> None:
    support = make_support(1)
    adapted = StandardAdapter(StandardAdaptationConfig(rollback=False)).adapt(remembering, support)
    assert adapted.in_context and adapted.input_dim == remembering.input_dim
    worlds = make_worlds(CARTPOLE.sample("train", 1, seed=0), 1, seed=0, purpose="test")
    rollout = collect_rollout(worlds, adapted.actor(adapted.meta_params(), 1, 1), 60)
    params = {n: p[None] for n, p in adapted.meta_params().items()}
    taken = rollout.mask

    def looked(policy: Policy, params: Params, rollout: Rollout) -> Tensor:
        return policy.look(params, rollout).distribution.log_prob(rollout.action)[taken]

    assert_only_rounded(rollout.log_prob[taken], looked, remembering, params, rollout)
