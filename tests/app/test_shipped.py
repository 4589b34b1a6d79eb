"""Whatever models and families there are: the page knows them, and none by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssm_metarl import checkpoint
from ssm_metarl.app import charts, forms, result_markup
from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.handlers import adapting, live, plants, training
from ssm_metarl.app.handlers.before_after import film
from ssm_metarl.app.handlers.live import LiveRun
from ssm_metarl.app.handlers.models import WITHOUT, facts, log_rows
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.checkpoint import FILE_NAME, shipped_models
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.evaluation.episodes import first_disturbance, run_episodes
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.tasks import registry
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.pendulum import PENDULUM

ROOM = replace(CARTPOLE, name="room", sketch=None, disturbances={})
"""A family of another package."""


PAGE = """
import json, sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from ssm_metarl import checkpoint
from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.interface import build
from ssm_metarl.app.server import Server
from ssm_metarl.tasks import registry

folder, model, family = sys.argv[1:]
if (Path(folder) / "models").is_dir():
    checkpoint.resources = SimpleNamespace(files=lambda _: folder)
if family:
    registry.entry_points = lambda group: [EntryPoint("room", family, group)]
server = Server(AppConfig())
visitor = server.visitors.arrive("")
server.models.choose(visitor, model)
page = build(server)
(load,) = (event for event in page.fns.values() if event.targets[0][1] == "load")
values = zip(load.outputs, load.fn(visitor.token))
blocks = [block for block in page.blocks.values() if getattr(block, "elem_id", None)]
server.close()
print(json.dumps({
    "fields": [block.elem_id for block in blocks],
    "offered": [v for b in blocks if b.elem_id == "train-family" for _, v in b.choices],
    "values": {c.elem_id: v for c, v in values if isinstance(v, dict) and len(v) > 1},
}))
"""


def page_of(folder: Path, model: str, family: str = "") -> dict[str, Any]:
    """What the page has and shows of a model; in a process of its own, for gradio leaves loops."""
    made = subprocess.run(
        [sys.executable, "-c", PAGE, folder, model, family], capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return dict(json.loads(made.stdout.splitlines()[-1]))


@pytest.fixture(params=shipped_models())
def chosen(request: pytest.FixtureRequest, server: Server, visitor: Visitor) -> Visitor:
    """Somebody who has chosen a shipped model."""
    server.models.choose(visitor, request.param)
    return visitor


def use(server: Server, visitor: Visitor) -> None:
    """Press twice as the page comes, and let the plant run on and be disturbed."""
    opened, modes = server.models.of(visitor), server.models.modes(visitor)
    plant = replace(plants.default_plant(opened.family), disturbed=True)
    assert modes[0] == WITHOUT and len(modes) > 1, "it can adapt"
    how = {"mode": modes[1], "support_steps": 20, "num_adapt_steps": 1}
    for presses in (1, 2):
        done = adapting.adapt(visitor, server.models, server.kernels, plant, how)
        assert done.presses == presses and len(done.before.returns) == len(done.after.returns) == 4
        assert (done.report is None) == (modes[1] not in opened.gradient_modes)
        assert f'data-presses="{presses}"' in result_markup.result(done, opened.family)
    json.dumps(film(done))
    assert bool(film(done)) == (opened.family.sketch is not None)
    run = LiveRun(opened.policy, done.tasks, True, 0, opened.trained.online())
    pieces = [run.advance(), run.disturb(50)]
    assert [len(live.as_json(piece)["frames"]) for piece in pieces] == [100, 50]


def test_every_shipped_model_is_described_and_used(server: Server, chosen: Visitor) -> None:
    opened = server.models.of(chosen)
    said = dict(facts(opened))
    assert said["task family"] == opened.family.name
    assert said["ways to adapt"].split(", ") == list(opened.modes)
    assert server.models.card(chosen).startswith(f"# {chosen.model}")
    drawn = charts.training_curve(log_rows(opened.training_log))
    assert {"before", "after"} <= {series["color"] for series in drawn["series"]}
    use(server, chosen)


def test_the_direction_is_the_one_that_the_unadapted_model_plays(
    server: Server, chosen: Visitor
) -> None:
    opened = server.models.of(chosen)
    disturb = first_disturbance(opened.family)
    assert disturb is not None
    returns = {
        disturbed: run_episodes(
            disturb(opened.family.task()) if disturbed else opened.family.task(),
            opened.policy.actor(opened.policy.meta_params(), 1, 1), 1, seed=0,
        ).returns.mean()
        for disturbed in (False, True)
    }  # fmt: skip
    assert server.models.expects_disturbed(chosen) == (returns[True] > returns[False])


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose package also ships a pendulum's model that adapts in context."""
    config = InContextConfig(
        family="pendulum", num_epochs=1, tasks_per_epoch=2, state_dim=4, hidden_dim=8,
        num_layers=1, steps_per_epoch=32, sequence_steps=16, minibatches=1,
    )  # fmt: skip
    TrainingRun.start(config, tmp_path / "run").train()
    models = tmp_path / "models"
    models.mkdir()
    for path in next(iter(shipped_models().values())).parent.iterdir():
        (models / path.name).symlink_to(path)
    (tmp_path / "run" / FILE_NAME).rename(models / "swings_in_context.safetensors")
    monkeypatch.setattr(checkpoint, "resources", SimpleNamespace(files=lambda _: tmp_path))
    made = Server(AppConfig(), tmp_path / "server")
    yield made
    made.close()


