// The live view: the server simulates a few seconds ahead, the browser plays them and asks for more.
// A disturbance is asked for a little ahead of the picture, so that what follows arrives before it is shown.
"use strict";
window.ssm = window.ssm || {};

ssm.live = (element, props, trigger, watch) => {
  const AHEAD = 1800; // milliseconds in hand below which more are asked for
  const DISTURB_AHEAD = 240; // between the button and the disturbance
  const PATIENCE = 5000; // milliseconds, after which a request counts as lost
  const $ = (selector) => element.querySelector(selector);
  let run = null, states = [], events = [], clock = 0, playing = false, last = null;
  let asked = null, colours = null, shown = 0, still = null, each = 20; // milliseconds a step

  const step = () => Math.min(Math.floor(clock / each), states.length - 1);

  function ask(name, detail) {
    if (asked !== null && performance.now() - asked < PATIENCE && name === "more") return;
    asked = performance.now();
    trigger(name, { run, ...detail });
  }

  function take() { // what the server sent: a piece of this run, or the first piece of a new one
    const piece = props.value;
    asked = null;
    if (!piece || !piece.sketch) return;
    each = 1000 * piece.sketch.step_seconds;
    const frames = ssm.sketch.unpack(piece.sketch, piece.frames);
    if (!piece.run) { // another plant, which has not begun yet
      [run, states, events, clock, shown, playing, still] = [null, [], [], 0, 0, false, frames[0]];
      for (const name of ["pause", "disturb"]) $(`[data-do=${name}]`).disabled = true;
      $("[data-do=disturb]").hidden = !piece.disturbance;
      $("[data-do=disturb]").textContent = `Disturb it now: ${piece.disturbance}`;
      $("[data-log]").replaceChildren();
      $("[data-state]").textContent = "not started";
      return paint();
    }
    if (piece.run !== run) {
      [run, states, events, clock, shown] = [piece.run, [], [], 0, 0];
      $("[data-log]").replaceChildren();
    }
    if (piece.from > states.length) return; // of a moment that was taken back
    states = states.slice(0, piece.from).concat(frames.map((frame, i) => (
      { ...frame, ended: piece.ended[i], lost: piece.ended[i] && piece.end_is_failure })));
    events = events.filter((e) => e.step < piece.from).concat(piece.events);
    if (!playing) start();
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
      item.textContent = `${((e.step * each) / 1000).toFixed(1)} s: ${e.text}`;
      return item;
    }));
    const latest = due[due.length - 1];
    $("[data-state]").textContent = latest.state;
    $("[data-state]").dataset.kind = latest.kind;
  }

  function frame(now) {
    if (!playing || !element.isConnected) return;
    if (last !== null) {
      const limit = (states.length - 1) * each; // never beyond what has arrived
      clock = Math.min(clock + Math.min(now - last, 100), Math.max(limit, 0));
    }
    last = now;
    if ((states.length - step()) * each < AHEAD) ask("more", { have: states.length });
    paint();
    requestAnimationFrame(frame);
  }

  function paint() {
    colours = colours || ssm.sketch.palette(element);
    const at = Math.max(step(), 0), a = states[at] || still, b = states[at + 1] || a;
    if (!a) return;
    const begins = a.ended && !b.ended; // a new episode: nothing lies between
    const picture = begins ? a : ssm.sketch.between(a, b, Math.min(clock / each - at, 1));
    ssm.sketch.draw($("canvas"), picture, { lost: a.lost, colours });
    $("[data-clock]").textContent = `${(clock / 1000).toFixed(1)} s`;
    tell();
  }

  function start() {
    [playing, last] = [true, null];
    $("[data-do=pause]").textContent = "Pause";
    for (const name of ["pause", "disturb"]) $(`[data-do=${name}]`).disabled = false;
    requestAnimationFrame(frame);
  }

  $("[data-do=start]").onclick = () => { playing = false; ask("begin", {}); };
  $("[data-do=disturb]").onclick = () => ask("disturb", { at: step() + Math.round(DISTURB_AHEAD / each) });
  $("[data-do=pause]").onclick = () => {
    if (!playing) return start();
    playing = false;
    $("[data-do=pause]").textContent = "Go on";
  };
  new ResizeObserver(() => { if (!playing) paint(); }).observe(element);
  new MutationObserver(() => { colours = null; if (!playing) paint(); })
    .observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watch("value", take);
  take();
};
