"""A film of two episodes in one plant, side by side: before and after adapting.

Place in the flow: stage 7, drawn by `report`. `record` runs the two episodes on a plant that a
family's first disturbance has come over, `animate` draws what the family's `sketch` says of each
state, in the plant's own proportions and, where the family knows its time step, as fast as it was.

One small palette for all frames, so that a frame stores only the rectangle that changed; an opaque
card, which looks the same on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.config import EvaluationConfig
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.evaluation.episodes import PURPOSE
from ssm_metarl.evaluation.score import step_for, support_for
from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.method import Data, Method, Model
from ssm_metarl.methods.standard import Standard
from ssm_metarl.tasks.sketch import Role, Shape, Sketch
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import EnvStep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

DPI, POINT = 100, 72 / 100
"""Pixels of an inch, and points of a pixel."""
PANEL, GAP, HEADER, FOOTER = 384, 12, 54, 40  # pixels; two panels, three gaps
TITLE = 30  # pixels, within a panel
WIDTH = 2 * PANEL + 3 * GAP
MOST_HEIGHT = 384  # of a plant
FRAME_SECONDS = 0.05
STEP_SECONDS = 0.02  # of a plant that does not know
FIRST_SECONDS, LAST_SECONDS = 0.7, 1.8  # time to read
COLORS = 48

CARD, FLOOR, INK, MUTED, FAILED, DONE = (
    "#EDF0F3", "#FFFFFF", "#1F2933", "#616E7C", "#D55E00", "#0072B2",
)  # fmt: skip
ROLES: Mapping[Role, str] = {
    "ground": "#9AA5B1", "body": "#3E4C59", "part": "#C98B3B", "joint": INK, "force": FAILED,
}  # fmt: skip


@dataclass(frozen=True)
class Take:
    """One recorded episode."""

    states: NDArray[np.floating]
    """Of the physics, that each step led to, shape (T, S)."""
    failed: bool
    """Whether its end was a failure."""
    total: float
    """Its return."""


@dataclass(frozen=True)
class Film:
    """Two episodes of one plant."""

    family: TaskFamily
    """With a sketch."""
    task: Mapping[str, float]
    """The plant's parameters."""
    title: str
    before: Take
    after: Take

    @property
    def caption(self) -> str:
        """What it shows, in words."""
        units = {p.name: p.unit for p in self.family.parameters}
        task = ", ".join(f"{n} {v:.3g} {units[n]}".rstrip() for n, v in self.task.items())
        return (
            f"One task, in real time: {task}. Before adapting the episode lasts "
            f"{len(self.before.states)} steps (return {self.before.total:.0f}), after adapting "
            f"{len(self.after.states)} (return {self.after.total:.0f})."
        )


def record(model: Model, family: TaskFamily, config: EvaluationConfig) -> Film | None:
    """One episode before and one after adapting to the default plant, disturbed or not.

    An unadapted policy may play one of the two well; the other one is shown.

    Args:
        model: Stays untouched.
        family: Whose default plant it is.
        config: How it adapts, and the seed of initial state and support data.

    Returns:
        None where a family cannot be drawn, nothing disturbs it, or the model cannot adapt.
    """
    method = Standard(step_for(model, config))
    if not (family.dynamics and family.sketch and family.disturbances):
        return None
    if method.applies(model, family) is not None:
        return None
    name, disturb = next(iter(family.disturbances.items()))
    plants = {f"Another plant: {name}": disturb(family.task()), "The plant as it is": family.task()}
    seed = config.seed
    takes = {title: _take(Frozen(), model, t, Data(None), seed) for title, t in plants.items()}
    title = min(takes, key=lambda each: takes[each].total)
    tasks = plants[title]
    after = _take(method, model, tasks, Data(support_for(model, tasks, config)), seed)
    return Film(family, tasks.as_dicts()[0], title, takes[title], after)


def _take(method: Method, model: Model, tasks: Tasks, data: Data, seed: int) -> Take:
    worlds = _Recording(tasks, seed=seed)
    actor = method.prepare(model, tasks, data).actor
    rollout = collect_rollout(worlds, actor, worlds.max_episode_steps)
    count = int(rollout.mask.sum())
    states = np.stack([state[0, 0].numpy() for state in worlds.states[:count]])
    failed = tasks.family.end_is_failure and bool(rollout.terminated.any())
    return Take(states, failed, float(rollout.episode_returns()))


class _Recording(TaskBatch):
    """Worlds that keep the states (K, N, S) which their steps led to."""

    def __init__(self, tasks: Tasks, *, seed: int) -> None:
        super().__init__(tasks, 1, seed=seed, purpose=f"{PURPOSE}-film")
        self.states: list[Tensor] = []

    def step(self, action: Tensor) -> EnvStep:
        """As `TaskBatch.step`."""
        result = super().step(action)
        self.states.append(self._state)
        return result


