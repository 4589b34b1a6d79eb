"""Tab 2, the live view: it runs, it is disturbed, it recovers or fails."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.app.handlers import live
from ssm_metarl.app.handlers.live import PIECE_STEPS, LiveRun, Piece
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.tasks.cartpole import CARTPOLE, THETA_LIMIT
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily


def run(adapting: bool, sign: float = -1.0) -> LiveRun:
    return LiveRun(load_pretrained("cartpole"), CARTPOLE.task({"sign": sign}), adapting, seed=0)


def kinds(*pieces: Piece) -> list[str]:
    return [event.kind for piece in pieces for event in piece.events]


def test_pieces_follow_one_another() -> None:
    plant = run(adapting=False)
    first, second = plant.advance(), plant.advance()
    assert (first.start, second.start) == (0, PIECE_STEPS)
    assert len(first.states) == len(second.states) == PIECE_STEPS
    assert first.run == second.run and kinds(first, second) == ["begin"]
    assert all(abs(theta) < THETA_LIMIT for _, _, theta, _ in first.states)
    assert not any(first.resting)
    x, _, theta, _ = first.states[-1]
    after_x, _, after_theta, _ = second.states[0]
    assert abs(x - after_x) < 0.1 and abs(theta - after_theta) < 0.1


def test_one_that_never_adapts_falls_after_a_flip_again_and_again() -> None:
    plant = run(adapting=False)
    plant.advance()
    pieces = [plant.disturb(60), plant.advance(), plant.advance()]
    assert kinds(*pieces)[0] == "disturbed" and kinds(*pieces).count("ended") >= 2
    assert any(pieces[1].resting)


@pytest.mark.parametrize("model", ["cartpole", "cartpole_hybrid_real_model"])
def test_one_that_adapts_notices_the_flip_and_does_not_fall(model: str) -> None:
    plant = LiveRun(load_pretrained(model), CARTPOLE.task(), adapting=True, seed=0)
    before = [plant.advance(), plant.advance()]
    after = [plant.disturb(150), plant.advance(), plant.advance()]
    assert "settled" in kinds(*before), "it begins by adapting"
    assert kinds(*after)[:2] == ["disturbed", "changed"] and "ended" not in kinds(*before, *after)
    noticed = next(e.step for piece in after for e in piece.events if e.kind == "changed")
    assert 0 < noticed - 150 <= 3, "within two transitions"


def test_a_flip_takes_back_what_was_not_shown_yet() -> None:
    plant, same = run(adapting=True), run(adapting=True)
    pieces = [plant.advance(), plant.advance()]
    piece = plant.disturb(130)
    assert piece.start == 130 and plant.steps == 130 + live.DISTURBED_STEPS
    assert piece.states[0] == pieces[1].states[30], "the plant goes on from where it was"
    assert piece.states[1:4] != pieces[1].states[31:34]
    same.advance(130)
    assert same.disturb(130).states == piece.states, "and as if it had never gone on"


@pytest.mark.parametrize("at", [-5, 10**9])
def test_a_flip_at_an_impossible_step_takes_the_nearest(at: int) -> None:
    plant = run(adapting=False)
    plant.advance(40)
    assert plant.disturb(at).start == (0 if at < 0 else 40)


def test_two_flips_are_none() -> None:
    twice, never = run(adapting=False), run(adapting=False)
    twice.advance(50)
    twice.disturb(50)
    piece = twice.disturb(50)
    never.advance(50)
    assert piece.states == never.advance(live.DISTURBED_STEPS).states


def test_a_live_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_STEPS", 120)
    plant = run(adapting=False)
    assert [len(plant.advance().states) for _ in range(3)] == [100, 20, 0]


def test_another_family_has_no_live_view() -> None:
    pendulum = TaskFamily.from_gymnasium("Pendulum-v1", {})
    with pytest.raises(
        ValueError, match="live: expected a family with batched physics and a sketch"
    ):
        LiveRun(load_pretrained("cartpole"), pendulum.task(), adapting=False, seed=0)


def test_a_pendulum_runs_on_and_is_disturbed(server: Server, swinging: Visitor) -> None:
    policy = server.models.of(swinging).policy
    plant = LiveRun(policy, PENDULUM.task({"length": 0.7}), adapting=True, seed=0)
    first = live.as_json(plant.advance())
    assert first["sketch"]["step_seconds"] == 0.05 and not any(first["ended"])
    for _ in range(2):
        assert len(plant.advance().states) == PIECE_STEPS, "no episode ends"
    piece = plant.disturb(250)
    assert piece.tasks.as_dicts()[0]["sign"] == -1.0
    assert piece.events[0].text == "the plant was disturbed: flip"
    sent = live.as_json(piece)
    assert (sent["from"], len(sent["frames"]), sent["end_is_failure"]) == (250, 50, True)
    for (theta, _), (look, *numbers) in zip(piece.states, sent["frames"], strict=True):
        tip = [-0.7 * math.sin(theta), 0.7 * math.cos(theta)]
        assert look == 0 and numbers == pytest.approx([0, 0, *tip, 0, 0], abs=6e-4)
    assert live.idle(PENDULUM)["frames"] == [[0, 0, 0, 0, 1, 0, 0]], "upright before it begins"


def test_a_plant_without_a_disturbance_runs_but_is_not_disturbed() -> None:
    calm = replace(CARTPOLE, disturbances={}, end_is_failure=False)
    plant = LiveRun(load_pretrained("cartpole"), calm.task({"sign": 1.0}), False, seed=0)
    pieces = [plant.advance() for _ in range(3)]
    assert "ended" in kinds(*pieces)
    told = [e.text for piece in pieces for e in piece.events if e.kind == "ended"]
    assert set(told) == {"it reached an end"}
    with pytest.raises(ValueError, match="live: expected a family with a disturbance"):
        plant.disturb(10)
    assert live.idle(calm)["disturbance"] == "" and live.idle(replace(calm, sketch=None)) == {}


def test_the_policy_stays_untouched() -> None:
    plant = run(adapting=True)
    before = {n: v.clone() for n, v in plant.policy.state_dict().items()}
    plant.advance()
    plant.disturb(50)
    assert all((v == before[n]).all() for n, v in plant.policy.state_dict().items())


@pytest.fixture(scope="module")
def remembering() -> Policy:
    """Untrained."""
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    return build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.01)


def test_a_model_that_remembers_is_told_its_rewards_and_notices_a_flip(
    remembering: Policy,
) -> None:
    online = OnlineAdaptationConfig(num_adapt_steps=0)
    plant = LiveRun(remembering, CARTPOLE.task(), True, 0, online)
    before = plant.advance()
    after = [plant.disturb(80), plant.advance()]
    assert "changed" not in kinds(before) and "changed" in kinds(*after)
    adapter = plant._plant.adapter
    assert adapter is not None and adapter.num_adaptations.tolist() == [0]
    assert adapter._history[-1].reward.tolist() == [[1.0]]


def test_one_that_remembers_and_is_left_alone_never_begins_a_new_trial(
    remembering: Policy,
) -> None:
    plant = LiveRun(remembering, CARTPOLE.task(), False, 0)
    first = plant.advance()
    pieces = [plant.disturb(80), plant.advance(), plant.advance()]
    assert set(kinds(first, *pieces)) == {"begin", "ended", "disturbed"}
    assert "never forgets" in first.events[0].text
    actor = plant._plant.actor
    assert isinstance(actor, OnlineAdapter)
    assert {event.kind for event in actor.events} == {"settled"}
