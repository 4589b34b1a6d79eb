"""Meta-training: deterministic, as varied as configured, and only ever on training tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded, assert_rounds_alike, double, nudged
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import MetaTrainingConfig, StandardAdaptationConfig
from ssm_metarl.core import fused
from ssm_metarl.core import policy as policy_module
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.meta_rl import training_data
from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
from ssm_metarl.meta_rl.trainer import MetaMetrics, MetaTrainer
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily, Tasks, Uniform
from ssm_metarl.types import EnvStep, Params, Rollout

MakeConfig = Callable[..., MetaTrainingConfig]


def run(config: MetaTrainingConfig) -> tuple[MetaTrainer, list[MetaMetrics]]:
    trainer, metrics = MetaTrainer(config), []
    trainer.train(metrics.append)
    return trainer, metrics


def state(trainer: MetaTrainer) -> dict[str, Tensor]:
    return trainer.tensors()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def log_probs(policy: Policy, params: Params, rollout: Rollout) -> Tensor:
    """What parameters give to the steps that were taken; elsewhere 0."""
    hidden = policy.init_hidden(rollout.num_tasks, rollout.num_envs)
    out, _ = policy.unroll(params, rollout.obs, hidden, rollout.reset)
    return torch.where(rollout.mask, out.distribution.log_prob(rollout.action), 0)


def without_time(metrics: list[MetaMetrics]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(m).items() if k != "seconds"} for m in metrics]


class Watch:
    """Stands in for `make_worlds`: notes what was asked for, and counts the steps taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[Tasks] = []
        self.options: list[dict[str, Any]] = []
        self.steps_taken = 0
        self.rollouts: list[Rollout] = []
        monkeypatch.setattr(training_data, "make_worlds", self.make)
        monkeypatch.setattr(training_data, "collect_rollout", self.collect)

    def make(self, tasks: Tasks, num_envs: int, **options: Any) -> Any:
        worlds = make_worlds(tasks, num_envs, **options)
        step, reset = worlds.step, worlds.reset
        running = torch.zeros(len(tasks), num_envs, dtype=torch.bool)

        def counted_step(action: Tensor) -> EnvStep:
            self.steps_taken += int(running.sum())
            result = step(action)
            running.logical_and_(~(result.terminated | result.truncated))
            return result

        def noted_reset(mask: Tensor | None = None) -> Tensor:
            running.logical_or_(torch.ones_like(running) if mask is None else mask)
            return reset(mask)

        worlds.step, worlds.reset = counted_step, noted_reset  # type: ignore[method-assign]
        self.tasks.append(tasks)
        self.options.append({"num_envs": num_envs} | options)
        return worlds

    def collect(self, *args: Any, **kwargs: Any) -> Rollout:
        rollout = collect_rollout(*args, **kwargs)
        self.rollouts.append(rollout)
        return rollout


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "hybrid": {"adaptation_mode": "hybrid"},
    "policy gradient": {"objective": "policy_gradient"},
    "own support": {"support_policy": "policy"},
    "first order": {"first_order": True},
    "state space": {"core": "state_space", "hidden_dim": 8},
    "everything": {
        "adaptation_mode": "hybrid",
        "objective": "policy_gradient",
        "support_policy": "policy",
        "adaptation_steps": 2,
        "entropy_coef": 0.01,
    },
}


class TestDeterminism:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_seed_decides_everything(self, tiny: MakeConfig, variant: str) -> None:
        settings = VARIANTS[variant] | {"num_epochs": 2}
        generator = torch.get_rng_state()
        (one, first), (same, again), (other, _) = (
            run(tiny(seed=seed, **settings)) for seed in (1, 1, 2)
        )
        assert equal(state(one), state(same))
        assert without_time(first) == without_time(again)
        assert not equal(state(one), state(other))
        assert torch.equal(torch.get_rng_state(), generator)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_an_epoch_trains(self, tiny: MakeConfig, variant: str) -> None:
        """The policy and the step sizes change, and all numbers are finite."""
        trainer = MetaTrainer(tiny(**VARIANTS[variant]))
        before = state(trainer)
        for _ in range(2):
            metrics = trainer.run_epoch()
        after = state(trainer)
        assert all(math.isfinite(v) for v in asdict(metrics).values())
        assert all(torch.isfinite(v).all() for v in after.values())
        for name in (
            "policy.step_size",
            "policy.core." + next(iter(trainer.policy.core.state_dict())),
        ):
            assert not torch.equal(before[name], after[name])

    def test_each_setting_of_the_algorithm_makes_a_difference(self, tiny: MakeConfig) -> None:
        results = {
            variant: state(run(tiny(num_epochs=3, **settings))[0])["policy.step_size"]
            for variant, settings in VARIANTS.items()
        }
        default = results.pop("default")
        del results["own support"]  # a nearly uniform policy may act as the random one does
        for variant, result in results.items():
            assert result.shape != default.shape or not torch.equal(result, default), variant

    @pytest.mark.parametrize("variant", ["default", "hybrid", "everything"])
    def test_a_restored_training_continues_bit_for_bit(
        self, tiny: MakeConfig, variant: str
    ) -> None:
        config = tiny(**VARIANTS[variant])
        whole, metrics = run(config)
        first, second = MetaTrainer(config), MetaTrainer(config)
        for _ in range(3):
            first.run_epoch()
        tensors, counters = first.tensors(), first.counters()
        first.run_epoch()  # a snapshot is not touched by what comes after it
        second.restore(tensors, counters)
        rest: list[MetaMetrics] = []
        second.train(rest.append)
        assert equal(state(second), state(whole))
        assert without_time(rest) == without_time(metrics[3:])
        assert second.counters() == whole.counters()

    def test_hybrid_without_its_buffer_would_not(self, tiny: MakeConfig) -> None:
        config = tiny(adaptation_mode="hybrid")
        whole, _ = run(config)
        first, second = MetaTrainer(config), MetaTrainer(config)
        for _ in range(3):
            first.run_epoch()
        kept = {n: v for n, v in first.tensors().items() if not n.startswith("experience.")}
        second.restore(kept, first.counters())
        second.train()
        assert not torch.equal(state(second)["policy.step_size"], state(whole)["policy.step_size"])


