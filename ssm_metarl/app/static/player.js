// Plays two recorded episodes side by side: before and after adapting. The server sends numbers,
// the browser draws them, one picture for every frame of the screen.
"use strict";
window.ssm = window.ssm || {};

ssm.player = (element, props, watch) => {
  const STEP = 20; // milliseconds of the plant's time
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const $ = (selector) => element.querySelector(selector);
  let data = null, episode = 0, clock = 0, playing = false, last = null;
  let frames = 0, since = null, colours = null;

  const side = (name) => data[name].episodes[episode];
  const duration = () => STEP * Math.max(...["before", "after"].map((n) => side(n).length - 1));

  function caption(name, states, step) {
    const count = Math.min(step, states.length - 1), fell = data[name].fell[episode];
    const seconds = ((count * STEP) / 1000).toFixed(1);
    const over = step >= states.length - 1;
    const text = !over ? `${seconds} s` : fell ? `fell after ${seconds} s` : `balanced for ${seconds} s`;
    const label = $(`[data-caption=${name}]`);
    if (label.textContent !== text) label.textContent = text;
    label.dataset.state = !over ? "running" : fell ? "lost" : "kept";
  }

  function paint() {
    if (!data || !data.before) return;
    colours = colours || ssm.pole.palette(element);
    const exact = clock / STEP;
    for (const name of ["before", "after"]) {
      const states = side(name), end = states.length - 1;
      const at = Math.min(exact, end), low = Math.floor(at), part = at - low;
      const [a, b] = [states[low], states[Math.min(low + 1, end)]];
      const state = [a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part];
      const lost = at >= end && data[name].fell[episode];
      ssm.pole.draw($(`canvas[data-side=${name}]`), state, { length: data.length, lost, colours });
      caption(name, states, Math.floor(exact));
    }
    $("[data-time]").style.width = `${Math.min(100, (100 * clock) / duration())}%`;
  }

  function frame(now) {
    if (!playing || !element.isConnected) return;
    if (last !== null) clock += Math.min(now - last, 100);
    last = now;
    frames += 1;
    since = since ?? now;
    if (now - since >= 1000) { // what the tests read
      element.firstElementChild.dataset.fps = ((1000 * frames) / (now - since)).toFixed(1);
      [frames, since] = [0, now];
    }
    paint();
    if (clock >= duration()) return pause();
    requestAnimationFrame(frame);
  }

  function label() {
    $("[data-do=play]").textContent = playing ? "Pause" : clock >= duration() ? "Replay" : "Play";
  }
  function play() {
    if (!data || !data.before) return;
    if (clock >= duration()) clock = 0;
    [playing, last, frames, since] = [true, null, 0, null];
    label();
    requestAnimationFrame(frame);
  }
  function pause() { playing = false; label(); paint(); }

  function show() {
    data = props.value;
    playing = false;
    const there = Boolean(data && data.before);
    element.firstElementChild.hidden = !there;
    if (!there) return;
    const picker = $("[data-episodes]");
    picker.replaceChildren(...data.before.episodes.map((_, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = index + 1;
      button.setAttribute("aria-label", `Show episode ${index + 1}`);
      button.onclick = () => { choose(index); };
      return button;
    }));
    choose(0);
  }
  function choose(index) {
    episode = index;
    [...$("[data-episodes]").children].forEach((b, i) => b.setAttribute("aria-pressed", i === index));
    [clock, colours] = [still.matches ? duration() : 0, null];
    paint();
    label();
    if (!still.matches) play();
  }

  $("[data-do=play]").onclick = () => (playing ? pause() : play());
  $("[data-do=restart]").onclick = () => { clock = 0; play(); };
  new ResizeObserver(() => { if (!playing) paint(); }).observe(element);
  new MutationObserver(() => { colours = null; if (!playing) paint(); })
    .observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watch("value", show);
  show();
};