def animate(film: Film, path: Path, *, max_frames: int = 120) -> Path:
    """Write a looping GIF of two episodes, in real time at 20 frames a second.

    An episode that has ended stands still under a label that says how. The last frame shows how
    the longer episode ended, however early the film had to stop.

    Args:
        film: What to draw.
        path: GIF file to write.
        max_frames: Frames at most; 120 last 6 s, and the pauses at both ends.

    Returns:
        ``path``.
    """
    from PIL import Image

    last = max(len(film.before.states), len(film.after.states))
    per_frame = FRAME_SECONDS / (film.family.time_step or STEP_SECONDS)
    count = min(max_frames - 1, math.ceil(last / per_frame))
    frames = [_frame(film, 1 + int(i * per_frame)) for i in range(count)] + [_frame(film, last)]
    shown = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    palette = Image.fromarray(shown).quantize(COLORS)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    seconds = [FIRST_SECONDS] + [FRAME_SECONDS] * (count - 1) + [LAST_SECONDS]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(
        path, "GIF", save_all=True, append_images=others, loop=0, optimize=False, disposal=1,
        duration=[round(1000 * s) for s in seconds],
    )  # fmt: skip
    return path


def _frame(film: Film, step: int) -> NDArray[np.uint8]:
    """The picture after ``step`` >= 1 steps, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sketch = film.family.sketch
    assert sketch is not None
    left, right, bottom, top = sketch.extent
    scale = min(PANEL / (right - left), MOST_HEIGHT / (top - bottom))  # pixels of a unit
    panel = TITLE + round((top - bottom) * scale) + FOOTER
    height = HEADER + panel + GAP
    figure = Figure((WIDTH / DPI, height / DPI), DPI, facecolor=CARD)
    figure.text(
        (GAP + 6) / WIDTH, 1 - (HEADER / 2 + 6) / height, film.title,
        color=INK, size=16 * POINT, weight="bold",
    )  # fmt: skip
    for column, (title, take) in enumerate(
        (("before adapting", film.before), ("after adapting", film.after))
    ):
        x = GAP + column * (PANEL + GAP)
        axes = figure.add_axes(
            (x / WIDTH, GAP / height, PANEL / WIDTH, panel / height), facecolor=FLOOR,
            xticks=[], yticks=[],
            xlim=((left + right - PANEL / scale) / 2, (left + right + PANEL / scale) / 2),
            ylim=(bottom - FOOTER / scale, bottom + (panel - FOOTER) / scale),
        )  # fmt: skip
        axes.spines[:].set_visible(False)
        _draw(axes, film, sketch, take, step, scale)
        axes.text(14 / PANEL, 1 - 25 / panel, title, transform=axes.transAxes, color=INK,
                  size=14 * POINT, weight="bold")  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def _draw(axes: Axes, film: Film, sketch: Sketch, take: Take, step: int, scale: float) -> None:
    """A take's state after ``step`` steps, and how it goes."""
    count = min(step, len(take.states))
    over = step >= len(take.states)
    lost = over and take.failed
    for order, shape in enumerate(sketch.draw(take.states[count - 1].tolist(), film.task)):
        color = FAILED if lost and shape.role == "part" else ROLES[shape.role]
        _draw_shape(axes, shape, color, scale, order)
    step_seconds = film.family.time_step
    time = "" if step_seconds is None else f" ({count * step_seconds:.1f} s)"
    label, color = f"step {count}", MUTED
    if over:
        label, color = f"ran for {count} steps{time}", DONE
    if lost:
        label, color = f"failed after {count} steps{time}", FAILED
    axes.annotate(label, (0.5, 0), (0, 16 * POINT), "axes fraction", "offset points", ha="center",
                  color=color, size=14 * POINT, weight="bold" if over else "normal")  # fmt: skip


def _draw_shape(axes: Axes, shape: Shape, color: str, scale: float, order: int) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    x, y = zip(*shape.points, strict=True)
    size = max(2 / scale, shape.size)
    if shape.kind == "line":
        axes.plot(x, y, color=color, linewidth=size * scale * POINT, solid_capstyle="butt",
                  snap=False, zorder=order, scalex=False, scaley=False)  # fmt: skip
    elif shape.kind == "disc":
        axes.add_patch(Circle((x[0], y[0]), size, color=color, linewidth=0, zorder=order))
    else:
        rounded = f"round,pad=0,rounding_size={5 / scale}"
        corner, width, height = (min(x), min(y)), max(x) - min(x), max(y) - min(y)
        axes.add_patch(
            FancyBboxPatch(corner, width, height, rounded, color=color, linewidth=0, zorder=order)
        )
