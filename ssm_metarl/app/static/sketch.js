// Draws a plant on a canvas from the shapes of its family's sketch (handlers/drawing.py), in the
// plant's own units, y upwards; everything about time is in player.js and live.js.
"use strict";
window.ssm = window.ssm || {};

ssm.sketch = (() => {
  const ROLES = { ground: "--ssm-rail", body: "--ssm-body", part: "--ssm-part", joint: "--ssm-ink",
    force: "--ssm-ink", lost: "--ssm-before" };
  const MARGIN = 6; // pixels around the extent

  // A canvas as sharp as the screen; returns its context, in CSS pixels.
  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = canvas.getBoundingClientRect();
    const w = Math.round(width * ratio), h = Math.round(height * ratio);
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { context, width, height };
  }

  function palette(element) {
    const style = getComputedStyle(element);
    return Object.fromEntries(Object.entries(ROLES).map(([k, v]) => [k, style.getPropertyValue(v).trim()]));
  }

  // Frames with their looks, and the extent, whichever description they came with.
  const unpack = ({ extent, looks }, frames) =>
    frames.map(([look, ...numbers]) => ({ extent, look: looks[look], numbers }));

  // What lies between two frames; the first one where they do not show the same shapes.
  function between(a, b, part) {
    if (a.numbers.length !== b.numbers.length || a.look.length !== b.look.length) return a;
    return { ...a, numbers: a.numbers.map((x, i) => x + (b.numbers[i] - x) * part) };
  }

  // lost: whether the episode has ended in failure; colours: from palette().
  function draw(canvas, { extent, look, numbers }, { lost = false, colours }) {
    const { context: c, width, height } = prepare(canvas);
    if (width === 0) return;
    const [left, right, bottom, top] = extent;
    const scale = Math.min((width - 2 * MARGIN) / (right - left), (height - 2 * MARGIN) / (top - bottom));
    const x = (value) => width / 2 + (value - (left + right) / 2) * scale;
    const y = (value) => height / 2 - (value - (bottom + top) / 2) * scale;
    c.clearRect(0, 0, width, height);
    c.lineCap = "round";
    let next = 0;
    for (const [kind, role, size, still] of look) {
      const count = kind === "disc" ? 2 : 4;
      const p = still.length ? still : numbers.slice(next, next += count);
      const thick = Math.max(2, size * scale);
      c.strokeStyle = c.fillStyle = colours[lost && role === "part" ? "lost" : role];
      c.lineWidth = thick;
      c.beginPath();
      if (kind === "line") { c.moveTo(x(p[0]), y(p[1])); c.lineTo(x(p[2]), y(p[3])); c.stroke(); continue; }
      if (kind === "disc") c.arc(x(p[0]), y(p[1]), thick, 0, 2 * Math.PI);
      else {
        c.roundRect(Math.min(x(p[0]), x(p[2])), Math.min(y(p[1]), y(p[3])),
          Math.abs(p[2] - p[0]) * scale, Math.abs(p[3] - p[1]) * scale, 5);
      }
      c.fill();
    }
  }

  return { between, draw, palette, unpack };
})();
