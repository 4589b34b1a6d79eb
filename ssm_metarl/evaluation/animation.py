"""A film of two episodes in one plant, side by side: before and after adapting.

Place in the flow: stage 7, drawn by `report`. `record` runs the two episodes on a plant that a
family's first disturbance has come over, `animate` draws what the family's `sketch` says of each
state, in the plant's own proportions.

Drawn with Pillow at three times the size and scaled down, for smooth edges; one small palette
for all frames, so that a frame stores only the rectangle that changed. The card is opaque with
its own background: it looks the same on a light and on a dark page.

Time runs as it did, where the family knows its time step: a frame is 0.05 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.evaluation.episodes import PURPOSE, collect_support
from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.method import Data, Method, Model
from ssm_metarl.tasks.sketch import Point, Role, Shape
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import EnvStep

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from torch import Tensor

States = NDArray[np.floating]

SCALE = 3  # drawn pixels per pixel
PANEL, GAP, HEADER, FOOTER = 384, 12, 54, 40  # pixels; two panels, three gaps
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

    states: States
    """Of the physics, that each step led to, shape (T, S)."""
    failed: bool
    """Whether its end was a failure."""
    total: float
    """Its return."""

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or len(self.states) == 0:
            raise ValueError(
                f"states: expected shape (T, S) with T > 0, received {self.states.shape}"
            )


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


def can_film(family: TaskFamily) -> bool:
    """Whether a family can be drawn, and a disturbance come over it."""
    return bool(family.dynamics and family.sketch and family.disturbances)


def record(
    model: Model, family: TaskFamily, method: Method, *, support_steps: int, seed: int
) -> Film:
    """One episode before and one after adapting to the default plant, disturbed or not.

    An unadapted policy may play one of the two well; the other one is shown.

    Args:
        model: Stays untouched.
        family: See `can_film`.
        method: How it adapts.
        support_steps: Environment steps that it adapts from.
        seed: Names the initial state and the support data.
    """
    name, disturb = next(iter(family.disturbances.items()))
    plants = {f"Another plant: {name}": disturb(family.task()), "The plant as it is": family.task()}
    takes = {title: _take(Frozen(), model, tasks, Data(None), seed) for title, tasks in
             plants.items()}  # fmt: skip
    title = min(takes, key=lambda each: takes[each].total)
    tasks = plants[title]
    support = collect_support(
        model.policy, tasks, support_steps, model.trained.support_policy, seed=seed
    )
    after = _take(method, model, tasks, Data(support), seed)
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


@cache
def _font(size: float, bold: bool) -> FreeTypeFont:
    """The font of the charts, which matplotlib brings along."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size * SCALE)


@dataclass(frozen=True)
class _Pen:
    """Draws in unscaled pixels."""

    draw: ImageDraw

    def line(self, start: Point, end: Point, color: str, width: float) -> None:
        # A polygon, because a line's corners are rounded to whole pixels: a slowly leaning pole
        # would jump.
        along = math.atan2(end[1] - start[1], end[0] - start[0])
        dx, dy = -math.sin(along) * width / 2, math.cos(along) * width / 2
        corners = [(x + s * dx, y + s * dy) for (x, y), s in
                   ((start, 1), (end, 1), (end, -1), (start, -1))]  # fmt: skip
        self.polygon(corners, color)

    def polygon(self, points: list[Point], color: str) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=color)

    def box(
        self, left: float, top: float, right: float, bottom: float, color: str, radius: float
    ) -> None:
        corners = [v * SCALE for v in (left, top, right, bottom)]
        self.draw.rounded_rectangle(corners, radius * SCALE, fill=color)

    def disc(self, center: Point, radius: float, color: str) -> None:
        x, y = center
        corners = [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=color)

    def text(
        self, x: float, y: float, text: str, color: str, size: float, *,
        bold: bool = False, anchor: str = "ls",
    ) -> float:  # fmt: skip
        """Write with the baseline at y, and return the width."""
        font = _font(size, bold)
        self.draw.text((x * SCALE, y * SCALE), text, color, font, anchor)
        return float(self.draw.textlength(text, font)) / SCALE


