"""The inner step: known answers, independence of tasks, and what stays where it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor

from float32 import assert_identity
from ssm_metarl.adaptation.inner_loop import TaskLoss, adapt_params
from ssm_metarl.adaptation.inner_objective import task_loss
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.types import Params, Rollout

MakeSupport = Callable[..., Rollout]
tensor = partial(torch.tensor, dtype=torch.float64)  # known answers are exact

TARGET = tensor([[0.0, 0.0], [2.0, 1.0]])
CURVATURE = tensor([1.0, 3.0])


def quadratic(params: Params) -> Tensor:
    """c_k |w - target_k|^2 / 2 of two tasks."""
    return CURVATURE * (params["w"] - TARGET).square().sum(-1) / 2


def start() -> dict[str, Tensor]:
    return {"w": tensor([1.0, -2.0], requires_grad=True)}


def objective(policy: Policy, support: Rollout, name: str = "prediction") -> TaskLoss:
    return task_loss(policy, name, support, gamma=0.99, gae_lambda=0.98)  # type: ignore[arg-type]


def adapt(
    policy: Policy,
    support: Rollout,
    step_size: Mapping[str, Tensor] | float | None = None,
    *,
    num_steps: int = 1,
    name: str = "prediction",
) -> dict[str, Tensor]:
    adapted, _ = adapt_params(
        policy.meta_params(),
        objective(policy, support, name),
        policy.step_sizes() if step_size is None else step_size,
        num_tasks=support.num_tasks,
        num_steps=num_steps,
    )
    return adapted


def reordered(rollout: Rollout, order: list[int]) -> Rollout:
    return rollout.map(lambda x: x[:, order])


class TestKnownAnswers:
    def test_one_plain_step(self) -> None:
        adapted, losses = adapt_params(start(), quadratic, 0.1, num_tasks=2, num_steps=1)
        # gradients (1, -2) and 3 (-1, -3)
        torch.testing.assert_close(adapted["w"], tensor([[0.9, -1.8], [1.3, -1.1]]))
        torch.testing.assert_close(losses, tensor([[2.5, 15.0]]))

    def test_one_normalised_step_with_its_own_size_for_each_parameter(self) -> None:
        sizes = {"w": tensor([0.1, 0.2])}
        adapted, _ = adapt_params(start(), quadratic, sizes, num_tasks=2, num_steps=1)
        first, second = math.sqrt((1 + 4) / 2), math.sqrt((9 + 81) / 2)
        expected = [
            [1 - 0.1 * 1 / first, -2 + 0.2 * 2 / first],
            [1 + 0.1 * 3 / second, -2 + 0.2 * 9 / second],
        ]
        torch.testing.assert_close(adapted["w"], tensor(expected))

    def test_a_later_smaller_gradient_is_not_blown_up_again(self) -> None:
        """Step 2 divides by step 1's RMS, because that one was larger."""
        sizes = {"w": tensor([0.5, 0.5])}
        adapted, losses = adapt_params(start(), quadratic, sizes, num_tasks=2, num_steps=2)
        rms = math.sqrt(2.5)
        shrink = (1 - 0.5 / rms) ** 2  # task 0's gradient is w itself
        torch.testing.assert_close(adapted["w"][0], shrink * tensor([1.0, -2.0]))
        torch.testing.assert_close(losses[1, 0], tensor(2.5 * shrink))

    def test_a_later_larger_gradient_is_divided_by_its_own_rms(self) -> None:
        sizes = {"w": tensor([-1.0, -1.0])}  # uphill, so that it grows
        one, _ = adapt_params(start(), quadratic, sizes, num_tasks=2, num_steps=1)
        two, _ = adapt_params(start(), quadratic, sizes, num_tasks=2, num_steps=2)
        move = two["w"] - one["w"]
        torch.testing.assert_close(move.square().mean(-1).sqrt(), torch.ones(2).double())

    def test_no_step_gives_equal_parameters_and_no_losses(self) -> None:
        adapted, losses = adapt_params(start(), quadratic, 0.1, num_tasks=2, num_steps=0)
        assert torch.equal(adapted["w"], tensor([[1.0, -2.0], [1.0, -2.0]]))
        assert losses.shape == (0, 2)

    def test_a_task_at_its_optimum_stays_there_and_its_gradient_is_finite(self) -> None:
        params = {"w": tensor([2.0, 1.0], requires_grad=True)}
        sizes = {"w": tensor([0.1, 0.1], requires_grad=True)}
        adapted, _ = adapt_params(
            params, quadratic, sizes, num_tasks=2, num_steps=2, second_order=True
        )
        assert torch.equal(adapted["w"][1], params["w"])
        grads = torch.autograd.grad(adapted["w"].sum(), [params["w"], sizes["w"]])
        assert all(torch.isfinite(g).all() for g in grads)

    def test_a_whole_number_is_a_plain_rate_too(self) -> None:
        adapted, _ = adapt_params(start(), quadratic, 1, num_tasks=2, num_steps=1)
        torch.testing.assert_close(adapted["w"][0], torch.zeros(2).double())