class TestData:
    def test_lengths_steps_and_horizons_vary_as_configured(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        _, metrics = run(
            tiny(
                num_epochs=18, min_support_steps=4, max_support_steps=6, adaptation_steps=3,
                horizon=7, full_horizon_every=3,
            )
        )  # fmt: skip
        assert {m.support_steps for m in metrics} == {4, 5, 6}
        assert {m.inner_steps for m in metrics} == {1, 2, 3}
        assert [m.horizon for m in metrics] == [7, 7, 500] * 6
        support, query = watch.rollouts[::2], watch.rollouts[1::2]
        assert [r.num_steps for r in support] == [m.support_steps for m in metrics]
        assert all(r.mask.all() and r.num_envs == 1 for r in support)
        for m, r in zip(metrics, query, strict=True):
            lengths = r.mask.sum(dim=0)
            assert lengths.max() == 7 if m.horizon == 7 else lengths.max() > 7
            assert (r.reset.sum(dim=0) == 1).all()
            assert m.average_return == pytest.approx(lengths.double().mean().item())

    def test_a_fixed_length_and_horizon(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        fixed = {"min_support_steps": 6, "max_support_steps": 6, "adaptation_steps": 1}
        _, metrics = run(tiny(**fixed, full_horizon_every=0))
        assert {(m.support_steps, m.inner_steps, m.horizon) for m in metrics} == {(6, 1, 8)}
        assert [r.num_envs for r in watch.rollouts] == [1, 2] * 6

    def test_env_steps_counts_what_was_taken(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        trainer = MetaTrainer(tiny(full_horizon_every=2, max_support_steps=30))
        for _ in range(4):
            metrics = trainer.run_epoch()
            assert metrics.env_steps == trainer.env_steps == watch.steps_taken > 0

    @pytest.mark.parametrize("support_policy", ["random", "policy"])
    def test_who_collects_the_support_data(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, support_policy: str
    ) -> None:
        watch = Watch(monkeypatch)
        trainer = MetaTrainer(tiny(support_policy=support_policy))
        policy = trainer.policy
        with torch.no_grad():  # off its nearly uniform start
            policy.heads.action.bias += torch.tensor([0.0, 1.0])  # type: ignore[operator, union-attr]
        params = {n: p.detach().clone() for n, p in policy.meta_params().items()}
        trainer.run_epoch()
        support = watch.rollouts[0]
        if support_policy == "random":
            even = torch.full_like(support.log_prob, -math.log(2))
            torch.testing.assert_close(support.log_prob, even)
        else:
            assert_only_rounded(support.log_prob, log_probs, policy, params, support)

    def test_query_episodes_are_the_adapted_policies(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        trainer = MetaTrainer(tiny(inner_lr=0.3, adaptation_steps=1))
        policy = trainer.policy
        config = StandardAdaptationConfig(gamma=trainer.config.gamma, rollback=False)
        before = {n: v.clone() for n, v in policy.state_dict().items()}
        trainer.run_epoch()
        policy.load_state_dict(before)
        support, query = watch.rollouts
        adapted, _ = StandardAdapter(config).adapt_tasks(policy, support)
        taken = torch.where(query.mask, query.log_prob, 0)
        assert_only_rounded(taken, log_probs, policy, dict(adapted), query)
        assert not torch.allclose(log_probs(policy, policy.meta_params(), query), taken)

    def test_only_query_episodes_are_pushed(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        run(tiny(num_epochs=2, push_probability=0.2, spread_starts=0.7))
        assert [o.get("push_probability", 0) for o in watch.options] == [0, 0.2] * 2
        assert [o.get("spread_starts", 0) for o in watch.options] == [0, 0.7] * 2

    def test_training_tasks_are_new_in_every_epoch_and_never_test_tasks(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        run(tiny(tasks_per_epoch=10, seed=3))
        assert all(a.indices == b.indices for a, b in zip(*[iter(watch.tasks)] * 2, strict=True))
        support = watch.tasks[::2]
        trained = {tuple(t.items()) for tasks in support for t in tasks.as_dicts()}
        assert len(trained) == 60
        for split in ("id", "ood"):
            for seed in (0, 3, 10_000):
                held_out = CARTPOLE.sample(split, 200, seed=seed)  # type: ignore[arg-type]
                assert not trained & {tuple(t.items()) for t in held_out.as_dicts()}
        in_range = {p.name: p.id for p in CARTPOLE.parameters}
        for name, value in (pair for task in trained for pair in task):
            allowed = in_range[name]
            assert (
                allowed.low <= value <= allowed.high
                if isinstance(allowed, Uniform)
                else value in allowed.values
            )

    def test_the_buffer_fills_with_support_data_up_to_its_size(self, tiny: MakeConfig) -> None:
        trainer, metrics = run(tiny(num_epochs=8, buffer_size=60))
        sizes = [m.buffer_size for m in metrics]
        assert sizes[0] == 3 * metrics[0].support_steps
        assert sizes[1] == 3 * (metrics[0].support_steps + metrics[1].support_steps)
        assert 40 < sizes[-1] <= 60
        assert set(trainer.buffer.task_ids) <= set(range(24))
        assert 23 in trainer.buffer.task_ids and 0 not in trainer.buffer.task_ids


class TestLimits:
    def test_epochs(self, tiny: MakeConfig) -> None:
        trainer, metrics = run(tiny(num_epochs=4))
        assert [m.epoch for m in metrics] == [1, 2, 3, 4]
        assert trainer.progress == 1

    def test_environment_steps(self, tiny: MakeConfig) -> None:
        trainer, metrics = run(tiny(num_epochs=None, max_env_steps=200))
        assert metrics[-2].env_steps < 200 <= metrics[-1].env_steps
        assert trainer.progress == 1

    def test_the_nearer_limit_counts(self, tiny: MakeConfig) -> None:
        trainer = MetaTrainer(tiny(num_epochs=4, max_env_steps=10**6))
        trainer.run_epoch()
        assert trainer.progress == 0.25
        trainer.env_steps = 500_000
        assert trainer.progress == 0.5

    def test_recent_return_is_an_average_of_about_ten_epochs(self, tiny: MakeConfig) -> None:
        _, metrics = run(tiny(num_epochs=14, full_horizon_every=2))
        first = [m.average_return for m in metrics[:10]]
        assert metrics[0].recent_return == first[0]
        assert metrics[9].recent_return == pytest.approx(sum(first) / 10)
        expected = 0.9 * metrics[9].recent_return + 0.1 * metrics[10].average_return
        assert metrics[10].recent_return == pytest.approx(expected)


class TestDivergence:
    @pytest.mark.parametrize("where", ["obs", "reward"])
    def test_a_nan_from_the_worlds_stops_training_and_changes_nothing(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        trainer = MetaTrainer(tiny())
        trainer.run_epoch()
        before, counters = state(trainer), trainer.counters()

        def spoiled(*args: Any, **kwargs: Any) -> Rollout:
            rollout = collect_rollout(*args, **kwargs)
            getattr(rollout, where)[1] = torch.nan
            return rollout

        monkeypatch.setattr(training_data, "collect_rollout", spoiled)
        with pytest.raises(TrainingDiverged):
            trainer.run_epoch()
        assert equal(state(trainer), before)
        assert trainer.counters() == counters

    def test_weights_that_are_none_stop_it_too(self, tiny: MakeConfig) -> None:
        trainer = MetaTrainer(tiny(adaptation_mode="hybrid"))
        trainer.run_epoch()
        with torch.no_grad():
            next(iter(trainer.policy.core.parameters())).fill_(torch.nan)
        with pytest.raises(TrainingDiverged):
            trainer.run_epoch()


class TestWithoutInnerSteps:
    def test_one_policy_plays_all_tasks(
        self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Watch(monkeypatch)
        trainer = MetaTrainer(tiny(adaptation_steps=0))
        before = state(trainer)
        metrics = trainer.run_epoch()
        after = state(trainer)
        assert (metrics.inner_steps, metrics.left_out) == (0, 0)
        assert torch.equal(before["policy.step_size"], after["policy.step_size"])
        trainer.policy.load_state_dict(
            {n[7:]: v for n, v in before.items() if n.startswith("policy.")}
        )
        policy, (_, query) = trainer.policy, watch.rollouts
        taken = torch.where(query.mask, query.log_prob, 0)
        assert_only_rounded(taken, log_probs, policy, policy.meta_params(), query)

    @pytest.mark.parametrize("weight", [0.0, 0.1])
    def test_inner_loss_coef_trains_the_prediction(self, tiny: MakeConfig, weight: float) -> None:
        trainer = MetaTrainer(tiny(adaptation_steps=0, inner_loss_coef=weight))
        before = state(trainer)
        trainer.run_epoch()
        after = state(trainer)
        head = "policy.heads.prediction.weight"
        assert torch.equal(before[head], after[head]) == (weight == 0)
        assert not torch.equal(
            before["policy.heads.action.weight"], after["policy.heads.action.weight"]
        )

    def test_without_memory(self, tiny: MakeConfig) -> None:
        trainer, metrics = run(tiny(adaptation_steps=0, memory=False, num_epochs=2))
        assert not trainer.policy.memory
        assert all(math.isfinite(v) for m in metrics for v in asdict(m).values())
        remembering, _ = run(tiny(adaptation_steps=0, num_epochs=2))
        assert not equal(state(trainer), state(remembering))


class TestFamilies:
    def test_a_gymnasium_family_with_continuous_actions(self, tiny: MakeConfig) -> None:
        family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15, unit="m/s²")})
        trainer = MetaTrainer(tiny(tasks_per_epoch=2, episodes_per_task=1), family)
        before = state(trainer)
        metrics = trainer.run_epoch()
        assert metrics.env_steps == 2 * metrics.support_steps + 2 * 8
        assert metrics.average_return < 0
        changed = {n for n, v in state(trainer).items() if n in before and (v != before[n]).any()}
        assert {"policy.heads.log_std", "policy.heads.action.weight"} <= changed
        assert trainer.buffer.tensors()["action"].shape == (len(trainer.buffer), 1)

    def test_an_unknown_family_is_refused(self, tiny: MakeConfig) -> None:
        with pytest.raises(ValueError, match=r"task family: expected one of cartpole"):
            MetaTrainer(tiny(family="tightrope"))


@pytest.mark.slow
def test_meta_training_learns_to_adapt_to_held_out_tasks() -> None:
    """After 700,000 environment steps: support data of 20 steps, whole greedy episodes."""
    trainer = MetaTrainer(MetaTrainingConfig(max_env_steps=700_000, seed=0))
    policy = trainer.train()
    tasks = CARTPOLE.sample("id", 60, seed=1)
    worlds = make_worlds(tasks, 1, seed=1, purpose="test-support")
    actor = random_actor(worlds, TaskNoise(1, "test-action", tasks.indices), 20)
    support = collect_rollout(worlds, actor, 20, autoreset=True)
    adapted, _ = StandardAdapter().adapt_tasks(policy, support)
    returns = {}
    for name, params in {"frozen": policy.meta_params(), "adapted": adapted}.items():
        worlds = make_worlds(tasks, 2, seed=1, purpose="test-query")
        rollout = collect_rollout(worlds, policy.actor(params, 60, 2), 500)
        returns[name] = rollout.episode_returns().mean(dim=1)
    # before its step it plays one direction of the actuator (without inner steps it learns both)
    by_sign = [returns["frozen"][tasks.values["sign"] == sign].mean() for sign in (-1, 1)]
    assert min(by_sign) < 50
    assert returns["adapted"].mean() > returns["frozen"].mean() + 150
    for sign in (-1, 1):
        assert returns["adapted"][tasks.values["sign"] == sign].mean() > 400


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
def test_plain_operations_train_the_same(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, core: Any
) -> None:
    """What runs on other devices, against the compiled kernels."""

    def told(nudge: int | None = None) -> dict[str, Tensor]:
        """What two epochs report, with the last bits of the first weights as they are or not."""
        trainer, metrics = MetaTrainer(tiny(core=core, num_epochs=2)), []
        if nudge is not None:
            rng = torch.Generator().manual_seed(nudge)
            for p in trainer.policy.meta_params().values():
                p.data = nudged(p.data, rng)
        trainer.train(metrics.append)
        numbers = ("env_steps", "meta_loss", "grad_norm")
        return {n: torch.tensor([float(getattr(m, n)) for m in metrics]) for n in numbers}

    compiled = told()
    for module in (policy_module, fused):
        monkeypatch.setattr(module, "can_fuse", lambda *_: False)
    # There is no training in float64: what a changed last bit does to one in float32 must do.
    assert_rounds_alike(compiled, [told(nudge) for nudge in range(3)], double(told()))
    assert torch.equal(compiled["env_steps"], told()["env_steps"])
