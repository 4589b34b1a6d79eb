"""A sensor that gives no number: every actor goes on with the last one that it gave."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.compiled import plain_operations
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.acting import PlainActor
from ssm_metarl.core.compiled_actor import CompiledActor
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.trial_memory import TrialMemory
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import SizedActor

NAN, INF = math.nan, math.inf
SCALE = (0.4, 0.5, 5.0, 0.5)
KINDS = ("fused", "fused mirrored", "fused state_space", "memoryless", "plain", "in context",
         "in context plain")  # fmt: skip


def make_actor(kind: str, num_tasks: int = 1, **more: object) -> SizedActor:
    settings: dict[str, object] = {"obs_scale": SCALE, "num_actions": 2, "state_dim": 5}
    settings |= {"hidden_dim": 6, **more}
    settings["mirror"] = "mirrored" in kind
    settings["memory"] = kind != "memoryless"
    settings["in_context"] = "in context" in kind
    if "state_space" in kind:
        settings |= {"core": "state_space", "predicted_dims": (1, 3)}
    policy = build_policy(PolicyConfig(**settings), seed=0, inner_lr=0.1)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in policy.meta_params().values():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    if kind == "plain":
        with plain_operations():
            actor = policy.actor(policy.meta_params(), num_tasks, 1)
        assert isinstance(actor, PlainActor)
        return actor
    actor = policy.actor(policy.meta_params(), num_tasks, 1)
    assert isinstance(actor, CompiledActor)
    return actor


def hidden_of(actor: SizedActor) -> Tensor:
    run = getattr(actor, "_run", None)
    return actor.state.hidden if run is None else torch.from_numpy(run.hidden)  # type: ignore[attr-defined]


@pytest.fixture
def plainly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.callspec.params["kind"] == "in context plain":
        monkeypatch.setattr(TrialMemory, "observe", TrialMemory.observe_plainly)


def observations(steps: int = 6) -> Tensor:
    return 0.1 * torch.randn(steps, 1, 1, 4, generator=torch.Generator().manual_seed(1))


def run(actor: SizedActor, seen: Tensor, starts: tuple[int, ...] = (0,)) -> list[Tensor]:
    found = []
    for t, obs in enumerate(seen):
        _, log_prob = actor(obs, torch.tensor([[t in starts]]))
        assert hidden_of(actor).isfinite().all() and log_prob.isfinite().all()
        found.append(log_prob)
    return found


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_number_is_the_last_good_one_of_its_sensor(kind: str, bad: float) -> None:
    seen = observations()
    held, broken = seen.clone(), seen.clone()
    broken[3, ..., 2] = bad
    held[3, ..., 2] = seen[2, ..., 2]
    actor, other = make_actor(kind), make_actor(kind)
    assert actor.bad_readings.tolist() == [[0]]
    received, expected = run(actor, broken), run(other, held)
    last = 3 if "in context" in kind else 6  # least squares leaves the held steps out
    for t in range(last):
        torch.testing.assert_close(received[t], expected[t], rtol=0, atol=1e-6, msg=f"step {t}")
    assert actor.bad_readings.tolist() == [[1]] and other.bad_readings.tolist() == [[0]]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("kind", KINDS)
def test_before_a_good_one_it_is_the_middle_and_no_episode_lends_another(kind: str) -> None:
    seen = observations()
    held, broken = seen.clone(), seen.clone()
    for t in (0, 3):
        broken[t, ..., 1:3] = NAN
        held[t, ..., 1:3] = 0.0
    actor = make_actor(kind)
    received, expected = run(actor, broken, (0, 3)), run(make_actor(kind), held, (0, 3))
    for t in (0, *(() if "in context" in kind else (1, 2, 3, 4, 5))):
        torch.testing.assert_close(received[t], expected[t], rtol=0, atol=1e-6, msg=f"step {t}")
    assert actor.bad_readings.tolist() == [[2]]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("kind", KINDS)
def test_a_sensor_that_is_dead_from_the_start_leaves_the_others(kind: str) -> None:
    seen = observations(40)
    seen[..., 3] = NAN
    actor = make_actor(kind)
    log_probs = torch.stack(run(actor, seen))
    assert actor.bad_readings.tolist() == [[40]]
    assert len(log_probs.unique()) > 20, "it still sees the other three"


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("kind", KINDS)
def test_other_environments_do_not_feel_it(kind: str) -> None:
    seen = observations()
    both = seen.expand(-1, 2, -1, -1).clone()
    both[2, 0] = NAN
    actor, alone = make_actor(kind, 2), make_actor(kind)
    for t, obs in enumerate(both):
        first = torch.tensor([[t == 0]])
        _, log_prob = actor(obs, first.expand(2, 1))
        _, expected = alone(seen[t], first)
        torch.testing.assert_close(log_prob[1:], expected, rtol=0, atol=1e-6)
    assert actor.bad_readings.tolist() == [[1], [0]]


def test_an_infinity_that_the_policy_clips_is_no_bad_reading() -> None:
    seen, clipped = observations(), observations()
    seen[2, ..., 0], clipped[2, ..., 0] = INF, 1.0
    for kind in ("fused", "plain"):
        actor, other = (make_actor(kind, obs_limit=(1.0,) * 4) for _ in range(2))
        assert torch.equal(torch.stack(run(actor, seen)), torch.stack(run(other, clipped)))
        assert actor.bad_readings.tolist() == [[0]]


def test_a_caller_may_use_its_tensor_again() -> None:
    """What is held is a copy: the tensor that the caller fills anew is not the last reading."""
    actor, other, obs = make_actor("plain"), make_actor("plain"), observations()[0].clone()
    first, later = torch.tensor([[True]]), torch.tensor([[False]])
    before = obs.clone()
    actor(obs, first)
    other(before, first)
    obs.fill_(NAN)
    torch.testing.assert_close(actor(obs, later)[1], other(before, later)[1])


@pytest.mark.parametrize("kind", ["in context", "in context plain"])
@pytest.mark.parametrize("bad", [NAN, INF, 1e30])
@pytest.mark.usefixtures("plainly")
def test_least_squares_takes_no_step_to_or_from_a_bad_reading(kind: str, bad: float) -> None:
    """A plant that stands still but for the action: known exactly, before and after."""
    actor = make_actor(kind)
    memory = actor._memory  # type: ignore[attr-defined]
    pull = torch.tensor([0.01, 0.02, 0.03, 0.04])
    obs = torch.zeros(1, 1, 4)
    rng = torch.Generator().manual_seed(0)
    for t in range(40):
        seen = obs.clone()
        if t == 30:
            seen[..., 1] = bad
        memory.observe(seen[:, 0], torch.tensor([t == 0]))
        action = torch.randint(2, (1,), generator=rng)
        memory.acted(action)
        obs = 0.9 * obs + (2.0 * action - 1) * pull
        error, size = memory.surprise(obs[:, 0])
        if t > 15 and t not in (29, 30):
            assert error < 2e-3 * size, f"step {t}"
    assert memory._plant.gram.isfinite().all() and actor.bad_readings.tolist() == [[1]]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("kind", ["in context", "in context plain"])
def test_a_reward_that_is_no_number_is_the_last_one(kind: str) -> None:
    seen = observations()
    rewards = [0.5, NAN, INF, 0.25, -INF, 1.0]
    told = [0.5, 0.5, 0.5, 0.25, 0.25, 1.0]
    actor, other = make_actor(kind), make_actor(kind)
    for t, obs in enumerate(seen):
        first = torch.tensor([[t == 0]])
        assert torch.equal(actor(obs, first)[1], other(obs, first)[1])
        actor.rewarded(torch.tensor([[rewards[t]]]))  # type: ignore[attr-defined]
        other.rewarded(torch.tensor([[told[t]]]))  # type: ignore[attr-defined]


def adapted(name: str) -> Policy:
    policy, tasks = load_pretrained(name), CARTPOLE.task({"sign": -1})
    worlds = make_worlds(tasks, 1, seed=0, purpose="support")
    actor = random_actor(worlds, TaskNoise(0, "support-action", tasks.indices), 20)
    return StandardAdapter().adapt(policy, collect_rollout(worlds, actor, 20, autoreset=True))


@pytest.mark.parametrize("name", ["cartpole", "cartpole_hybrid_real_model"])
@pytest.mark.parametrize(
    ("when", "stays_up"),
    [
        (lambda t: t == 100, True),
        (lambda t: t in (100, 101, 102), True),
        (lambda t: t == 0, True),
        (lambda t: True, False),
    ],
    ids=["once", "three in a row", "the first one", "for ever"],
)
def test_the_pole_stays_up(name: str, when: Callable[[int], bool], stays_up: bool) -> None:
    policy = adapted(name)
    actor = policy.actor(policy.meta_params(), 1, 1)
    env = Environment("cartpole", task={"sign": -1})
    obs, _ = env.reset(seed=1)
    steps, ended = 0, False
    while not ended:
        seen = torch.tensor(obs)[None, None].clone()
        if when(steps):
            seen[..., 2] = NAN
        action, _ = actor(seen, torch.tensor([[steps == 0]]))
        assert hidden_of(actor).isfinite().all()
        obs, _, fell, cut, _ = env.step(int(action))
        steps, ended = steps + 1, fell or cut
    assert int(actor.bad_readings) == sum(when(t) for t in range(steps))
    if stays_up:
        assert steps == 500