class TestAnchor:
    """Task 0's gradient is w itself, so that its steps can be followed by hand."""

    PULL = tensor([0.5, 0.0])

    def test_the_first_step_has_nothing_to_take_back(self) -> None:
        for step_size in (0.1, {"w": tensor([0.1, 0.2])}):
            free, held = (
                adapt_params(start(), quadratic, step_size, num_tasks=2, num_steps=1, pull=pull)[0]
                for pull in (None, self.PULL)
            )
            assert torch.equal(free["w"], held["w"])

    def test_the_second_step_takes_back_a_share_of_the_first(self) -> None:
        size, w = tensor([0.5, -0.5]), start()["w"].detach()  # a negative step size, too
        rms = math.sqrt(2.5)
        once = w - size * w / rms
        rms = max(rms, once.square().mean().sqrt().item())
        twice = once - size * once / rms - 0.5 * (once - w)
        free, held = (
            adapt_params(start(), quadratic, {"w": size}, num_tasks=2, num_steps=2, pull=pull)[0]
            for pull in (None, self.PULL)
        )
        torch.testing.assert_close(held["w"][0], twice)
        torch.testing.assert_close(held["w"][1], free["w"][1])
        assert not torch.allclose(held["w"][0], free["w"][0])

    def test_a_plain_rate_descends_the_squared_distance(self) -> None:
        """The same steps as on the loss with pull |w - start|^2 / 2 in it."""

        def anchored(params: Params) -> Tensor:
            distance = (params["w"] - start()["w"].detach()).square().sum(-1)
            return quadratic(params) + self.PULL * distance / 2

        held, losses = adapt_params(
            start(), quadratic, 0.1, num_tasks=2, num_steps=4, pull=self.PULL
        )
        expected, _ = adapt_params(start(), anchored, 0.1, num_tasks=2, num_steps=4)
        torch.testing.assert_close(held["w"], expected["w"])
        torch.testing.assert_close(losses[1, 0], tensor(2.5 * 0.9**2))  # without the anchor

    def test_the_scale_of_the_loss_does_not_matter(self) -> None:
        sizes = {"w": tensor([0.5, 0.2])}
        one, loud = (
            adapt_params(
                start(), lambda p, c=c: c * quadratic(p), sizes,
                num_tasks=2, num_steps=3, pull=tensor([0.3, 0.7]),
            )[0]
            for c in (1.0, 1000.0)
        )  # fmt: skip
        torch.testing.assert_close(one["w"], loud["w"])

    @pytest.mark.parametrize("plain", [False, True])
    def test_it_is_differentiable_twice(self, plain: bool) -> None:
        w = tensor([1.0, -2.0], requires_grad=True)
        sizes = tensor([0.3, -0.2], requires_grad=True)
        pull = self.PULL + 0.1

        def adapted(w: Tensor, sizes: Tensor) -> Tensor:
            result, _ = adapt_params(
                {"w": w}, lambda p: (p["w"] - TARGET).pow(4).sum(-1),
                0.01 if plain else {"w": sizes},
                num_tasks=2, num_steps=3, pull=pull, second_order=True,
            )  # fmt: skip
            return result["w"] + 0 * sizes.sum()

        assert torch.autograd.gradcheck(adapted, (w, sizes))
        assert torch.autograd.gradgradcheck(adapted, (w, sizes))