@dataclass(frozen=True)
class _Canvas:
    """What all frames share."""

    film: Film

    @property
    def pixels_per_unit(self) -> float:
        """Of the plant's own lengths."""
        assert self.film.family.sketch is not None
        left, right, bottom, top = self.film.family.sketch.extent
        return min(PANEL / (right - left), MOST_HEIGHT / (top - bottom))

    @property
    def height(self) -> int:
        """Of the film, pixels."""
        assert self.film.family.sketch is not None
        *_, bottom, top = self.film.family.sketch.extent
        return HEADER + GAP + round((top - bottom) * self.pixels_per_unit) + 30 + FOOTER

    def frame(self, step: int) -> Image:
        """The picture after ``step`` >= 1 steps."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (WIDTH * SCALE, self.height * SCALE), CARD)
        pen = _Pen(ImageDraw.Draw(image))
        pen.text(GAP + 6, HEADER / 2 + 6, self.film.title, INK, 16, bold=True)
        self._panel(pen, GAP, "before adapting", self.film.before, step)
        self._panel(pen, 2 * GAP + PANEL, "after adapting", self.film.after, step)
        return image.reduce(SCALE)

    def _panel(self, pen: _Pen, left: float, title: str, take: Take, step: int) -> None:
        family = self.film.family
        count = min(step, len(take.states))
        over = step >= len(take.states)
        lost = over and take.failed
        bottom, middle = self.height - GAP, left + PANEL / 2
        pen.box(left, HEADER, left + PANEL, bottom, FLOOR, 8)
        assert family.sketch is not None
        for shape in family.sketch.draw(take.states[count - 1].tolist(), self.film.task):
            color = FAILED if lost and shape.role == "part" else ROLES[shape.role]
            self._shape(pen, middle, bottom - FOOTER, shape, color)
        pen.text(left + 14, HEADER + 25, title, INK, 14, bold=True)
        time = f" ({count * family.time_step:.1f} s)" if family.time_step is not None else ""
        if lost:
            label, color = f"failed after {count} steps{time}", FAILED
        elif over:
            label, color = f"ran for {count} steps{time}", DONE
        else:
            label, color = f"step {count}", MUTED
        pen.text(middle, bottom - 16, label, color, 14, bold=over, anchor="ms")

    def _shape(self, pen: _Pen, middle: float, floor: float, shape: Shape, color: str) -> None:
        assert self.film.family.sketch is not None
        left, right, bottom, _ = self.film.family.sketch.extent
        scale = self.pixels_per_unit

        def at(point: Point) -> Point:
            return (
                middle + (point[0] - (left + right) / 2) * scale,
                floor - (point[1] - bottom) * scale,
            )

        if shape.kind == "line":
            pen.line(at(shape.points[0]), at(shape.points[1]), color, max(2, shape.size * scale))
        elif shape.kind == "box":
            (x, y), (other_x, other_y) = map(at, shape.points)
            pen.box(min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y), color, 5)
        else:
            pen.disc(at(shape.points[0]), max(2, shape.size * scale), color)


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

    Raises:
        ValueError: The family has no sketch.
    """
    from PIL import Image

    if film.family.sketch is None:
        raise ValueError(f"film: expected a family with a sketch, received {film.family.name!r}")
    canvas = _Canvas(film)
    last = max(len(film.before.states), len(film.after.states))
    per_frame = FRAME_SECONDS / (film.family.time_step or STEP_SECONDS)
    count = min(max_frames - 1, math.ceil(last / per_frame))
    frames = [canvas.frame(1 + int(i * per_frame)) for i in range(count)] + [canvas.frame(last)]
    palette = _palette(frames)
    indexed = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    seconds = [FIRST_SECONDS] + [FRAME_SECONDS] * (count - 1) + [LAST_SECONDS]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    indexed[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=[round(1000 * s) for s in seconds],
        loop=0,
        optimize=False,
        disposal=1,
    )
    return path


def _palette(frames: list[Image]) -> Image:
    """A palette that fits the first, a middle and the last frame."""
    from PIL import Image

    chosen = [frames[0], frames[len(frames) // 2], frames[-1]]
    width, height = frames[0].size
    stacked = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        stacked.paste(frame, (0, i * height))
    return stacked.quantize(COLORS)