def test_a_shipped_model_that_adapts_in_context_is_used_without_a_step(
    remembering: Server, tmp_path: Path
) -> None:
    visitor = remembering.visitors.arrive("")
    assert "swings_in_context" in remembering.models.names(visitor)
    remembering.models.choose(visitor, "swings_in_context")
    opened = remembering.models.of(visitor)
    assert (opened.family, opened.modes) == (PENDULUM, ("in_context",))
    use(remembering, visitor)
    assert visitor.adaptation is not None and visitor.adaptation.mode == "in_context"
    values = page_of(tmp_path, "swings_in_context")["values"]
    assert "it remembers" in values["notes"]["value"]
    assert values["mode"]["value"] == "in_context"
    assert not values["support-steps"]["visible"] and not values["adapt-steps"]["visible"]
    assert values["plant-damping"]["value"] == PENDULUM.default_task["damping"]


def test_a_training_in_context_has_its_curve() -> None:
    log = [
        {"env_steps": 10 * i, "recent_return": 1.0, "eval_episode_1_mean": 2.0 * i,
         "eval_episode_2_mean": 3.0 * i, "eval_ood_episode_2_mean": 1.0 * i}
        for i in (1, 2)
    ]  # fmt: skip
    second, first, outside, _ = charts.training_curve(log)["series"]
    assert (first["name"], first["points"]) == ("first episode", [[10, 2.0], [20, 4.0]])
    assert (second["color"], second["points"][-1]) == ("after", [20, 6.0])
    assert (outside["style"], outside["points"][-1]) == ("dashed", [20, 2.0])


def test_families_of_installed_packages_stand_beside_the_registered_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = [
        EntryPoint("room", f"{__name__}:ROOM", registry.GROUP),
        EntryPoint("broken", "no_such_package:FAMILY", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    server = Server(AppConfig(), tmp_path / "server")
    try:
        assert list(server.families) == [*registry.FAMILIES, "room"]
        assert "entry point broken" in capfd.readouterr().err
        form = training.training_form(server.families)
        assert forms.read({"family": form["family"]}, {"family": "room"}) == {"family": "room"}
    finally:
        server.close()
    page = page_of(tmp_path, "cartpole", f"{__name__}:ROOM")
    assert page["offered"] == list(server.families)
    masses = sum("mass" in plants.plant_form(family) for family in server.families.values())
    assert page["fields"].count("plant-mass") == masses
