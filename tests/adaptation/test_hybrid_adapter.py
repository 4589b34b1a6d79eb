"""What hybrid adaptation adds to the contract of `test_adapters`: replay, and an anchor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ssm_metarl.adaptation.adapter import AdaptedPolicy
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import HybridAdaptationConfig, Objective, StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.types import Rollout

from .arms import UNGUARDED, equal, every_objective, values

MakeSupport = Callable[..., Rollout]


class TestHybrid:
    def adapt(
        self, policy: Policy, support: Rollout, buffer: ExperienceBuffer, **settings: object
    ) -> AdaptedPolicy:
        settings = UNGUARDED | settings
        config = HybridAdaptationConfig(num_adapt_steps=2, **settings)  # type: ignore[arg-type]
        return HybridAdapter(config).adapt(policy, support, buffer)

    @every_objective
    @pytest.mark.parametrize("why", ["empty buffer", "no weight"])
    def test_without_replay_it_is_standard(
        self,
        policy: Policy,
        make_support: MakeSupport,
        buffer: ExperienceBuffer,
        objective: Objective,
        why: str,
    ) -> None:
        support = make_support(1)
        config = StandardAdaptationConfig(num_adapt_steps=2, objective=objective, rollback=False)
        standard = StandardAdapter(config).adapt(policy, support)
        if why == "no weight":
            hybrid = self.adapt(policy, support, buffer, objective=objective, experience_weight=0)
        else:
            hybrid = self.adapt(policy, support, ExperienceBuffer(), objective=objective)
        assert equal(values(hybrid), values(standard))
        assert hybrid.report == standard.report

    @every_objective
    def test_replay_counts_and_the_buffer_is_only_read(
        self,
        policy: Policy,
        make_support: MakeSupport,
        buffer: ExperienceBuffer,
        objective: Objective,
    ) -> None:
        support, held = make_support(1), buffer.tensors()
        adapted = {
            weight: values(
                self.adapt(policy, support, buffer, objective=objective, experience_weight=weight)
            )
            for weight in (0.0, 0.5, 2.0)
        }
        assert not equal(adapted[0.0], adapted[0.5])
        assert not equal(adapted[0.5], adapted[2.0])
        assert equal(buffer.tensors(), held)

    def test_the_seed_chooses_the_sequences(
        self, policy: Policy, make_support: MakeSupport, buffer: ExperienceBuffer
    ) -> None:
        support = make_support(1)
        one, same, other = (
            values(self.adapt(policy, support, buffer, num_replay_sequences=3, seed=seed))
            for seed in (0, 0, 1)
        )
        assert equal(one, same)
        assert not equal(one, other)

    @every_objective
    @pytest.mark.parametrize("adapt_lr", [None, 0.01])
    def test_the_anchor_counts_from_the_second_step_on(
        self,
        policy: Policy,
        make_support: MakeSupport,
        buffer: ExperienceBuffer,
        objective: Objective,
        adapt_lr: float | None,
    ) -> None:
        def distance(weight: float, steps: int) -> float:
            config = HybridAdaptationConfig(
                objective=objective, adapt_lr=adapt_lr, num_adapt_steps=steps,
                proximal_weight=weight, rollback=False,
            )  # fmt: skip
            adapted = HybridAdapter(config).adapt(policy, make_support(1), buffer).meta_params()
            moved = [(adapted[n] - p).detach().flatten() for n, p in policy.meta_params().items()]
            return float(torch.cat(moved).norm())

        assert distance(1.0, 1) == distance(0.0, 1)
        assert distance(0.2, 3) < distance(0.1, 3) < distance(0.0, 3)

    @every_objective
    def test_uniform_replay_is_another_thing_and_says_that_it_trusts(
        self,
        policy: Policy,
        make_support: MakeSupport,
        buffer: ExperienceBuffer,
        objective: Objective,
    ) -> None:
        by_fit, alike = (
            self.adapt(policy, make_support(1), buffer, objective=objective, replay=replay)
            for replay in ("propensity", "uniform")
        )
        assert not equal(values(by_fit), values(alike))
        assert by_fit.report.replay_trust is not None and by_fit.report.replay_trust < 0.9
        assert alike.report.replay_trust == 1

    def test_experience_grows_where_one_adds_to_it(
        self, policy: Policy, make_support: MakeSupport, buffer: ExperienceBuffer
    ) -> None:
        support, held = make_support(1, 40, seed=3), len(buffer)
        settings = {"num_replay_sequences": 1000, "replay": "uniform"}
        before = self.adapt(policy, support, buffer, **settings)
        buffer.add(support, [buffer.next_task_id])
        assert len(buffer) == held + 40 and buffer.task_ids[-1] == 8
        assert not equal(values(before), values(self.adapt(policy, support, buffer, **settings)))

    def test_experience_of_other_observations_or_actions_is_refused(
        self, policy: Policy, make_support: MakeSupport
    ) -> None:
        support = make_support(1)
        for changes, message in (
            (
                {"obs": support.obs[..., :3], "next_obs": support.next_obs[..., :3]},
                r"experience buffer: expected observations of size 4, received 3$",
            ),
            (
                {"action": support.action + 1},
                r"experience buffer: expected actions of Discrete\(n=2\), received whole numbers "
                r"from 1 to 2$",
            ),
            (
                {"action": -support.action},
                r"expected actions of Discrete\(n=2\), received whole numbers from -1 to 0$",
            ),
            (
                {"action": support.action[..., None].float()},
                r"expected actions of Discrete\(n=2\), received numbers of shape \(1,\)$",
            ),
        ):
            other = ExperienceBuffer()
            other.add(replace(support, **changes), [0])
            with pytest.raises(ValueError, match=message):
                self.adapt(policy, support, other)

    def test_a_plants_log_in_the_experience_serves_prediction_only(
        self, policy: Policy, make_support: MakeSupport, buffer: ExperienceBuffer
    ) -> None:
        """It does not tell how likely its actions were."""
        support = make_support(1)
        buffer.add(replace(support, log_prob=torch.full_like(support.log_prob, torch.nan)), [9])
        adapted = self.adapt(policy, support, buffer)
        assert all(torch.isfinite(v).all() for v in values(adapted).values())
        with pytest.raises(ValueError, match=r"'policy_gradient', received steps of a plant's log"):
            self.adapt(policy, support, buffer, objective="policy_gradient")
