"""Report: what the files hold and weigh, and that text from outside cannot become HTML."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from docs.update_readme import results_table
from ssm_metarl.evaluation.animation import FAILED, ROLES, Film, Take, animate
from ssm_metarl.evaluation.plots import (
    plot_arms,
    plot_training_curve,
    present_arms,
    shown_range,
)
from ssm_metarl.evaluation.report import arms_table, write_report
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.pendulum import PENDULUM

COMMAND = "ssm-metarl evaluate --model '<m>' && echo done"


def _arm(iqm: float, low: float, high: float, worst: float, env_steps: int = 0) -> dict:
    return {
        "mean": iqm - 1,
        "iqm": iqm,
        "ci95": [low, high],
        "worst10": worst,
        "env_steps": env_steps,
    }


@pytest.fixture
def evaluations() -> dict:
    return {
        title: {
            "model": "<m>",
            "family": "cartpole",
            "split": split,
            "num_tasks": 100,
            "seed": 0,
            "version": "0.0.0",
            "arms": {
                "sign_probe": _arm(500, 500, 500, 470, 18),
                "standard": _arm(496.25, 480, 500, 312, 18),
                "hybrid": {},  # does not apply
                "frozen": _arm(98, 71, 130, 9.4),
            },
            "return_bounds": [0.0, 500.0],
            "definitions": {"standard": "what standard does", "in_context": "not shown"},
            "paired": {"standard-frozen": {"mean": 398.25, "ci95": [350.0, 431.0]}},
        }
        for title, split in (("in distribution", "id"), ("out of distribution", "ood"))
    }


@pytest.fixture
def log(tmp_path):
    rows = [{"env_steps": i * 1e4, "meta_loss": 0.1, "average_return": 5.0 * i} for i in range(90)]
    for row in rows[::10]:
        row |= {"eval_adapted_mean": row["average_return"], "eval_frozen_mean": 60.0}
        row |= {"eval_adapted_iqm": row["average_return"] + 5, "eval_frozen_iqm": 50.0}
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def _falling(num_steps: int = 9) -> Take:
    states = np.zeros((num_steps, 4))
    states[:, 2] = np.linspace(0.02, 0.25, num_steps)
    return Take(states, True, float(num_steps))


def _balancing(num_steps: int = 500) -> Take:
    states = np.zeros((num_steps, 4))
    time = np.arange(num_steps)
    states[:, 0], states[:, 2] = 0.4 * np.sin(time / 40), 0.05 * np.sin(time / 9)
    return Take(states, False, float(num_steps))


def _film(before: Take, after: Take, **task: float) -> Film:
    return Film(CARTPOLE, {**CARTPOLE.default_task, **task}, "Another plant: flip", before, after)


class _Page(HTMLParser):
    """Collects tags, image sources and text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_table_orders_arms_and_leaves_absent_ones_out(evaluations):
    table = results_table(evaluations["in distribution"])
    lines = table.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "before adapting",
        "after: standard",
        "fixed gain, sign probed",
    ]
    assert "hybrid" not in table
    assert len({len(line) for line in lines[:5]}) == 1  # aligned for a terminal
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == ["after: standard", "496.2", "480.0 to 500.0", "495.2", "312.0", "18"]


def test_table_gives_paired_differences_with_their_sign(evaluations):
    assert "| +398.2 | +350.0 to +431.0 |" in results_table(evaluations["in distribution"])
    evaluations["in distribution"]["paired"] = {}
    assert "difference" not in results_table(evaluations["in distribution"])


def test_an_unknown_arm_comes_last(evaluations):
    arms = {"mine": _arm(1, 1, 1, 1), **evaluations["in distribution"]["arms"]}
    assert present_arms([{"arms": arms}]) == ["frozen", "standard", "sign_probe", "mine"]


def test_report_holds_every_number_and_the_command(tmp_path, evaluations, log):
    page = write_report(
        tmp_path / "report",
        evaluations=evaluations,
        training_log=log,
        film=_film(_falling(), _balancing(60), sign=-1.0),
        command=COMMAND,
    )
    text = page.read_text()
    parsed = _Page(text)
    assert page.name == "report.html"
    assert set(parsed.sources) == {"before_after.gif", "adaptation.png", "training_curve.png"}
    for name in parsed.sources:
        with Image.open(page.parent / name) as image:
            assert image.width > 700
    for number in ("496.2", "480.0 to 500.0", "312.0", "+398.2", "+350.0 to +431.0"):
        assert number in parsed.text
    assert COMMAND in parsed.text and "&lt;m&gt;" in text and "m" not in parsed.tags
    assert "lasts 9 steps (return 9), after adapting 60 (return 60)" in parsed.text
    assert "force 10 N, length 0.5 m" in parsed.text and "sign -1." in parsed.text
    assert "what standard does" in parsed.text and "not shown" not in parsed.text
    assert "prefers-color-scheme: dark" in text
    for table in map(arms_table, evaluations.values()):
        assert all(cell in parsed.text for row in table for cell in row)
    results = json.loads((page.parent / "results.json").read_text())
    assert (results["evaluations"], results["command"]) == (evaluations, COMMAND)


def test_report_without_a_training_log_shows_no_curve(tmp_path, evaluations):
    page = write_report(
        tmp_path,
        evaluations=evaluations,
        training_log=None,
        film=_film(_falling(), _falling(12)),
        command="x",
    )
    assert "training_curve.png" not in page.read_text()
    assert not (tmp_path / "training_curve.png").exists()


