// Draws a cart with its pole on a canvas, from numbers; everything else about time is in player.js.
// Units are the plant's: metres, radians (positive to the right), steps of 0.02 s.
"use strict";
window.ssm = window.ssm || {};

ssm.pole = (() => {
  const TRACK = 2.4; // metres either side, where an episode ends
  const LEAN = (12 * Math.PI) / 180; // radians, likewise
  const MARGIN = 0.15; // metres beyond the track's ends

  const colour = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();

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
    const names = { ink: "--ssm-ink", rail: "--ssm-rail", ghost: "--ssm-ghost", cart: "--ssm-cart",
      pole: "--ssm-pole", lost: "--ssm-before", kept: "--ssm-after" };
    return Object.fromEntries(Object.entries(names).map(([k, v]) => [k, colour(element, v)]));
  }

  // state: [x, theta]; length: half of the pole's; lost: whether it has fallen;
  // push: -1, 0 or 1, the way that the cart is pushed; colours: from palette().
  function draw(canvas, state, { length, lost = false, push = 0, colours }) {
    const { context: c, width, height } = prepare(canvas);
    if (width === 0) return;
    const scale = width / (2 * (TRACK + MARGIN)); // pixels per metre
    const middle = width / 2, rail = height - 26;
    const reach = Math.max(24, Math.min(2 * length * scale, rail - 40));
    const [x, theta] = state;
    const cartX = middle + x * scale, pivot = rail - 25;
    c.clearRect(0, 0, width, height);
    c.lineCap = "round";

    const line = (x0, y0, x1, y1, stroke, w) => {
      c.strokeStyle = stroke; c.lineWidth = w;
      c.beginPath(); c.moveTo(x0, y0); c.lineTo(x1, y1); c.stroke();
    };
    line(middle - TRACK * scale, rail, middle + TRACK * scale, rail, colours.rail, 2);
    for (const side of [-1, 1]) {
      const end = middle + side * TRACK * scale;
      line(end, rail - 6, end, rail + 6, colours.rail, 2);
      const tip = reach + 10; // how far it may lean
      line(cartX, pivot, cartX + Math.sin(side * LEAN) * tip, pivot - Math.cos(LEAN) * tip,
        colours.ghost, 1.5);
    }
    if (push !== 0) {
      const y = rail + 14, from = cartX + push * 18, to = cartX + push * 44;
      line(from, y, to, y, colours.ink, 2);
      c.fillStyle = colours.ink; c.beginPath();
      c.moveTo(to + push * 7, y); c.lineTo(to, y - 4.5); c.lineTo(to, y + 4.5); c.fill();
    }
    c.fillStyle = colours.ink;
    for (const offset of [-14, 14]) {
      c.beginPath(); c.arc(cartX + offset, rail - 5, 5, 0, 2 * Math.PI); c.fill();
    }
    c.fillStyle = colours.cart;
    c.beginPath(); c.roundRect(cartX - 26, pivot - 4, 52, 21, 5); c.fill();
    const tipX = cartX + Math.sin(theta) * reach, tipY = pivot - Math.cos(theta) * reach;
    line(cartX, pivot, tipX, tipY, lost ? colours.lost : colours.pole, 7);
    c.fillStyle = colours.ink; c.beginPath(); c.arc(cartX, pivot, 4, 0, 2 * Math.PI); c.fill();
  }

  return { draw, palette };
})();
