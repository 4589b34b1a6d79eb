"""A film of two episodes on one changed CartPole, side by side: before and after adapting.

Place in the flow: stage 7, drawn by `report` from two recorded trajectories.

Drawn with Pillow at three times the size and scaled down, for smooth edges; one small palette
for all frames, so that a frame stores only the rectangle that changed. The card is opaque with
its own background: it looks the same on a light and on a dark page.

Time runs as it did: a frame is 0.05 s, 2.5 steps of the physics. The horizontal axis is the
track's true +-2.4 m, and the pole has its true length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.tasks.cartpole import THETA_LIMIT, TIME_STEP, X_LIMIT

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

States = NDArray[np.floating]
Point = tuple[float, float]

SCALE = 3  # drawn pixels per pixel
PANEL, GAP, HEADER = 384, 12, 54  # pixels; two panels, three gaps
WIDTH = 2 * PANEL + 3 * GAP
PIXELS_PER_METRE = PANEL / (2 * X_LIMIT + 0.3)  # a little beyond the track's ends
FRAME_SECONDS = 0.05
FIRST_SECONDS, LAST_SECONDS = 0.7, 1.8  # time to read
COLORS = 48

CARD, FLOOR, TRACK, GHOST, INK = "#EDF0F3", "#FFFFFF", "#9AA5B1", "#D3DAE1", "#1F2933"
MUTED, POLE, FALLEN, ALIVE, CART = "#616E7C", "#C98B3B", "#D55E00", "#0072B2", "#3E4C59"


def fallen(states: States) -> bool:
    """Whether the last state (x, dx/dt, theta, dtheta/dt) is outside CartPole's limits."""
    x, _, theta, _ = states[-1]
    return bool(abs(x) > X_LIMIT or abs(theta) > THETA_LIMIT)


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

    def arrow(self, tail: float, tip: float, y: float, color: str) -> None:
        """A horizontal arrow."""
        back = tip - math.copysign(10, tip - tail)
        self.line((tail, y), (back, y), color, 3)
        self.polygon([(tip, y), (back, y - 5.5), (back, y + 5.5)], color)


@dataclass(frozen=True)
class _Film:
    """What all frames share."""

    before: States
    after: States
    length: float
    title: str
    flipped: bool

    @property
    def reach(self) -> float:
        """Length of the whole pole, pixels."""
        return 2 * self.length * PIXELS_PER_METRE

    @property
    def height(self) -> int:
        """Of the film, pixels: a long pole needs more."""
        return HEADER + GAP + round(max(150.0, 116.0 + self.reach)) + 70

    def frame(self, step: int) -> Image:
        """The picture after ``step`` >= 1 steps."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (WIDTH * SCALE, self.height * SCALE), CARD)
        pen = _Pen(ImageDraw.Draw(image))
        self._header(pen)
        self._panel(pen, GAP, "before adapting", self.before, step)
        self._panel(pen, 2 * GAP + PANEL, "after adapting", self.after, step)
        return image.reduce(SCALE)

    def _header(self, pen: _Pen) -> None:
        y = HEADER / 2 + 6
        x = GAP + 6 + pen.text(GAP + 6, y, self.title, INK, 16, bold=True)
        if self.flipped:  # what the policy asks for, and what the cart feels
            x += 34
            x += pen.text(x, y, "asked for", MUTED, 13) + 9
            pen.arrow(x, x + 32, y - 5, MUTED)
            x += 32 + 24
            x += pen.text(x, y, "cart is pushed", FALLEN, 13) + 9
            pen.arrow(x + 32, x, y - 5, FALLEN)

    def _panel(self, pen: _Pen, left: float, title: str, states: States, step: int) -> None:
        count = min(step, len(states))
        over = step >= len(states)
        lost = over and fallen(states)
        bottom, middle = self.height - GAP, left + PANEL / 2
        rail = bottom - 50.0
        pen.box(left, HEADER, left + PANEL, bottom, FLOOR, 8)
        ends = [middle + side * X_LIMIT * PIXELS_PER_METRE for side in (-1, 1)]
        pen.line((ends[0], rail), (ends[1], rail), TRACK, 2)
        for end in ends:
            pen.line((end, rail - 7), (end, rail + 7), TRACK, 2)
        self._plant(pen, middle, rail, states[count - 1], FALLEN if lost else POLE)
        pen.text(left + 14, HEADER + 25, title, INK, 14, bold=True)
        seconds = count * TIME_STEP
        if lost:
            how = "left the track" if abs(states[-1][0]) > X_LIMIT else "fell"
            label, color = f"{how} after {count} steps ({seconds:.1f} s)", FALLEN
        elif over:
            label, color = f"balanced for all {count} steps ({seconds:.0f} s)", ALIVE
        else:
            label, color = f"step {count}", MUTED
        pen.text(middle, bottom - 16, label, color, 14, bold=over, anchor="ms")

    def _plant(self, pen: _Pen, middle: float, rail: float, state: States, color: str) -> None:
        x, theta = middle + float(state[0]) * PIXELS_PER_METRE, float(state[2])
        pivot = (x, rail - 32)
        for side in (-1, 1):  # how far it may lean before the episode ends
            pen.line(pivot, _at(pivot, side * THETA_LIMIT, self.reach + 14), GHOST, 1.6)
        pen.text(*_at(pivot, THETA_LIMIT, self.reach + 18), "12°", TRACK, 10)
        for offset in (-17, 17):
            pen.disc((x + offset, rail - 6.5), 6, INK)
        pen.box(x - 32, pivot[1] - 4, x + 32, rail - 9, CART, 5)
        tip = _at(pivot, theta, self.reach)
        pen.line(pivot, tip, color, 8)
        pen.disc(tip, 4, color)
        pen.disc(pivot, 6.5, color)
        pen.disc(pivot, 2.2, FLOOR)


def _at(pivot: Point, theta: float, distance: float) -> Point:
    """The point that leans by theta from the upright, to the right if positive."""
    return pivot[0] + math.sin(theta) * distance, pivot[1] - math.cos(theta) * distance


def animate_cartpole(
    before: States,
    after: States,
    path: Path,
    *,
    length: float,
    title: str = "Actuator flipped",
    flipped: bool = True,
    max_frames: int = 120,
) -> Path:
    """Write a looping GIF of two episodes, in real time at 20 frames a second.

    An episode that has ended stands still under a label that says how. The last frame shows how
    the longer episode ended, however early the film had to stop.

    Args:
        before: State (x [m], dx/dt, theta [rad], dtheta/dt) that each step led to (`next_obs`,
            not `obs`), shape (T, 4): where the pole fell, the last one is beyond the limits.
        after: The same, of the adapted policy; its own T.
        path: GIF file to write.
        length: Half of the pole's length, as the task has it [m].
        title: Headline.
        flipped: Whether to show that the actuator pushes against what is asked for.
        max_frames: Frames at most; 120 last 6 s, and the pauses at both ends.

    Returns:
        ``path``.

    Raises:
        ValueError: A trajectory that is empty or not (T, 4).
    """
    from PIL import Image

    for name, states in (("before", before), ("after", after)):
        if states.ndim != 2 or states.shape[1] != 4 or len(states) == 0:
            raise ValueError(f"{name}: expected shape (T, 4) with T > 0, received {states.shape}")
    film = _Film(before, after, length, title, flipped)
    last = max(len(before), len(after))
    per_frame = FRAME_SECONDS / TIME_STEP
    count = min(max_frames - 1, math.ceil(last / per_frame))
    frames = [film.frame(1 + int(i * per_frame)) for i in range(count)] + [film.frame(last)]
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
