"use strict";
// What all figures have in common. Words from runs become text nodes, never markup.
const runs = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const text = (x, y, words, attributes) => svg("text", { x, y, ...attributes }, String(words));

const known = (value) => value !== null && value !== undefined;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : "–");
const signed = (value) => { const tenths = Math.round(1000 * value); return `${tenths > 0 ? "+" : tenths < 0 ? "−" : "±"}${(Math.abs(tenths) / 10).toFixed(1)}`; };
const count = (value) => (known(value) ? value.toLocaleString("en") : "–");
const scaled = (units, base) => (value) => {
  if (!known(value)) return "–";
  let power = 0;
  while (Math.abs(value) >= base && power < units.length - 1) { value /= base; power += 1; }
  return `${power || value % 1 ? value.toFixed(value < 10 ? 2 : 1).replace(/\.?0+$/, "") : value} ${units[power]}`;
};
const bytes = scaled(["B", "kB", "MB", "GB", "TB"], 1000);
const flops = scaled(["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"], 1000);
const seconds = (value) => (known(value) ? `${value < 10 ? value.toFixed(2) : value.toFixed(0)} s` : "–");

const ROLES = {
  personal: { name: "personal", color: "var(--personal)", dash: "", mark: "circle" },
  global: { name: "global expert", color: "var(--global)", dash: "7 3", mark: "square" },
  local: { name: "local expert", color: "var(--local)", dash: "2 3", mark: "triangle" },
  oracle: { name: "oracle gate (bound)", color: "var(--oracle)", dash: "1 4", mark: "diamond" },
  zero_shot: { name: "zero-shot", color: "var(--zero)", dash: "10 4 2 4", mark: "cross" },
};
const CYCLE = ["var(--personal)", "var(--global)", "var(--local)", "var(--oracle)", "var(--fifth)", "var(--zero)"];
const DASHES = ["", "7 3", "2 3", "10 4 2 4", "1 4", "12 3"];
const MARKS = ["circle", "square", "triangle", "diamond", "cross"];

function mark(kind, x, y, size, color) {
  if (kind === "none") return null;
  if (kind === "ring") return svg("circle", { cx: x, cy: y, r: 1.1 * size, fill: "var(--card)", stroke: color, "stroke-width": 2 });
  const paint = { fill: color, stroke: "var(--card)", "stroke-width": 1.2 };
  if (kind === "square") return svg("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, ...paint });
  if (kind === "triangle") return svg("path", { d: `M${x} ${y - 1.3 * size}L${x + 1.2 * size} ${y + size}H${x - 1.2 * size}Z`, ...paint });
  if (kind === "diamond") return svg("path", { d: `M${x} ${y - 1.4 * size}L${x + 1.4 * size} ${y}L${x} ${y + 1.4 * size}L${x - 1.4 * size} ${y}Z`, ...paint });
  if (kind === "cross") return svg("path", { d: `M${x - size} ${y - size}L${x + size} ${y + size}M${x - size} ${y + size}L${x + size} ${y - size}`, stroke: color, "stroke-width": 2, fill: "none" });
  return svg("circle", { cx: x, cy: y, r: 1.1 * size, ...paint });
}

function ticks(low, high, most) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / most));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => span / s <= most);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * span; k += 1) found.push(k * step);
  return found;
}

// What is pointed at, or moved to by arrow keys, is said in one place; screen readers hear it too.
const tip = html("div", { id: "tip", role: "status" });
document.body.append(tip);
function say(x, y, title, lines) {
  tip.replaceChildren(html("b", {}, title), ...lines.map(([name, value]) => html("span", {}, html("i", { style: "font-style:normal" }, name), html("i", { style: "font-style:normal" }, value))));
  tip.classList.add("on");
  const box = tip.getBoundingClientRect();
  tip.style.left = `${clamp(x + 14, 6, Math.max(6, innerWidth - box.width - 6))}px`;
  tip.style.top = `${clamp(y + 14 + box.height > innerHeight ? y - box.height - 12 : y + 14, 6, Math.max(6, innerHeight - box.height - 6))}px`;
}
const hush = () => tip.classList.remove("on");

// Makes a drawing answer to pointers and keys. `at(x, y)` finds what is there, `step(item, dx, dy)`
// the next one, `show(item)` marks it and gives {x, y, title, lines}, `choose(item)` takes it.
function explore(drawing, { at, first, step, show, clear, choose }) {
  let item = null;
  const point = (event) => {
    const box = drawing.getBoundingClientRect();
    const view = drawing.viewBox.baseVal;
    return [((event.clientX - box.left) * view.width) / box.width, ((event.clientY - box.top) * view.height) / box.height];
  };
  const tell = (found) => {
    item = found;
    if (!known(found)) { clear(); hush(); return; }
    const said = show(found);
    const box = drawing.getBoundingClientRect();
    const view = drawing.viewBox.baseVal;
    say(box.left + (said.x * box.width) / view.width, box.top + (said.y * box.height) / view.height, said.title, said.lines);
  };
  drawing.addEventListener("pointermove", (event) => tell(at(...point(event))));
  drawing.addEventListener("pointerleave", () => tell(null));
  drawing.addEventListener("click", (event) => { const found = at(...point(event)); if (choose && known(found)) choose(found); });
  drawing.addEventListener("blur", () => tell(null));
  drawing.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) { event.preventDefault(); tell(known(item) ? step(item, ...moves[event.key]) : first()); }
    else if (event.key === "Escape") tell(null);
    else if ((event.key === "Enter" || event.key === " ") && choose && known(item)) { event.preventDefault(); choose(item); }
  });
}

// Draws into a box, and again when its width changes.
const drawn = new Map();
function draw(box, make) {
  let width = 0;
  const again = () => {
    const now = Math.round(box.clientWidth);
    if (!now) return;
    width = now;
    const top = box.scrollTop;
    box.replaceChildren(...[make(now)].flat(Infinity));
    box.scrollTop = top;
  };
  drawn.set(box, again);
  new ResizeObserver(() => { if (Math.round(box.clientWidth) !== width) again(); }).observe(box);
  again();
}

const canvas = (width, height, label, ...children) =>
  svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, tabindex: 0 }, ...children);

function legend(series, hidden, change) {
  return html("div", { class: "legend" }, series.map((one) => {
    const sample = svg("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" },
      one.area ? svg("rect", { x: 5, y: 0, width: 14, height: 12, rx: 2, fill: one.color }) : [
        svg("path", { d: "M0 6H26", stroke: one.color, "stroke-width": 2, "stroke-dasharray": one.dash, fill: "none" }), mark(one.mark, 13, 6, 3.4, one.color)].filter(known));
    if (!change) return html("span", {}, sample, one.name);
    return html("button", { type: "button", "aria-pressed": String(!hidden.has(one.name)), onclick: () => change(one.name) }, sample, one.name);
  }));
}
