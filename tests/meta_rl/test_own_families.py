"""Families of one's own: any units, closed environments, trainings that know what they are on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import FINGERPRINT, load_checkpoint, load_pretrained, save_checkpoint
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig, PolicyConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import build_policy
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.observation_scale import measured_scale
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.evaluation.calibration import calibrate
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.evaluation.meta_evaluator import evaluate, verify
from ssm_metarl.evaluation.opened_model import open_experience, open_model
from ssm_metarl.meta_rl import training_run
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.meta_rl.single_task import train_single_task
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.meta_rl.training_run import LOG_NAME, TrainingRun
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.recursive_self_improvement.generation_zero import generation_zero
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily, Uniform

MakeConfig = Callable[..., MetaTrainingConfig]


class Trolley(gymnasium.Env):
    """Pushed along a line: ``thrust`` times an action in [-1, 1], whatever its bounds."""

    opened = 0

    def __init__(self, low: Any = -1.0, high: Any = 1.0, unit: float = 1.0, width: int = 2) -> None:
        self.thrust, self.unit, self.width = 1.0, unit, width
        low, high = np.array(low, np.float32).reshape(-1), np.array(high, np.float32).reshape(-1)
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        Trolley.opened += 1

    def _observation(self) -> np.ndarray:
        seen = np.resize([self.place, self.speed], self.width) * self.unit
        return seen.astype(np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        low, high = (x.astype(float) for x in (self.action_space.low, self.action_space.high))
        push = float((2 * (action - low) / (high - low) - 1).mean())
        self.speed += 0.1 * self.thrust * push
        self.place += 0.1 * self.speed
        return self._observation(), -(self.place**2) - 0.1 * self.speed**2, False, False, {}

    def close(self) -> None:
        Trolley.opened -= 1


Declare = Callable[..., TaskFamily]


@pytest.fixture
def declare() -> Iterator[Declare]:
    """Registers a trolley and declares a family of it; ids are given back."""
    ids: list[str] = []
    Trolley.opened = 0

    def make(name: str | None = None, **kwargs: Any) -> TaskFamily:
        ids.append(f"SsmMetarlTrolley{len(ids)}-v0")
        gymnasium.register(ids[-1], entry_point=Trolley, max_episode_steps=20, kwargs=kwargs)
        return TaskFamily.from_gymnasium(ids[-1], {"thrust": Uniform(0.5, 2)}, name=name)

    yield make
    for env_id in ids:
        del gymnasium.registry[env_id]


def returns(family: TaskFamily, config: MetaTrainingConfig) -> list[float]:
    received: list[float] = []
    MetaTrainer(config, family).train(lambda metrics: received.append(metrics.average_return))
    return received


@pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
def test_an_actuator_in_other_units_is_learnt_alike(
    declare: Declare, tiny: MakeConfig, objective: str
) -> None:
    config = tiny(objective=objective, horizon=15)
    plain = returns(declare(), config)
    for low, high in ((-1000.0, 1000.0), (0.0, 10.0), (-0.01, 0.01)):
        assert returns(declare(low=low, high=high), config) == pytest.approx(plain, rel=1e-3)
    assert len(set(plain)) == len(plain)


def test_and_so_are_bounds_that_differ_between_dimensions(
    declare: Declare, tiny: MakeConfig
) -> None:
    one = returns(declare(low=[-1, -1], high=[1, 1]), tiny())
    other = declare(low=[0, -50], high=[1, 200])
    assert returns(other, tiny()) == pytest.approx(one, rel=1e-3)
    config = architecture(tiny(), other)
    assert (config.action_low, config.action_high) == ((0.0, -50.0), (1.0, 200.0))
    assert PolicyConfig.from_dict(json.loads(json.dumps(vars(config)))) == config


@pytest.mark.parametrize("objective", ["prediction", "policy_gradient"])
@pytest.mark.parametrize("unit", [1000.0, 0.001])
def test_a_sensor_in_other_units_is_learnt_alike(
    declare: Declare, tiny: MakeConfig, objective: str, unit: float
) -> None:
    config = tiny(objective=objective, horizon=15)
    plain = returns(declare(), config)
    assert returns(declare(unit=unit), config) == pytest.approx(plain, rel=2e-3)


def test_a_scale_is_measured_where_none_is_declared(declare: Declare, tiny: MakeConfig) -> None:
    family = declare(unit=1000.0)
    assert measured_scale(family) == measured_scale(family) == (0.001, 0.001)
    assert measured_scale(declare(unit=0.0)) == (1.0, 1.0)
    config = architecture(tiny(seed=5), family)
    assert (config.obs_scale, config.obs_limit) == ((0.001, 0.001), ())
    told = replace(family, obs_scale=(0.5, 0.25))
    assert architecture(tiny(), told).obs_scale == (0.5, 0.25)
    assert architecture(tiny(), told).obs_limit == (2.0, 4.0)
    given = TaskFamily.from_gymnasium(str(family.gymnasium_id), {}, obs_scale=(0.5, 0.25))
    assert given.obs_scale == (0.5, 0.25)
    with pytest.raises(ValueError, match=r"obs_scale: expected 2 numbers above 0, .* received"):
        TaskFamily.from_gymnasium(str(family.gymnasium_id), {}, obs_scale=(0.5,))
    # weights that go on keep the scale that they were trained with
    old = replace(config, obs_scale=(7.0, 7.0), action_scaled=False)
    assert architecture(tiny(), family, like=old) == old


def test_heads_that_are_not_scaled_speak_the_actions_own_units() -> None:
    sizes = {"state_dim": 3, "hidden_dim": 4, "num_layers": 1, "obs_scale": (1.0, 1.0)}
    box = {"action_dim": 2, "action_low": (0.0, -3.0), "action_high": (10.0, 5.0)}
    old, new = (
        build_policy(PolicyConfig(**sizes, **box, action_scaled=scaled), seed=0, inner_lr=0.1)  # type: ignore[arg-type]
        for scaled in (False, True)
    )
    obs = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    reset = torch.zeros(5, 1, 2, dtype=torch.bool)
    native, scaled = (
        p.unroll(p.meta_params(), obs, p.init_hidden(1, 2), reset)[0].distribution.map(lambda x: x)
        for p in (old, new)
    )
    middle, half = torch.tensor([5.0, 1.0]), torch.tensor([5.0, 4.0])
    torch.testing.assert_close(scaled.mean, middle + half * native.mean)  # type: ignore[attr-defined]
    torch.testing.assert_close(scaled.log_std.exp(), half * native.log_std.exp())  # type: ignore[attr-defined]
    code = torch.tensor([[0.3, -0.4]])
    expected = native.log_prob(code) - half.log().sum()  # a density per unit of the action
    torch.testing.assert_close(scaled.log_prob(middle + half * code), expected)


def test_an_adapted_policy_has_its_own_bounds(declare: Declare, tiny: MakeConfig) -> None:
    """A change of its type leaves those of the policy that was adapted."""
    family = declare(low=-7.0, high=9.0)
    policy = MetaTrainer(tiny(), family).policy
    support = collect_support(policy, family.task(), 9, "random", seed=0)
    adapted = StandardAdapter().adapt(policy, support)
    assert adapted.trained_on == policy.trained_on
    adapted.double()
    heads = policy.heads
    assert isinstance(heads, LinearHeads)
    assert (heads.action_half.dtype, heads.action_half.tolist()) == (torch.float32, [8.0])


def test_wide_observations_train_also_in_context(declare: Declare, tiny: MakeConfig) -> None:
    family = declare(width=400)
    assert len(returns(family, tiny(num_epochs=1, objective="policy_gradient"))) == 1
    assert len(returns(family, tiny(num_epochs=1))) == 1
    config = InContextConfig(
        state_dim=3, hidden_dim=4, num_layers=1, num_epochs=1, tasks_per_epoch=2,
        steps_per_epoch=32, sequence_steps=16, minibatches=2,
    )  # fmt: skip
    trainer = InContextTrainer(config, family)
    metrics = trainer.run_epoch()
    assert math.isfinite(metrics.average_return)
    assert (trainer.policy.input_dim, trainer.policy.obs_dim) == (2 * 400 + 3 + 3, 400)
    with pytest.raises(ValueError, match=r"least squares tell of a change, received one of 400"):
        OnlineAdapter(trainer.policy)


class TestClosing:
    """What was opened is closed, also by those that make one environment or look on."""

    def test_training_and_evaluation(self, declare: Declare, tiny: MakeConfig) -> None:
        family = declare()
        family.verify()
        assert Trolley.opened == 0
        trainer = MetaTrainer(tiny(), family)
        for _ in range(2):
            trainer.run_epoch()
            assert Trolley.opened == 0
        small = EvaluationConfig(num_tasks=2, episodes_per_task=1, support_steps=5)
        evaluate(trainer.policy, family, small, model="trolley")
        verify(trainer.policy, family, MetaTrained())
        calibrate(trainer.policy, family, MetaTrained(), seed=0, num_tasks=4)
        assert Trolley.opened == 0

    def test_the_other_trainings(self, declare: Declare) -> None:
        family = declare()
        sizes = {"state_dim": 3, "hidden_dim": 4, "num_layers": 1}
        config = InContextConfig(
            **sizes, tasks_per_epoch=2, steps_per_epoch=16, sequence_steps=16, minibatches=2
        )  # type: ignore[arg-type]
        InContextTrainer(config, family).run_epoch()
        single = SingleTaskConfig(num_episodes=2, episodes_per_update=2, **sizes)  # type: ignore[arg-type]
        train_single_task(single, family)
        assert Trolley.opened == 0

    def test_what_cannot_be_made_leaves_nothing_open(self, declare: Declare) -> None:
        with pytest.raises(ValueError, match="expected finite bounds"):
            declare(high=np.inf)
        family = declare()
        gymnasium.registry[str(family.gymnasium_id)].max_episode_steps = None
        with pytest.raises(ValueError, match="max_episode_steps"):
            TaskFamily.from_gymnasium(str(family.gymnasium_id), {})
        assert family.horizon == 20  # as it was declared
        assert Trolley.opened == 0


class TestTimeLimit:
    def test_one_without_a_limit_asks_for_it_and_keeps_to_it(
        self, declare: Declare, tiny: MakeConfig
    ) -> None:
        env_id = str(declare().gymnasium_id)
        gymnasium.registry[env_id].max_episode_steps = None
        with pytest.raises(
            ValueError, match=rf"max_episode_steps: .* {env_id}.*received None; pass"
        ):
            TaskFamily.from_gymnasium(env_id, {})
        with pytest.raises(ValueError, match="max_episode_steps: expected at least 1, received 0"):
            TaskFamily.from_gymnasium(env_id, {}, max_episode_steps=0)
        family = TaskFamily.from_gymnasium(env_id, {}, max_episode_steps=7)
        metrics = MetaTrainer(tiny(full_horizon_every=1), family).run_epoch()
        assert metrics.horizon == 7
        # a horizon cuts episodes, and lengthens none: what steps on data may have no more of them
        assert MetaTrainer(tiny(horizon=99), family).run_epoch().horizon == 7
        assert MetaTrainer(tiny(horizon=99), declare()).run_epoch().horizon == 20
        env = Environment(family)
        env.reset()
        ends = [env.step(env.action_space.low)[3] for _ in range(7)]
        assert ends == [False] * 6 + [True]


def log(folder: Path) -> list[float]:
    lines = (folder / LOG_NAME).read_text().splitlines()
    return [json.loads(line)["average_return"] for line in lines]


class TestRecords:
    def train(self, config: Any, family: TaskFamily, out: Path) -> TrainingRun:
        trainer = InContextTrainer if isinstance(config, InContextConfig) else MetaTrainer
        run = TrainingRun(trainer(config, family), out)
        run.train()
        return run

    @pytest.fixture(autouse=True)
    def without_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorBoard takes longer than the training."""
        monkeypatch.setattr(training_run, "_event_writer", lambda *_: None)

    @pytest.mark.parametrize("own", ["gymnasium", "batched"])
    def test_a_training_goes_on_with_its_family_and_with_no_other(
        self, declare: Declare, tiny: MakeConfig, tmp_path: Path, own: str
    ) -> None:
        long = tuple(
            replace(p, id=Uniform(2, 3), ood=Uniform(3.1, 4)) if p.name == "length" else p
            for p in CARTPOLE.parameters
        )
        family = replace(CARTPOLE, name="long_poles", parameters=long)
        if own == "gymnasium":
            family = declare("trolleys")
        config, part = tiny(num_epochs=4), tmp_path / "part"
        self.train(config, family, tmp_path / "whole")
        stopped = TrainingRun(
            MetaTrainer(config, family),
            part,
            on_epoch=lambda metrics, line: metrics.epoch == 2 and stopped.request_stop(),
        )
        stopped.train()
        checkpoint = load_checkpoint(part)
        assert checkpoint.training["family"] == family.name
        assert checkpoint.trained_on == (family.name, fingerprint(family))
        assert checkpoint.experience().family == family.name  # type: ignore[union-attr]
        assert open_experience(part).family == family.name
        before = (part / LOG_NAME).read_text()
        unknown = (
            rf"expected one of cartpole.*received '{family.name}'; "
            r"hand it over: TrainingRun\.resume\(out, family="
        )
        with pytest.raises(ValueError, match=unknown):
            TrainingRun.resume(part)
        first = family.parameters[0]
        wider = replace(first, id=Uniform(0.5, 2.5))
        for other in (CARTPOLE, replace(family, parameters=(wider, *family.parameters[1:]))):
            with pytest.raises(ValueError, match=f"task family: expected '{family.name}'.*as it"):
                TrainingRun.resume(part, family=other)
        assert (part / LOG_NAME).read_text() == before
        run = TrainingRun.resume(part, family=family)
        run.train()
        assert log(part) == log(tmp_path / "whole")
        for name, tensor in load_checkpoint(tmp_path / "whole").tensors.items():
            assert torch.equal(tensor, load_checkpoint(part).tensors[name]), name

    def test_it_is_opened_on_its_family_and_on_no_other_of_the_name(
        self, declare: Declare, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        family = declare("trolleys")
        self.train(tiny(num_epochs=1), family, tmp_path)
        with pytest.raises(ValueError, match=r"hand it over: open_model\(name, family="):
            open_model(str(tmp_path))
        opened = open_model(str(tmp_path), family)
        assert opened.family is family and "hybrid" in opened.modes
        other = replace(family, parameters=())
        config = EvaluationConfig(num_tasks=2, episodes_per_task=1, support_steps=5)
        for refused in (
            lambda: open_model(str(tmp_path), other),
            lambda: evaluate(load_pretrained(tmp_path), other, config, model="x"),
            lambda: generation_zero(str(tmp_path), other),
        ):
            with pytest.raises(ValueError, match=r"task family: expected 'trolleys' as the model"):
                refused()
        # on another name it may be tried, and its experience is not that of it
        renamed = open_model(str(tmp_path), replace(other, name="other"))
        assert renamed.gradient_modes == ("standard",)

    def test_a_family_that_is_called_like_one_of_the_package_is_not_taken_for_it(
        self, tiny: MakeConfig, tmp_path: Path
    ) -> None:
        family = TaskFamily.from_gymnasium("CartPole-v1", {"force_mag": Uniform(5, 15)})
        self.train(tiny(num_epochs=1), family, tmp_path)
        with pytest.raises(ValueError, match=r"expected 'CartPole-v1' as .*'cartpole'.*hand it"):
            open_model(str(tmp_path))
        with pytest.raises(ValueError, match=r"expected 'CartPole-v1'.*received 'cartpole'"):
            TrainingRun.resume(tmp_path)
        assert "hybrid" not in open_model(str(tmp_path), "cartpole").modes

    def test_an_older_file_says_nothing_and_opens(self, tiny: MakeConfig, tmp_path: Path) -> None:
        self.train(tiny(num_epochs=1), CARTPOLE, tmp_path)
        whole = load_checkpoint(tmp_path)
        training = {n: v for n, v in whole.training.items() if n != FINGERPRINT}
        older = replace(whole, training=training | {"family": "CartPole-v1"})
        save_checkpoint(tmp_path / "checkpoint.safetensors", older)
        opened = open_model(str(tmp_path))
        assert (opened.family, opened.policy.trained_on) == (CARTPOLE, None)
        assert "hybrid" in opened.modes
        assert open_experience(tmp_path).family == "cartpole"
        assert TrainingRun.resume(tmp_path, num_epochs=2).trainer.family is CARTPOLE

    def test_a_training_in_context_too(self, declare: Declare, tmp_path: Path) -> None:
        config = InContextConfig(
            state_dim=3, hidden_dim=4, num_layers=1, num_epochs=1, tasks_per_epoch=2,
            steps_per_epoch=16, sequence_steps=16, minibatches=2,
        )  # fmt: skip
        family = declare("trolleys")
        self.train(config, family, tmp_path)
        with pytest.raises(ValueError, match="hand it over"):
            TrainingRun.resume(tmp_path)
        resumed = TrainingRun.resume(tmp_path, family=family, num_epochs=2)
        assert resumed.train().trained_on == ("trolleys", fingerprint(family))


def test_a_fingerprint_is_of_what_is_declared(declare: Declare) -> None:
    family = declare()
    (thrust,) = family.parameters
    same = replace(family, name="other", parameters=(replace(thrust, unit="N", meaning="force"),))
    assert fingerprint(same) == fingerprint(family)
    for other in (
        declare(),  # another id
        replace(family, plant=replace(family.plant, limit=5)),
        *(
            replace(family, parameters=(replace(thrust, **change),))
            for change in (
                {"name": "push"},
                {"default": 2.0},
                {"id": Uniform(0.5, 2, also=((3, 4),))},
                {"ood": Uniform(5, 6)},
            )
        ),
    ):
        assert fingerprint(other) != fingerprint(family)


@pytest.mark.parametrize("name", ["push_probability", "spread_starts"])
def test_what_a_simulator_cannot_do_is_refused_and_its_default_recorded_as_none(
    declare: Declare, tiny: MakeConfig, name: str
) -> None:
    family = declare()
    for trainer, config in ((MetaTrainer, tiny), (InContextTrainer, InContextConfig)):
        with pytest.raises(ValueError, match=rf"^{name}: expected 0 for .* received 0.123$"):
            trainer(config(**{name: 0.123}), family)  # type: ignore[operator]
        assert getattr(trainer(config(), family).config, name) == 0.0  # type: ignore[operator]
        assert getattr(trainer(config(**{name: 0.123})).config, name) == 0.123  # type: ignore[operator]


def test_an_older_record_of_what_did_nothing_goes_on(
    declare: Declare, tiny: MakeConfig, tmp_path: Path
) -> None:
    family = declare("trolleys")
    TrainingRun.start(tiny(), tmp_path, family=family)
    checkpoint = load_checkpoint(tmp_path)
    old = checkpoint.training | {"push_probability": 0.2, "spread_starts": 0.5}
    save_checkpoint(tmp_path / "checkpoint.safetensors", replace(checkpoint, training=old))
    run = TrainingRun.resume(tmp_path, family=family)
    assert (run.trainer.config.push_probability, run.trainer.config.spread_starts) == (0.0, 0.0)
