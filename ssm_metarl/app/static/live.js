// The live view: the server simulates a few seconds ahead, the browser plays them and asks for more.
// A flip is asked for a little ahead of the picture, so that what follows arrives before it is shown.
"use strict";
window.ssm = window.ssm || {};

ssm.live = (element, props, trigger, watch) => {
  const STEP = 20; // milliseconds
  const AHEAD = 90; // steps in hand below which more are asked for
  const FLIP_AHEAD = 12; // steps between the button and the flip
  const UPRIGHT = [0, 0, 0, 0]; // before it begins
  const PATIENCE = 5000; // milliseconds, after which a request counts as lost
  const $ = (selector) => element.querySelector(selector);
  let run = null, states = [], events = [], clock = 0, playing = false, last = null;
  let asked = null, colours = null, shown = 0, length = 0.5;

  const step = () => Math.min(Math.floor(clock / STEP), states.length - 1);

  function ask(name, detail) {
    if (asked !== null && performance.now() - asked < PATIENCE && name === "more") return;
    asked = performance.now();
    trigger(name, { run, ...detail });
  }

  function take() { // what the server sent: a piece of this run, or the first piece of a new one
    const piece = props.value;
    asked = null;
    if (!piece || !piece.run) return;
    if (piece.run !== run) {
      [run, states, events, clock, shown] = [piece.run, [], [], 0, 0];
      $("[data-log]").replaceChildren();
    }
    if (piece.from > states.length) return; // of a moment that was taken back
    states = states.slice(0, piece.from).concat(piece.states);
    events = events.filter((e) => e.step < piece.from).concat(piece.events);
    length = piece.length;
    if (!playing && piece.play) start();
  }

  function tell() { // events that the picture has reached
    const now = step();
    const due = events.filter((e) => e.step <= now);
    if (due.length === shown || due.length === 0) return;
    shown = due.length;
    const list = $("[data-log]");
    list.replaceChildren(...due.slice(-8).reverse().map((e) => {
      const item = document.createElement("li");
      item.dataset.kind = e.kind;
      item.textContent = `${((e.step * STEP) / 1000).toFixed(1)} s: ${e.text}`;
      return item;
    }));
    const latest = due[due.length - 1];
    $("[data-state]").textContent = latest.state;
    $("[data-state]").dataset.kind = latest.kind;
  }

  function frame(now) {
    if (!playing || !element.isConnected) return;
    if (last !== null) {
      const limit = (states.length - 1) * STEP; // never beyond what has arrived
      clock = Math.min(clock + Math.min(now - last, 100), Math.max(limit, 0));
    }
    last = now;
    if (states.length - step() < AHEAD) ask("more", { have: states.length });
    paint();
    requestAnimationFrame(frame);
  }

  function paint() {
    colours = colours || ssm.pole.palette(element);
    const at = Math.max(step(), 0), part = Math.min(clock / STEP - at, 1);
    const a = states[at] || UPRIGHT, b = states[at + 1] || a;
    const jump = Math.abs(a[0] - b[0]) > 0.5; // a new episode: nothing lies between
    const mix = (i) => (jump ? a[i] : a[i] + (b[i] - a[i]) * part);
    ssm.pole.draw($("canvas"), [mix(0), mix(1)],
      { length, lost: a[3] === 1, push: a[2], colours });
    $("[data-clock]").textContent = `${(clock / 1000).toFixed(1)} s`;
    tell();
  }

  function start() {
    [playing, last] = [true, null];
    $("[data-do=pause]").textContent = "Pause";
    for (const name of ["pause", "flip"]) $(`[data-do=${name}]`).disabled = false;
    requestAnimationFrame(frame);
  }

  $("[data-do=start]").onclick = () => { playing = false; ask("begin", {}); };
  $("[data-do=flip]").onclick = () => ask("flip", { at: step() + FLIP_AHEAD });
  $("[data-do=pause]").onclick = () => {
    if (!playing) return start();
    playing = false;
    $("[data-do=pause]").textContent = "Go on";
  };
  new ResizeObserver(() => { if (!playing) paint(); }).observe(element);
  new MutationObserver(() => { colours = null; if (!playing) paint(); })
    .observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watch("value", take);
};
