// Draws a chart as SVG from the description that charts.py makes; the pointer reads values off it.
// Colours are names (blue, orange, ...) of the style sheet, so that they follow the dark mode.
"use strict";
window.ssm = window.ssm || {};

ssm.chart = (element, props, watch) => {
  const NS = "http://www.w3.org/2000/svg";
  const paintOf = (name) => `var(--ssm-${name})`;

  function make(tag, attributes, parent, text) {
    const node = document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  function nice(low, high, count, least) { // round numbers between low and high
    const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(least, [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw));
    const ticks = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) ticks.push(t);
    return ticks;
  }
  const decades = (low, high) => {
    const ticks = [];
    for (let e = Math.ceil(Math.log10(low)); e <= Math.floor(Math.log10(high)); e += 1) ticks.push(10 ** e);
    return ticks;
  };
  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
    if (size > 0 && size < 1e-3) return value.toExponential(0);
    return `${+value.toPrecision(3)}`;
  }

  function axis(spec, low, high, from, to) {
    const log = Boolean(spec.log), f = log ? Math.log10 : (v) => v;
    const [a, b] = [f(low), f(high)];
    return {
      at: (v) => from + ((f(v) - a) / (b - a || 1)) * (to - from),
      ticks: log ? decades(low, high)
        : nice(low, high, Math.max(2, Math.abs(to - from) / 60), spec.whole ? 1 : 0),
    };
  }

  function legend(spec, figure) {
    const list = document.createElement("ul");
    list.className = "ssm-legend";
    for (const s of spec.series.filter((one) => one.name)) {
      const item = document.createElement("li"), key = document.createElement("span");
      key.style.setProperty("--key", paintOf(s.color));
      key.dataset.style = s.style || "line";
      item.append(key, s.name);
      list.append(item);
    }
    figure.append(list);
  }

  function lines(spec, figure, width) {
    const height = 240, left = 46, right = 14, top = 12, bottom = 40;
    const all = spec.series.flatMap((s) => s.points);
    const xs = all.map((p) => p[0]).concat(spec.x.at || []);
    const [x0, x1] = [spec.x.min ?? Math.min(...xs), spec.x.max ?? Math.max(...xs)];
    const [y0, y1] = [spec.y.min, spec.y.max];
    const x = axis(spec.x, x0, x1 > x0 ? x1 : x0 + 1, left, width - right);
    const y = axis(spec.y, y0, y1, height - bottom, top);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": spec.summary }, figure);
    for (const t of y.ticks) {
      make("line", { x1: left, x2: width - right, y1: y.at(t), y2: y.at(t), class: "ssm-grid" }, svg);
      make("text", { x: left - 6, y: y.at(t) + 4, class: "ssm-tick", "text-anchor": "end" }, svg, short(t));
    }
    for (const t of x.ticks) {
      make("text", { x: x.at(t), y: height - bottom + 16, class: "ssm-tick", "text-anchor": "middle" },
        svg, short(t));
    }
    make("text", { x: (left + width - right) / 2, y: height - 6, class: "ssm-axis",
      "text-anchor": "middle" }, svg, spec.x.label);
    make("text", { x: 12, y: (top + height - bottom) / 2, class: "ssm-axis", "text-anchor": "middle",
      transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, svg, spec.y.label);
    const clamp = (v) => Math.max(y0, Math.min(y1, v));
    for (const ref of spec.refs || []) {
      make("line", { x1: left, x2: width - right, y1: y.at(ref.y), y2: y.at(ref.y), class: "ssm-ref" }, svg);
      make("text", { x: width - right, y: y.at(ref.y) - 5, class: "ssm-tick", "text-anchor": "end" },
        svg, ref.label);
    }
    for (const s of spec.series) {
      const band = s.band || [];
      if (band.length > 1) {
        const there = band.map((p) => `${x.at(p[0])},${y.at(clamp(p[1]))}`);
        const back = band.slice().reverse().map((p) => `${x.at(p[0])},${y.at(clamp(p[2]))}`);
        make("polygon", { points: there.concat(back).join(" "), fill: paintOf(s.color), opacity: 0.16 }, svg);
      }
      if (s.style !== "dots" && s.points.length > 1) {
        const path = s.points.map((p) => `${x.at(p[0])},${y.at(clamp(p[1]))}`).join(" ");
        make("polyline", { points: path, fill: "none", stroke: paintOf(s.color), "stroke-width": 2.2,
          "stroke-dasharray": s.style === "dashed" ? "6 5" : "none", "stroke-linejoin": "round" }, svg);
      }
      if (s.style === "dots" || s.points.length < 30) {
        for (const p of s.points) {
          make("circle", { cx: x.at(p[0]), cy: y.at(clamp(p[1])), r: s.style === "dots" ? 4 : 2.6,
            fill: paintOf(s.color) }, svg);
        }
      }
    }
    hover(spec, svg, x, y, { left, right, top, bottom, width, height, clamp });
  }

  function hover(spec, svg, x, y, box) { // the nearest x, and what every series says there
    const marks = make("g", { class: "ssm-hover", visibility: "hidden" }, svg);
    const rule = make("line", { y1: box.top, y2: box.height - box.bottom, class: "ssm-ref" }, marks);
    const back = make("rect", { rx: 6, class: "ssm-tip" }, marks);
    const text = make("text", { class: "ssm-tick" }, marks);
    const xs = [...new Set(spec.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    svg.addEventListener("pointerleave", () => marks.setAttribute("visibility", "hidden"));
    svg.addEventListener("pointermove", (event) => {
      if (xs.length === 0) return;
      const area = svg.getBoundingClientRect();
      const px = ((event.clientX - area.left) * box.width) / area.width;
      const value = xs.reduce((a, b) => (Math.abs(x.at(b) - px) < Math.abs(x.at(a) - px) ? b : a));
      const rows = [`${spec.x.label}: ${short(value)}`];
      for (const s of spec.series) {
        const point = s.points.find((p) => p[0] === value);
        if (point) rows.push(`${s.name || spec.y.label}: ${short(point[1])}`);
      }
      text.replaceChildren();
      rows.forEach((row, i) => make("tspan", { x: 0, dy: i === 0 ? 0 : 15 }, text, row));
      const size = text.getBBox(), at = x.at(value);
      const tx = Math.min(Math.max(at + 12, box.left), box.width - size.width - 16);
      text.setAttribute("transform", `translate(${tx + 7} ${box.top + 16})`);
      for (const [k, v] of Object.entries({ x: tx, y: box.top, width: size.width + 14, height: size.height + 10 })) {
        back.setAttribute(k, v);
      }
      rule.setAttribute("x1", at); rule.setAttribute("x2", at);
      marks.setAttribute("visibility", "visible");
    });
  }

  function intervals(spec, figure, width) { // a row for each thing: its value, and an interval
    const narrow = width < 560 || spec.rows.some((r) => r.label.length > 44);
    const row = narrow ? 46 : 30, top = 8, bottom = 38;
    const left = narrow ? 8 : Math.min(330, width * 0.46);
    const right = 24 + 7 * Math.max(8, ...spec.rows.map((r) => (r.text || "").length));
    const height = top + row * spec.rows.length + bottom;
    const ends = spec.rows.flatMap((r) => [r.low ?? r.value, r.high ?? r.value]).concat(spec.ref ?? []);
    let [low, high] = [Math.min(...ends), Math.max(...ends)];
    if (spec.x.log) [low, high] = [low / 1.4, high * 1.4];
    else [low, high] = [Math.min(0, low), high * 1.05 || 1];
    const x = axis(spec.x, low, high, left, width - right);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": spec.summary }, figure);
    for (const t of x.ticks) {
      make("line", { x1: x.at(t), x2: x.at(t), y1: top, y2: height - bottom, class: "ssm-grid" }, svg);
      make("text", { x: x.at(t), y: height - bottom + 16, class: "ssm-tick", "text-anchor": "middle" },
        svg, short(t));
    }
    make("text", { x: (left + width - right) / 2, y: height - 6, class: "ssm-axis",
      "text-anchor": "middle" }, svg, spec.x.label);
    if (spec.ref !== undefined) {
      make("line", { x1: x.at(spec.ref), x2: x.at(spec.ref), y1: top, y2: height - bottom,
        class: "ssm-ref" }, svg);
    }
    spec.rows.forEach((r, i) => {
      const y = top + row * (i + 0.5) + (narrow ? 9 : 0);
      const label = make("text", { x: narrow ? 8 : left - 10, y: narrow ? y - 14 : y + 4, class: "ssm-label",
        "text-anchor": narrow ? "start" : "end" }, svg, r.label);
      const room = narrow ? width - 16 : left - 14;
      for (let end = r.label.length; label.getComputedTextLength() > room && end > 4; end -= 2) {
        label.textContent = `${r.label.slice(0, end - 3)}…`;
      }
      make("title", {}, label, r.label);
      const color = paintOf(r.color || "blue");
      if (r.low !== undefined) {
        make("line", { x1: x.at(r.low), x2: x.at(r.high), y1: y, y2: y, stroke: color, "stroke-width": 3,
          "stroke-linecap": "round", opacity: 0.45 }, svg);
      }
      make("circle", { cx: x.at(r.value), cy: y, r: 5, fill: color }, svg);
      make("text", { x: Math.max(x.at(r.value), x.at(r.high ?? r.value)) + 9, y: y + 4, class: "ssm-tick" },
        svg, r.text || short(r.value));
    });
  }

  function draw() {
    const spec = props.value;
    const figure = document.createElement("figure");
    figure.className = "ssm-chart";
    if (spec && spec.kind) {
      if (spec.title) {
        const caption = document.createElement("figcaption");
        caption.textContent = spec.title;
        figure.append(caption);
      }
      element.firstElementChild.replaceChildren(figure);
      const width = Math.max(280, Math.floor(figure.getBoundingClientRect().width || 600));
      if (spec.series && spec.series.some((s) => s.name)) legend(spec, figure);
      (spec.kind === "lines" ? lines : intervals)(spec, figure, width);
    } else {
      element.firstElementChild.replaceChildren();
    }
  }

  let width = 0;
  new ResizeObserver(() => { // a tab that was hidden has no width until it is shown
    const now = Math.floor(element.getBoundingClientRect().width);
    if (now !== width) { width = now; draw(); }
  }).observe(element);
  watch("value", draw);
  draw();
};
