"""The meta-gradient against finite differences; updates, divergence and the optimiser's state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_loop import TaskLoss
from ssm_metarl.adaptation.inner_objective import task_loss, weigh_replay
from ssm_metarl.config import Core, MetaTrainingConfig, Objective
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.gradient_steps import FINAL_LR_SHARE, TrainingDiverged
from ssm_metarl.meta_rl.meta_maml import MetaMAML, query_parts
from ssm_metarl.objectives.ppo import clipped_policy_loss
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Rollout

MakeConfig = Callable[..., MetaTrainingConfig]
TASKS, SUPPORT_STEPS, HORIZON = 3, 12, 8
STEP = 1e-6  # of the central differences
COORDINATES = 6  # tried among the meta-parameters, and as many among the step sizes


def to_double(rollout: Rollout) -> Rollout:
    return rollout.map(lambda x: x.double() if x.is_floating_point() else x)


@dataclass
class MetaBatch:
    """A policy in float64, and one batch of data that stays the same."""

    maml: MetaMAML
    loss: TaskLoss
    query: Rollout
    advantage: Tensor
    num_steps: int

    def meta_loss(self) -> Tensor:
        """The outer objective in one piece and one graph."""
        maml, config = self.maml, self.maml.config
        adapted = maml.adapt(
            self.loss,
            num_tasks=self.query.num_tasks,
            num_steps=self.num_steps,
            second_order=not config.first_order,
        )
        loss = clipped_policy_loss(
            maml.policy,
            adapted,
            self.query,
            self.advantage,
            clip_coef=config.clip_coef,
            entropy_coef=config.entropy_coef,
        ).mean()
        if config.objective == "prediction":
            loss = loss + config.inner_loss_coef * self.loss(adapted).mean()
        return loss

    def gradient(self) -> dict[str, Tensor]:
        named = dict(self.maml.policy.named_parameters())
        self.maml.steps.optimizer.zero_grad()
        parts = query_parts(self.query, self.advantage)
        loss, left_out = self.maml.backward(self.loss, parts, num_steps=self.num_steps)
        assert left_out == 0
        assert loss == pytest.approx(self.meta_loss().item())
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
        self.maml.steps.optimizer.zero_grad()
        return grads

    def update(self, **changes: Any) -> Any:
        given: dict[str, Any] = {"num_steps": self.num_steps, "progress": 0.0} | changes
        return self.maml.update(self.loss, self.query, self.advantage, **given)

    @torch.no_grad()
    def slope(self, direction: dict[str, Tensor]) -> float:
        """Central difference of the meta-loss along a direction of parameter space."""
        params = dict(self.maml.policy.named_parameters())

        def moved(distance: float) -> float:
            for n, d in direction.items():
                params[n] += distance * d
            value = self.meta_loss().item()
            for n, d in direction.items():
                params[n] -= distance * d
            return value

        return (moved(STEP) - moved(-STEP)) / (2 * STEP)

    def worst_error(self) -> float:
        """Largest relative error of the gradient, in random coordinates and directions."""
        gradient, g = self.gradient(), torch.Generator().manual_seed(5)
        errors = []
        for names in ([n for n in gradient if n != "step_size"], ["step_size"]):
            size = sum(gradient[n].numel() for n in names)
            typical = sum(gradient[n].square().sum() for n in names).div(size).sqrt().item()
            whole = {n: torch.randn(gradient[n].shape, generator=g).double() for n in names}
            directions = [whole]
            for _ in range(COORDINATES):
                name = names[int(torch.randint(len(names), (), generator=g))]
                one = torch.zeros_like(gradient[name])
                one.view(-1)[int(torch.randint(one.numel(), (), generator=g))] = 1
                directions.append({name: one})
            for direction in directions:
                expected = self.slope(direction)
                received = sum((gradient[n] * d).sum().item() for n, d in direction.items())
                # a coordinate that hardly matters is measured against a typical one
                errors.append(abs(received - expected) / max(abs(expected), typical))
        return max(errors)


def make_batch(
    config: MetaTrainingConfig,
    *,
    num_steps: int,
    replay: bool = False,
    dtype: torch.dtype = torch.float64,
) -> MetaBatch:
    policy = build_policy(architecture(config, CARTPOLE), seed=2, inner_lr=0.1)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # off the nearly uniform start, and every step size its own
        for p in policy.meta_params().values():
            p += 0.2 * torch.randn(p.shape, generator=g)
        policy.step_size *= 0.5 + torch.rand(policy.step_size.shape, generator=g)
    tasks = CARTPOLE.sample("train", TASKS, seed=0)
    worlds = make_worlds(tasks, 1, seed=0, purpose="support")
    actor = random_actor(worlds, TaskNoise(0, "a", tasks.indices), SUPPORT_STEPS)
    support = collect_rollout(worlds, actor, SUPPORT_STEPS, autoreset=True)
    worlds = make_worlds(tasks, 2, seed=0, purpose="query", max_episode_steps=HORIZON)
    noise = TaskNoise(0, "b", tasks.indices)
    actor = policy.actor(policy.meta_params(), TASKS, 2, noise=noise, num_steps=HORIZON)
    query = collect_rollout(worlds, actor, HORIZON)

    policy.to(dtype)
    if dtype == torch.float64:
        support, query = to_double(support), to_double(query)
    past = None
    if replay:
        other = support.map(lambda x: x.roll(1, dims=1)[:, :1])
        past = weigh_replay(policy, support, other, experience_weight=0.5)
    loss = task_loss(policy, config.objective, support, gamma=0.99, gae_lambda=0.98, replay=past)
    advantage = advantages(query, gamma=0.99, gae_lambda=0.98)
    return MetaBatch(MetaMAML(policy, config), loss, query, advantage, num_steps)


class TestMetaGradient:
    @pytest.mark.parametrize("num_steps", [1, 2])
    @pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
    @pytest.mark.parametrize("core", ["diagonal", "state_space"])
    def test_second_order_equals_finite_differences(
        self, tiny: MakeConfig, core: Core, objective: Objective, num_steps: int
    ) -> None:
        # a wide clip, for the clipped surrogate has kinks
        config = tiny(core=core, objective=objective, clip_coef=50.0, entropy_coef=0.1)
        assert make_batch(config, num_steps=num_steps).worst_error() < 1e-5

    @pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
    def test_and_with_replayed_experience(self, tiny: MakeConfig, objective: Objective) -> None:
        config = tiny(objective=objective, clip_coef=50.0)
        with_replay = make_batch(config, num_steps=1, replay=True)
        assert with_replay.worst_error() < 1e-5
        without = make_batch(config, num_steps=1)
        assert with_replay.meta_loss().item() != pytest.approx(without.meta_loss().item())

    @pytest.mark.parametrize("core", ["diagonal", "state_space"])
    @pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
    def test_first_order_is_another_gradient_of_the_same_loss(
        self, tiny: MakeConfig, core: Core, objective: Objective
    ) -> None:
        second, first = (
            make_batch(
                tiny(core=core, objective=objective, clip_coef=50.0, first_order=first_order),
                num_steps=1,
            )
            for first_order in (False, True)
        )
        assert first.meta_loss().item() == pytest.approx(second.meta_loss().item(), rel=1e-12)
        a, b = second.gradient(), first.gradient()
        of_params = [n for n in a if n != "step_size"]
        difference = sum((a[n] - b[n]).square().sum() for n in of_params).sqrt()
        assert difference > 0.05 * sum(a[n].square().sum() for n in of_params).sqrt()
        assert first.worst_error() > 1e-2
        # the step sizes' gradient needs no second derivative: after one step it is the same
        torch.testing.assert_close(a["step_size"], b["step_size"])

    def test_the_check_would_find_a_graph_that_was_dropped(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = make_batch(tiny(clip_coef=50.0), num_steps=1)
        assert batch.worst_error() < 1e-5
        grad = torch.autograd.grad

        def without_graph(*args: Any, create_graph: bool = False, **kwargs: Any) -> Any:
            return grad(*args, retain_graph=create_graph, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", without_graph)
        assert batch.worst_error() > 1e-2

    @pytest.mark.parametrize("inner_loss_coef", [0.0, 0.5])
    def test_what_learns_from_the_outer_loss(
        self, tiny: MakeConfig, inner_loss_coef: float
    ) -> None:
        batch = make_batch(tiny(inner_loss_coef=inner_loss_coef), num_steps=1)
        gradient = batch.gradient()
        idle = {n for n, g in gradient.items() if not g.any()}
        assert idle == {"heads.value.weight", "heads.value.bias"}  # no objective reads the value
        # Step sizes learn where the step moves what the outer loss reads: the core, and the
        # prediction head where the loss that is left counts.
        params = batch.maml.policy.meta_params()
        sizes = gradient["step_size"].split([p.numel() for p in params.values()])
        moving = {n for n, g in zip(params, sizes, strict=True) if g.any()}
        read = ("core.", "heads.prediction.") if inner_loss_coef else ("core.",)
        assert moving == {n for n in params if n.startswith(read)}

    @pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
    def test_the_inner_loss_that_is_left_counts_where_it_is_prediction(
        self, tiny: MakeConfig, objective: Objective
    ) -> None:
        without, with_it = (
            make_batch(tiny(objective=objective, inner_loss_coef=coef), num_steps=2)
            for coef in (0.0, 0.5)
        )
        adapted = without.maml.adapt(without.loss, num_tasks=TASKS, num_steps=2)
        left = 0.5 * without.loss(adapted).mean().item() if objective == "prediction" else 0
        assert with_it.meta_loss().item() == pytest.approx(without.meta_loss().item() + left)
        assert (left > 0.01) == (objective == "prediction")


def parameters(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in policy.named_parameters()}


class TestUpdate:
    def test_it_lowers_the_meta_loss_and_reports_it(self, tiny: MakeConfig) -> None:
        batch = make_batch(tiny(update_epochs=5, outer_lr=1e-3), num_steps=1)
        before = batch.meta_loss().item()
        first = batch.update()
        assert batch.meta_loss().item() < first.loss < before
        assert first.grad_norm > 0

    def test_it_takes_update_epochs_steps(self, tiny: MakeConfig) -> None:
        for epochs in (1, 4):
            batch = make_batch(tiny(update_epochs=epochs), num_steps=1)
            batch.update()
            batch.update()
            steps = {v.item() for n, v in batch.maml.steps.tensors().items() if n.endswith(".step")}
            assert steps == {2 * epochs}

    def test_the_norm_is_reported_before_clipping(self, tiny: MakeConfig) -> None:
        batch = make_batch(tiny(update_epochs=1, max_grad_norm=1e-4), num_steps=1)
        norm = sum(g.square().sum() for g in batch.gradient().values()).sqrt().item()
        assert batch.update().grad_norm == pytest.approx(norm)
        clipped = [p.grad for p in batch.maml.policy.parameters() if p.grad is not None]
        assert sum(g.square().sum() for g in clipped).sqrt().item() == pytest.approx(1e-4, rel=0.02)

    @pytest.mark.parametrize(
        ("progress", "share"),
        [(0.0, 1.0), (0.25, 0.75), (0.94, 0.06), (0.96, FINAL_LR_SHARE), (1.0, FINAL_LR_SHARE)],
    )
    def test_the_learning_rate_falls_linearly_to_its_floor(
        self, tiny: MakeConfig, progress: float, share: float
    ) -> None:
        batch = make_batch(tiny(update_epochs=1, outer_lr=4e-3), num_steps=1)
        before, gradient = parameters(batch.maml.policy), batch.gradient()
        batch.update(progress=progress)
        after = parameters(batch.maml.policy)
        # Adam's first step is the learning rate in every coordinate with a gradient to speak of
        large = gradient["step_size"].abs() > 1e-3
        move = (after["step_size"] - before["step_size"]).abs()[large]
        assert large.any()
        torch.testing.assert_close(move, torch.full_like(move, 4e-3 * share), rtol=0.05, atol=0)

    @pytest.mark.parametrize("where", ["loss", "gradient"])
    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_a_number_that_is_none_stops_it_and_changes_nothing(
        self, tiny: MakeConfig, where: str, number: float
    ) -> None:
        batch = make_batch(tiny(), num_steps=1)
        batch.update()
        before, state = parameters(batch.maml.policy), batch.maml.steps.tensors()
        if where == "loss":
            batch.advantage.fill_(number)
        else:
            weight = next(batch.maml.policy.core.parameters())
            weight.register_hook(lambda g: torch.full_like(g, number))
        with pytest.raises(TrainingDiverged, match="expected a finite loss and gradient"):
            batch.update()
        for kept, now in (
            (before, parameters(batch.maml.policy)),
            (state, batch.maml.steps.tensors()),
        ):
            assert kept.keys() == now.keys()
            assert all(torch.equal(kept[n], now[n]) for n in kept)

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_a_task_without_a_finite_gradient_is_left_out(
        self, tiny: MakeConfig, number: float
    ) -> None:
        broken, silent = (make_batch(tiny(inner_loss_coef=0.0), num_steps=1) for _ in range(2))
        broken.advantage[2, 1, 0] = number
        silent.advantage[:, 1] = 0.0
        parameters_after = []
        for batch, left_out in ((broken, 1), (silent, 0)):
            assert batch.update().left_out == left_out
            parameters_after.append(parameters(batch.maml.policy))
        for name, value in parameters_after[1].items():
            assert torch.equal(parameters_after[0][name], value), name

    def test_it_goes_on_after_a_number_that_was_none(self, tiny: MakeConfig) -> None:
        batch, same = (make_batch(tiny(), num_steps=1) for _ in range(2))
        kept = batch.advantage.clone()
        batch.advantage.fill_(torch.nan)
        with pytest.raises(TrainingDiverged):
            batch.update()
        batch.advantage.copy_(kept)
        assert batch.update() == same.update()


class TestState:
    def test_a_restored_optimiser_continues_bit_for_bit(self, tiny: MakeConfig) -> None:
        batch = make_batch(tiny(), num_steps=1, dtype=torch.float32)
        batch.update()
        state, policy = batch.maml.steps.tensors(), copy.deepcopy(batch.maml.policy)
        kept = copy.deepcopy(state)
        batch.update(progress=0.5)
        batch.update(progress=0.6)

        def continued(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            other = make_batch(tiny(), num_steps=1, dtype=torch.float32)
            other.maml.policy.load_state_dict(policy.state_dict())
            if tensors:
                other.maml.steps.restore(tensors)
            other.update(progress=0.5)
            other.update(progress=0.6)
            return parameters(other.maml.policy)

        expected = parameters(batch.maml.policy)
        for _ in range(2):  # twice: neither training may work in the snapshot's own tensors
            received = continued(state)
            assert all(torch.equal(received[n], expected[n]) for n in expected)
        assert all(torch.equal(state[n], kept[n]) for n in kept)
        without = continued({})
        assert any(not torch.equal(without[n], expected[n]) for n in expected)

    def test_a_fresh_optimiser_has_no_state(self, tiny: MakeConfig) -> None:
        assert make_batch(tiny(), num_steps=1).maml.steps.tensors() == {}

    def test_every_trained_parameter_has_its_moments(self, tiny: MakeConfig) -> None:
        batch = make_batch(tiny(), num_steps=1)
        batch.update()
        trained = {n for n, p in batch.maml.policy.named_parameters() if p.grad is not None}
        expected = {f"{n}.{key}" for n in trained for key in ("step", "exp_avg", "exp_avg_sq")}
        assert set(batch.maml.steps.tensors()) == expected
        assert "step_size.exp_avg" in expected