class TestStepSize:
    @pytest.mark.parametrize("name", ["prediction", "policy_gradient"])
    def test_zero_changes_nothing(
        self, policy: Policy, make_support: MakeSupport, name: str
    ) -> None:
        params = policy.meta_params()
        zeros = {n: torch.zeros_like(p) for n, p in params.items()}
        for step_size in (0.0, zeros):
            adapted = adapt(policy, make_support(3), step_size, num_steps=2, name=name)
            for n, p in params.items():
                assert torch.equal(adapted[n], p.expand(3, *p.shape)), n

    @pytest.mark.parametrize("name", ["prediction", "policy_gradient"])
    def test_the_first_normalised_step_has_the_step_sizes_rms(
        self, policy: Policy, make_support: MakeSupport, name: str
    ) -> None:
        adapted = adapt(policy, make_support(4), name=name)
        squares = sum(
            (adapted[n] - p).detach().flatten(1).square().sum(1)
            for n, p in policy.meta_params().items()
        )
        rms = (squares / policy.num_parameters()).sqrt()
        assert (rms - 0.05).abs().max() < 1e-4

    def test_a_louder_loss_moves_the_first_step_no_further(
        self, policy: Policy, make_support: MakeSupport
    ) -> None:
        def sides(policy: Policy, support: Rollout) -> tuple[Params, Params]:
            quiet, start, sizes = (
                objective(policy, support),
                policy.meta_params(),
                policy.step_sizes(),
            )
            one, loud = (
                adapt_params(start, loss, sizes, num_tasks=2, num_steps=1)[0]
                for loss in (quiet, lambda params: 100 * quiet(params))
            )
            return one, loud

        assert_identity(sides, policy, make_support(2))

    @pytest.mark.parametrize("name", ["prediction", "policy_gradient"])
    def test_a_plain_rate_is_gradient_descent(
        self, policy: Policy, make_support: MakeSupport, name: str
    ) -> None:
        def sides(policy: Policy, support: Rollout) -> tuple[Params, Params]:
            oracle = copy.deepcopy(policy)
            sgd = torch.optim.SGD(oracle.meta_params().values(), lr=0.03)
            loss = objective(oracle, support, name)
            for _ in range(3):
                sgd.zero_grad()
                loss(oracle.meta_params()).sum().backward()
                sgd.step()
            adapted = adapt(policy, support, 0.03, num_steps=3, name=name)
            return oracle.meta_params(), {n: p[0] for n, p in adapted.items()}

        assert_identity(sides, policy, make_support(1))


class TestTasks:
    @pytest.mark.parametrize("name", ["prediction", "policy_gradient"])
    def test_other_tasks_data_change_nothing(
        self, policy: Policy, make_support: MakeSupport, name: str
    ) -> None:
        before = make_support(3)
        other = make_support(3, seed=5)
        after = before.map(lambda x: x.clone())
        for field in vars(after):
            getattr(after, field)[:, 2] = getattr(other, field)[:, 2]

        def sides(policy: Policy, before: Rollout, after: Rollout) -> tuple[Params, Params]:
            one, two = (adapt(policy, data, num_steps=2, name=name) for data in (before, after))
            return {n: p[:2] for n, p in one.items()}, {n: p[:2] for n, p in two.items()}

        assert_identity(sides, policy, before, after)
        one, two = (adapt(policy, data, num_steps=2, name=name) for data in (before, after))
        assert any(not torch.allclose(one[n][2], two[n][2], atol=1e-3) for n in one)

    def test_the_order_of_tasks_changes_nothing(
        self, policy: Policy, make_support: MakeSupport
    ) -> None:
        order = [2, 0, 3, 1]

        def sides(policy: Policy, support: Rollout) -> tuple[Params, Params]:
            straight = adapt(policy, support, num_steps=2)
            turned = adapt(policy, reordered(support, order), num_steps=2)
            return {n: p[order] for n, p in straight.items()}, turned

        assert_identity(sides, policy, make_support(4))

    def test_all_tasks_at_once_equal_each_alone(
        self, policy: Policy, make_support: MakeSupport
    ) -> None:
        def sides(policy: Policy, support: Rollout) -> tuple[Params, Params]:
            alone = [adapt(policy, support.task(k), num_steps=2) for k in range(3)]
            together = adapt(policy, support, num_steps=2)
            return {n: torch.cat([a[n] for a in alone]) for n in together}, together

        assert_identity(sides, policy, make_support(3))


