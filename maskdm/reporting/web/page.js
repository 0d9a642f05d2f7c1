"use strict";
// Draws what `#data` holds; it computes no result. Names go in as text, never as HTML.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(parent, tag, attributes = {}, text) {
  const node = parent.namespaceURI === SVG || tag === "svg" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const hue = color => (color ? `--hue: ${color}` : null);
const short = value => String(+value.toPrecision(4));

// --- charts ----------------------------------------------------------------------------------------------------

function ticks([low, high], log, count) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 3, 5]) found.push(+(digit * 10 ** power).toPrecision(3));
    const inside = found.filter(value => value >= low && value <= high);
    if (inside.length >= 3) return inside.length > 9 ? inside.filter(value => /^[0.]*[125]/.test(String(value))) : inside;
  }
  const raw = (high - low || 1) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= 0.75 * raw);
  const even = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) even.push(+value.toPrecision(6));
  return log ? even.filter(value => value > 0) : even;
}

const LEFT = 52, RIGHT = 14, TOP = 10, BOTTOM = 46;
let clips = 0;

// An empty chart with its axes: where values lie, and the group to draw in.
function frame(svg, { x, y, label }) {
  svg.replaceChildren();
  const width = Math.max(260, svg.clientWidth || 480), height = Math.round(Math.min(360, Math.max(250, width * 0.62)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  const scale = (axis, from, to) => {
    const bend = axis.log ? Math.log : value => value, [low, high] = axis.domain.map(bend);
    return value => from + ((bend(value) - low) / (high - low || 1)) * (to - from);
  };
  const across = scale(x, LEFT, width - RIGHT), up = scale(y, height - BOTTOM, TOP);
  for (const value of ticks(y.domain, y.log, 5)) {
    make(svg, "line", { class: y.zero && value === 0 ? "base" : "rule", x1: LEFT, x2: width - RIGHT, y1: up(value), y2: up(value) });
    make(svg, "text", { x: LEFT - 8, y: up(value) + 4, "text-anchor": "end" }, short(value));
  }
  make(svg, "line", { class: "base", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM });
  let end = -Infinity;
  for (const value of x.ticks || ticks(x.domain, x.log, width < 420 ? 4 : 6)) {
    const text = short(value), half = text.length * 3.6;
    if (across(value) - half < end + 6) continue; // it would touch the one before
    end = across(value) + half;
    make(svg, "text", { x: across(value), y: height - BOTTOM + 18, "text-anchor": "middle" }, text);
  }
  make(svg, "text", { x: LEFT + (width - LEFT - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, x.label);
  const clip = `clip${++clips}`;
  make(make(svg, "clipPath", { id: clip }), "rect", { x: LEFT, y: TOP - 6, width: width - LEFT - RIGHT + 8, height: height - TOP - BOTTOM + 6 });
  return { across, up, width, height, plot: make(svg, "g", { "clip-path": `url(#${clip})` }) };
}

function path(points) { return points.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join(""); }

const numbers = list => list.filter(value => value !== null);
const span = values => [Math.min(...values), Math.max(...values)];

// --- curves ----------------------------------------------------------------------------------------------------

const controls = byId("curves-controls"), cursor = byId("cursor");
const chosen = form => new Set([...form.querySelectorAll("input[name=arm]:checked")].map(input => input.value));
let places = {};

function curves() {
  const axis = controls.elements.axis.value, { label, unit } = data.curves.axes[axis];
  const logX = controls.elements["log-x"].checked, logY = controls.elements["log-y"].checked, zoom = controls.elements.zoom.checked;
  const shown = data.arms.filter(arm => chosen(controls).has(arm.name));
  for (const measure of data.curves.measures) {
    const lines = shown.map(arm => [arm, data.curves.lines[arm.name][measure.key][axis]]);
    const all = data.arms.map(arm => data.curves.lines[arm.name][measure.key][axis]);
    const xs = all.flatMap(line => line.x), values = all.flatMap(line => numbers([...line.mean, ...line.low, ...line.high]));
    const few = all.every(line => line.x.length <= 12), positive = values.filter(value => value > 0);
    const wide = span(logY ? positive : values), margin = 0.04 * (wide[1] - wide[0] || wide[1]);
    const whole = logY ? [wide[0] / 1.04, wide[1] * 1.04] : [Math.max(0, wide[0] - margin), wide[1] + margin];
    const y = { log: logY, domain: zoom && measure.window ? measure.window : whole };
    const x = { log: logX, domain: [logX ? Math.min(...xs) : 0, Math.max(...xs) * 1.01], label: `${label} (${unit})` };
    const svg = byId(`chart-${measure.key}`);
    const view = frame(svg, { x, y, label: `${measure.label} against ${label}, ${shown.map(arm => arm.name).join(", ") || "no arm"}` });
    svg.dataset.axis = axis;
    for (const [arm, line] of lines) {
      const at = line.x.map(view.across), style = hue(arm.color);
      const group = make(view.plot, "g", { "data-arm": arm.name });
      const edge = key => line[key].map((value, index) => [at[index], view.up(logY ? Math.max(value, y.domain[0] / 2) : value)]);
      if (line.low.every(value => value !== null)) make(group, "path", { class: "band", style, d: `${path([...edge("high"), ...edge("low").reverse()])}Z` });
      make(group, "path", { class: `line${arm.dashed ? " dashed" : ""}`, style, d: path(edge("mean")) });
      if (few) for (const [a, b] of edge("mean")) make(group, "circle", { class: "dot", style, cx: a, cy: b, r: 3.6 });
    }
    places[measure.key] = { ...view, domain: x.domain, reach: Math.max(...xs), mark: make(svg, "line", { class: "cursor", y1: TOP, y2: view.height - BOTTOM }) };
  }
  read();
}

// The last values measured up to the place of the slider.
function read() {
  const axis = controls.elements.axis.value, unit = data.curves.axes[axis].unit;
  const at = (places[data.curves.measures[0].key].reach * cursor.value) / 100, text = `${+at.toPrecision(3)} ${unit}`;
  byId("cursor-at").textContent = text;
  cursor.setAttribute("aria-valuetext", text);
  for (const { mark, across, domain } of Object.values(places)) {
    const x = across(Math.min(Math.max(at, domain[0]), domain[1]));
    mark.setAttribute("x1", x); mark.setAttribute("x2", x);
  }
  const body = byId("cursor-values");
  body.replaceChildren();
  for (const arm of data.arms.filter(arm => chosen(controls).has(arm.name))) {
    const row = make(body, "tr"), head = make(row, "th", { scope: "row" });
    make(head, "span", { class: `key${arm.dashed ? " dashed" : ""}`, style: hue(arm.color) });
    head.append(arm.name);
    for (const { key } of data.curves.measures) {
      const line = data.curves.lines[arm.name][key][axis], last = line.x.filter(value => value <= at * 1.0001).length - 1;
      const ends = last >= 0 && line.low[last] !== null ? ` (${short(line.low[last])} to ${short(line.high[last])})` : "";
      make(row, "td", { class: "number" }, last < 0 ? "–" : `${short(line.mean[last])}${ends}`);
    }
  }
}

function follow(event) {
  const svg = event.currentTarget, view = places[svg.id.replace("chart-", "")], box = svg.getBoundingClientRect();
  if (!view || !box.width) return;
  const x = ((event.clientX - box.left) / box.width) * view.width, share = (x - LEFT) / (view.width - LEFT - RIGHT);
  const { domain } = view, log = controls.elements["log-x"].checked;
  const value = log ? domain[0] * (domain[1] / domain[0]) ** share : domain[0] + share * (domain[1] - domain[0]);
  cursor.value = Math.round((100 * value) / view.reach);
  read();
}

// --- budgets and search ----------------------------------------------------------------------------------------

function budgets() {
  if (!data.budgets) return;
  const { series, label, unit } = data.budgets, xs = [...new Set(series.flatMap(own => own.x))].sort((a, b) => a - b);
  const [low, high] = span([0, ...series.flatMap(own => numbers([...own.mean, ...own.low, ...own.high]))]), margin = 0.06 * (high - low);
  const x = { log: true, domain: [xs[0] / 1.25, xs[xs.length - 1] * 1.25], label: `${label} (${unit})`, ticks: xs };
  const { plot, across, up } = frame(byId("chart-budgets"), { x, y: { domain: [low - margin, high + margin], zero: true }, label: "Change of the held-out loss against the training compute" });
  series.forEach((own, index) => {
    const style = hue(own.color), nudge = 5 * (index - (series.length - 1) / 2), at = own.x.map(value => across(value) + nudge);
    make(plot, "path", { class: `line${own.dashed ? " dashed" : ""}`, style, d: path(at.map((place, i) => [place, up(own.mean[i])])) });
    at.forEach((place, i) => {
      if (own.low[i] !== null) make(plot, "line", { class: "line", style, x1: place, x2: place, y1: up(own.low[i]), y2: up(own.high[i]) });
      make(plot, "circle", { class: "dot", style, cx: place, cy: up(own.mean[i]), r: 4 });
    });
  });
  legend("budgets-legend", series.map(own => [own.name, own.color, own.dashed]));
}

function search() {
  const { points, best, colors, budget } = data.search, losses = points.map(point => point.loss);
  const complete = points.filter(point => !point.pruned).map(point => point.loss), [low, high] = span(complete.length ? complete : losses);
  const top = Math.min(Math.max(...losses), high * 1.25);
  const x = { domain: [0.4, points.length + 0.6], label: `trial of ${budget}, as they ended` };
  const { plot, across, up } = frame(byId("chart-search"), { x, y: { log: true, domain: [low / 1.03, top * 1.03] }, label: `Held-out loss of ${points.length} trials` });
  const steps = best.flatMap((value, index) => (value === null ? [] : [[across(index + 0.5), up(value)], [across(index + 1.5), up(value)]]));
  make(plot, "path", { class: "line", d: path(steps) });
  points.forEach((point, index) => {
    const place = { cx: across(index + 1), cy: up(Math.min(point.loss, top)), r: 4.5 };
    const dot = make(plot, "circle", point.pruned ? { class: "pruned", ...place } : { class: "dot", style: hue(colors[point.mask]), ...place });
    make(dot, "title", {}, `trial ${point.trial}: ${point.masks}, ${short(point.loss)}${point.pruned ? ", pruned" : ""}`);
  });
  const pruned = points.some(point => point.pruned) ? [["pruned (ring)", "var(--strong)"]] : [];
  legend("search-legend", [...Object.entries(colors), ["best so far", null], ...pruned]);
}

function legend(id, entries) {
  const list = byId(id);
  list.replaceChildren();
  for (const [name, color, dashed] of entries) {
    const item = make(list, "li");
    make(item, "span", { class: `key${dashed ? " dashed" : ""}`, style: hue(color) });
    item.append(name);
  }
}

// --- samples ---------------------------------------------------------------------------------------------------

const choice = byId("samples-controls"), snapshot = byId("snapshot"), grids = byId("grids");

function samples() {
  const { steps, seeds, grids: all, real, metric } = data.samples;
  const step = steps[snapshot ? snapshot.value : 0], seed = choice.elements.seed ? choice.elements.seed.value : seeds[0];
  const share = step && Object.keys(Object.values(Object.values(all)[0] || {})[0] || {}).find(key => +key === step.share);
  if (snapshot) {
    byId("snapshot-at").textContent = step.label;
    snapshot.setAttribute("aria-valuetext", step.label);
  }
  grids.replaceChildren();
  for (const arm of data.arms.filter(arm => chosen(choice).has(arm.name))) {
    const found = ((all[arm.name] || {})[seed] || {})[share];
    panel(arm.name, found && found.uri, found ? `${metric} ${found.distance}` : "none kept", `Samples of ${arm.name}, seed ${seed}, at ${step ? step.label : ""}`);
  }
  if (real) panel("real, held out", real, "", "Real held-out images");
}

function panel(name, uri, note, alt) {
  const figure = make(grids, "figure", { "data-name": name }), caption = make(figure, "figcaption");
  make(caption, "b", {}, name);
  make(caption, "span", {}, note);
  if (uri) make(figure, "img", { src: uri, alt });
}

// --- tables ----------------------------------------------------------------------------------------------------

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells], head = heads[column], body = table.tBodies[0];
  const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = row => JSON.parse(row.cells[column].dataset.sort);
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null); // what has no value stays below
    return turn * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  });
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
  body.append(...rows);
}
for (const table of document.querySelectorAll("table.sortable"))
  for (const button of table.tHead.querySelectorAll("button"))
    button.addEventListener("click", () => sortBy(table, button.closest("th").cellIndex));

// --- start -----------------------------------------------------------------------------------------------------

const draw = () => { curves(); budgets(); search(); };
for (const form of [controls, choice]) form.addEventListener("submit", event => event.preventDefault());
controls.addEventListener("change", curves);
cursor.addEventListener("input", read);
choice.addEventListener("input", samples);
for (const { key } of data.curves.measures) byId(`chart-${key}`).addEventListener("pointermove", follow);
let width = 0;
new ResizeObserver(([entry]) => {
  if (Math.abs(entry.contentRect.width - width) < 1) return;
  width = entry.contentRect.width;
  draw();
}).observe(document.querySelector("main"));
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
draw();
samples();
})();