def test_charts_are_small_files(tmp_path, evaluations, log):
    for path in (
        plot_training_curve(log, tmp_path / "curve.png"),
        plot_arms(evaluations, tmp_path / "arms.png"),
    ):
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.width >= 1200
            assert len(image.convert("RGB").getcolors(10_000)) > 20  # something is drawn


def test_chart_shows_the_numbers_it_is_given(tmp_path, evaluations):
    first = plot_arms(evaluations, tmp_path / "a.png").read_bytes()
    assert plot_arms(evaluations, tmp_path / "b.png").read_bytes() == first
    evaluations["in distribution"]["arms"]["frozen"]["worst10"] = 60
    assert plot_arms(evaluations, tmp_path / "c.png").read_bytes() != first


def test_chart_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arms"):
        plot_arms({"in distribution": {"arms": {}}}, tmp_path / "a.png")


def test_curve_of_a_log_without_evaluations(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"env_steps": 100, "meta_loss": 1.0, "average_return": -20.0}\n')
    assert plot_training_curve(log, tmp_path / "x" / "curve.png", bounds=None).exists()


def test_curve_of_a_damaged_log_is_drawn_from_what_is_left(tmp_path):
    log, whole = tmp_path / "log.jsonl", b'{"env_steps": 100, "average_return": -20.0}\n'
    log.write_bytes(whole + b"\0" * 300 + b"\n\xff\n" + whole + b'{"env_st')
    assert plot_training_curve(log, tmp_path / "curve.png").exists()
    log.write_text("")
    with pytest.raises(ValueError, match="at least one line"):
        plot_training_curve(log, tmp_path / "curve.png")


def test_negative_returns_are_on_the_charts(tmp_path, evaluations):
    assert shown_range([12.0, 480.0], (0.0, 500.0)) == (0.0, 500.0)
    assert shown_range([-900.0, -150.0], (-3255.6, 0.0)) == (-900.0, 0.0)  # most would be empty
    assert shown_range([-2000.0, -150.0], (-3255.6, 0.0)) == (-3255.6, 0.0)
    assert shown_range([-20.0, -5.0], None) == (-20.0, -5.0) and shown_range([], None) == (0, 1)
    for evaluation in evaluations.values():
        evaluation["return_bounds"] = [-3255.6, 0.0]
        arms = evaluation["arms"]
        arms["standard"], arms["frozen"] = (
            _arm(-200, -220, -150, -900),
            _arm(-1200, -1300, -1100, -1700),
        )
        arms.pop("sign_probe")
    plot_arms(evaluations, tmp_path / "arms.png", bounds=(-3255.6, 0.0))
    with Image.open(tmp_path / "arms.png") as image:
        colors = {c for _, c in image.convert("RGB").getcolors(10_000)}
    # both dots are inside the panel: blue of the one, vermilion of the other
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert min(sum(abs(a - b) for a, b in zip(c, wanted, strict=True)) for c in colors) < 30


def test_animation_is_small_short_and_loops(tmp_path):
    path = animate(_film(_falling(), _balancing()), tmp_path / "a.gif")
    assert path.stat().st_size < 600_000
    with Image.open(path) as film:
        assert film.n_frames <= 120
        assert film.info["loop"] == 0
        durations = []
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
    assert set(durations[1:-1]) == {50}
    assert sum(durations) < 9_000


def _pixels(film: Film, folder, color: str) -> tuple[int, int]:
    """Pixels of a colour in the last frame below the header, in the left and the right panel."""
    with Image.open(animate(film, folder / "a.gif")) as gif:
        gif.seek(gif.n_frames - 1)
        frame = np.asarray(gif.convert("RGB")).astype(int)
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    inside = np.abs(frame[60:-45] - rgb).sum(-1) < 60
    half = frame.shape[1] // 2
    return int(inside[:, :half].sum()), int(inside[:, half:].sum())


def test_animation_draws_the_poles_true_length_and_what_happened(tmp_path):
    short, _ = _pixels(_film(_falling(5), _balancing(8), length=0.25), tmp_path, FAILED)
    long, standing = _pixels(_film(_falling(5), _balancing(8), length=1.0), tmp_path, FAILED)
    assert long > 2 * short > 100 and standing == 0  # the fallen pole alone is vermilion
    fell, stands = _pixels(_film(_falling(5), _balancing(8), length=1.0), tmp_path, ROLES["part"])
    assert stands > 500 and fell < stands / 10


def test_any_family_with_a_sketch_is_filmed(tmp_path):
    def take(theta: float) -> Take:
        return Take(np.tile([theta, 0.0], (6, 1)), False, -1.0)

    def film(before: Take, after: Take, **task: float) -> Film:
        return Film(PENDULUM, {**PENDULUM.default_task, **task}, "x", before, after)

    up, down = take(0.0), take(np.pi)
    with Image.open(animate(film(down, up), tmp_path / "a.gif")) as gif:
        gif.seek(gif.n_frames - 1)
        frame = np.asarray(gif.convert("RGB")).astype(int)
    rod = np.abs(frame[60:-45] - (0xC9, 0x8B, 0x3B)).sum(-1) < 60
    rows = [np.nonzero(side.any(axis=1))[0].mean() for side in np.split(rod, 2, axis=1)]
    assert rows[0] > rows[1] + 50  # the one hangs, the other stands
    left, right = _pixels(film(up, up, length=1.4), tmp_path, ROLES["part"])
    assert left == pytest.approx(right, rel=0.05)
    assert left > 1.2 * _pixels(film(up, up), tmp_path, ROLES["part"])[0]
