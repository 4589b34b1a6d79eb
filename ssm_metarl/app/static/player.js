// Plays two recorded episodes side by side: before and after adapting. The server sends numbers,
// the browser draws them, one picture for every frame of the screen.
"use strict";
window.ssm = window.ssm || {};

ssm.player = (element, props, watch) => {
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const $ = (selector) => element.querySelector(selector);
  let data = null, frames = {}, step = 20, episode = 0, clock = 0, playing = false, last = null;
  let painted = 0, since = null, colours = null;

  const side = (name) => frames[name][episode];
  const duration = () => step * Math.max(...["before", "after"].map((n) => side(n).length - 1));

  function caption(name, states, now) {
    const count = Math.min(now, states.length - 1), failed = data[name].failed[episode];
    const seconds = ((count * step) / 1000).toFixed(1);
    const over = now >= states.length - 1;
    const text = !over ? `${seconds} s` : failed ? `failed after ${seconds} s` : `ran for ${seconds} s`;
    const label = $(`[data-caption=${name}]`);
    if (label.textContent !== text) label.textContent = text;
    label.dataset.state = !over ? "running" : failed ? "lost" : "kept";
  }

  function paint() {
    if (!data || !data.before) return;
    colours = colours || ssm.sketch.palette(element);
    const exact = clock / step;
    for (const name of ["before", "after"]) {
      const states = side(name), end = states.length - 1;
      const at = Math.min(exact, end), low = Math.floor(at), part = at - low;
      const picture = ssm.sketch.between(states[low], states[Math.min(low + 1, end)], part);
      const lost = at >= end && data[name].failed[episode];
      ssm.sketch.draw($(`canvas[data-side=${name}]`), picture, { lost, colours });
      caption(name, states, Math.floor(exact));
    }
    $("[data-time]").style.width = `${Math.min(100, (100 * clock) / duration())}%`;
  }

  function frame(now) {
    if (!playing || !element.isConnected) return;
    if (last !== null) clock += Math.min(now - last, 100);
    last = now;
    painted += 1;
    since = since ?? now;
    if (now - since >= 1000) { // what the tests read
      element.firstElementChild.dataset.fps = ((1000 * painted) / (now - since)).toFixed(1);
      [painted, since] = [0, now];
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
    [playing, last, painted, since] = [true, null, 0, null];
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
    step = 1000 * data.sketch.step_seconds;
    for (const name of ["before", "after"]) {
      frames[name] = data[name].episodes.map((episode) => ssm.sketch.unpack(data.sketch, episode));
    }
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
