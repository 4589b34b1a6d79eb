"""Charts and markup: numbers as they are, text escaped, settings checked."""

from __future__ import annotations

import pytest

from ssm_metarl.app import charts, markup, result_markup
from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.handlers import training
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.pendulum import PENDULUM

LOG = [
    {"env_steps": 100, "recent_return": 20.0, "eval_adapted_mean": 50.0, "eval_adapted_q10": 9.0,
     "eval_adapted_q90": 90.0, "eval_frozen_mean": 30.0},
    {"env_steps": 200, "recent_return": 25.0},
    {"env_steps": 300, "recent_return": 40.0, "eval_adapted_mean": 400.0, "eval_adapted_q10": 99.0,
     "eval_adapted_q90": 500.0, "eval_frozen_mean": 31.0},
]  # fmt: skip


def test_a_training_curve_has_both_returns_and_their_spread() -> None:
    adapted, frozen, recent = charts.training_curve(LOG)["series"]
    assert adapted["points"] == [[100, 50.0], [300, 400.0]]
    assert adapted["band"] == [[100, 9.0, 90.0], [300, 99.0, 500.0]]
    assert frozen["points"] == [[100, 30.0], [300, 31.0]] and frozen["band"] == []
    assert recent["points"] == [[100, 20.0], [200, 25.0], [300, 40.0]]
    assert charts.training_curve([]) == charts.NOTHING


def test_the_scale_of_a_curve_is_the_familys(server: Server, swinging: Visitor) -> None:
    """Returns below zero are on the chart, up to the greatest that there can be."""
    log = [{**line, "eval_adapted_mean": -2000.0, "recent_return": -3000.0} for line in LOG]
    view = training.view(swinging, server.jobs)
    assert view.return_bounds == (-3255.6, 0.0)
    axis = charts.training_curve(log, bounds=view.return_bounds)["y"]
    assert axis["min"] == -3255.6 and axis["max"] > 0


def test_a_long_curve_is_thinned_but_ends_where_it_ends() -> None:
    points = [[float(i), 0.0] for i in range(5000)]
    thinned = charts.thin(points)
    assert len(thinned) == 400 and thinned[0] == points[0] and thinned[-1] == points[-1]


def test_text_is_escaped() -> None:
    nasty = "<img src=x onerror=alert(1)>"
    for html in (
        markup.notice(nasty), markup.command(nasty), markup.facts([(nasty, nasty)]),
        markup.table([{nasty: nasty}], nasty), markup.progress(0.5, nasty),
    ):  # fmt: skip
        assert "<img" not in html and "&lt;img" in html
    assert "<code>x</code>" in markup.notice("`x`")


def test_a_slider_shows_where_training_was() -> None:
    force = next(p for p in CARTPOLE.parameters if p.name == "force")  # ID 5 to 15 of 1 to 20
    html = result_markup.range_strip(force)
    assert 'data-kind="id" style="left:21.05%;width:52.63%"' in html
    assert html.count('data-kind="ood"') == 2
    assert "trained on 5 to 15 N" in html
    assert [result_markup.label(p) for p in PENDULUM.parameters[2:4]] == ["Gravity (m/s²)", "Gain"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ""), (True, "yes"), (12345.6, "12,346"), (0.123456, "0.1235"), (1000, "1,000")],
)
def test_cells(value: object, expected: str) -> None:
    assert markup.cell(value) == expected


def test_the_app_binds_this_machine_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (AppConfig().host, AppConfig().port, AppConfig().is_local) == ("127.0.0.1", 7860, True)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8000")
    assert (AppConfig().host, AppConfig().port, AppConfig().is_local) == ("0.0.0.0", 8000, False)
    with pytest.raises(ValueError, match="port: expected 0 to 65535"):
        AppConfig(port=70_000)