class TestWhatStays:
    def test_a_head_that_the_loss_does_not_use(self, make_support: MakeSupport) -> None:
        config = PolicyConfig(state_dim=4, hidden_dim=4, obs_scale=(1.0,) * 4, num_actions=2)
        policy = build_policy(config, seed=0, inner_lr=0.1)
        adapted = adapt(policy, make_support(2), num_steps=2)
        for n, p in policy.meta_params().items():
            stays = n.startswith(("heads.action.", "heads.value."))
            assert torch.equal(adapted[n], p.expand(2, *p.shape)) == stays, n

    def test_the_parameters_that_came_in(self, policy: Policy, make_support: MakeSupport) -> None:
        before = {n: p.detach().clone() for n, p in policy.named_parameters()}
        adapt(policy, make_support(2), num_steps=2)
        for n, p in policy.named_parameters():
            assert torch.equal(p, before[n])
            assert p.grad is None

    @pytest.mark.parametrize("frozen", ["all", "core.", "heads.", "none"])
    def test_frozen_parameters_and_no_grad_adapt_all_the_same(
        self, policy: Policy, make_support: MakeSupport, frozen: str
    ) -> None:
        support = make_support(2)
        expected = adapt(policy, support, num_steps=2)
        for n, p in policy.named_parameters():
            p.requires_grad_(not (frozen == "all" or n.startswith(frozen)))
        adapted = adapt(policy, support, num_steps=2)
        with torch.no_grad():
            in_no_grad = adapt(policy, support, num_steps=2)
        for n in expected:
            assert torch.equal(adapted[n], expected[n])
            assert torch.equal(in_no_grad[n], expected[n])


class TestGraph:
    """For a quadratic of curvature c, d adapted / d w = 1 - rate c; first order says 1."""

    def derivative(self, *, second_order: bool) -> Tensor:
        params = start()
        adapted, _ = adapt_params(
            params, quadratic, 0.1, num_tasks=2, num_steps=2, second_order=second_order
        )
        return torch.stack(
            [torch.autograd.grad(a.sum(), params["w"], retain_graph=True)[0] for a in adapted["w"]]
        )

    def test_second_order_goes_through_the_gradient(self) -> None:
        expected = tensor([0.9**2, 0.7**2])[:, None].expand(2, 2)
        torch.testing.assert_close(self.derivative(second_order=True), expected)

    def test_first_order_holds_the_gradient_constant(self) -> None:
        torch.testing.assert_close(self.derivative(second_order=False), torch.ones(2, 2).double())

    def test_first_order_still_gives_step_sizes_their_gradient(self) -> None:
        sizes = {"w": tensor([0.1, 0.2], requires_grad=True)}
        params = start()
        adapted, _ = adapt_params(params, quadratic, sizes, num_tasks=2, num_steps=1)
        grad, through = torch.autograd.grad(adapted["w"][0].sum(), [sizes["w"], params["w"]])
        torch.testing.assert_close(grad, -tensor([1.0, -2.0]) / math.sqrt(2.5))
        torch.testing.assert_close(through, torch.ones(2).double())

    def test_the_report_of_losses_carries_no_graph(self) -> None:
        _, losses = adapt_params(
            start(), quadratic, 0.1, num_tasks=2, num_steps=1, second_order=True
        )
        assert not losses.requires_grad
