// Figures over rounds: curves with stages and depth, stacked bars; and points of several runs.
const MARGIN = { left: 50, right: 12, top: 20, bottom: 30 };

function frame(width, height, n, low, high, format, most) {
  const x = (round) => MARGIN.left + ((round + 0.5) / n) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => MARGIN.top + (1 - (value - low) / (high - low || 1)) * (height - MARGIN.top - MARGIN.bottom);
  const grid = ticks(low, high, most).map((tick) => [
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
    text(MARGIN.left - 7, y(tick) + 4, format(tick), { "text-anchor": "end" }),
  ]);
  return { x, y, grid };
}

function roundLabels(width, n, y) {
  const x = (round) => MARGIN.left + ((round + 0.5) / n) * (width - MARGIN.left - MARGIN.right);
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((k) => n / k <= (width - 60) / 38) || n;
  const found = [];
  for (let round = 0; round < n; round += 1) {
    if (round === 0 || (round + 1) % every === 0) {
      if (round === 0 && every > 1 && x(every - 1) - x(0) < 22) continue;
      found.push(text(x(round), y, round + 1, { "text-anchor": "middle" }));
    }
  }
  return [found, text(width - MARGIN.right, y + 14, "round", { "text-anchor": "end" })];
}

const nearest = (px, width, n) => clamp(Math.floor(((px - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * n), 0, n - 1);

// Parts of the axis in which a value stands still, as [from, to, value].
function stretches(values) {
  const found = [];
  values.forEach((value, i) => {
    if (i && values[i - 1] === value) found[found.length - 1][1] = i;
    else found.push([i, i, value]);
  });
  return found;
}

function curve(one, x, y) {
  const points = one.values.map((value, i) => (known(value) ? [x(i), y(value)] : null)).filter(known);
  const path = points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  const line = svg("path", { d: path, fill: "none", stroke: one.color, "stroke-width": 2, "stroke-dasharray": one.dash, "stroke-linejoin": "round" });
  const few = points.length <= 40 || one.sparse;
  return [line, few ? points.map(([a, b]) => mark(one.mark, a, b, points.length > 25 ? 2.2 : 3, one.color)) : []];
}

// Curves over rounds. `spec`: label, n, series [{name, values, color, dash, mark}], format, stages,
// depth {server, shallow, deep}, height, more(round) → [lines].
function lines(box, spec) {
  const hidden = new Set();
  const change = (name) => { hidden.has(name) ? hidden.delete(name) : hidden.add(name); drawn.get(box)(); };
  draw(box, (width) => {
    const shown = spec.series.filter((one) => !hidden.has(one.name));
    const values = shown.flatMap((one) => one.values).filter(known);
    const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    const pad = Math.max((most - least) * 0.08, 0.005); // labels of accuracies have one decimal
    const low = spec.zero ? 0 : Math.max(0, least - pad);
    const high = spec.top ? Math.min(spec.top, most + pad) : Math.max(most + pad, spec.zero ? 1 : 0);
    const height = spec.height || 270;
    const below = spec.depth ? 96 : 0;
    const { x, y, grid } = frame(width, height, spec.n, low, high, spec.format, 5);
    const shade = spec.stages ? stretches(spec.stages).map(([from, to, stage]) => {
      const [a, b] = [x(from - 0.5), x(to + 0.5)];
      return [
        stage % 2 ? svg("rect", { x: a, y: 4, width: b - a, height: height + below - MARGIN.bottom - 4, fill: "var(--stage)" }) : null,
        b - a > 50 ? text(a + 5, 15, stage ? `stage ${stage}` : "before") : b - a > 14 ? text(a + 3, 15, stage) : null,
      ];
    }) : null;
    const cursor = svg("line", { class: "cursor", y1: 20, y2: height + below - MARGIN.bottom, visibility: "hidden" });
    const drawing = canvas(width, height + below, spec.label, shade, grid, shown.map((one) => curve(one, x, y)),
      spec.depth ? depths(spec.depth, x, height, width) : null, cursor, roundLabels(width, spec.n, height + below - 14));
    explore(drawing, {
      at: (px) => nearest(px, width, spec.n),
      first: () => spec.n - 1,
      step: (round, dx) => clamp(round + dx, 0, spec.n - 1),
      clear: () => cursor.setAttribute("visibility", "hidden"),
      show: (round) => {
        cursor.setAttribute("x1", x(round)); cursor.setAttribute("x2", x(round)); cursor.setAttribute("visibility", "visible");
        const told = spec.series.filter((one) => known(one.values[round])).map((one) => [one.name, spec.format(one.values[round])]);
        return { x: x(round), y: 60, title: `Round ${round + 1}${spec.stages ? `, stage ${spec.stages[round]}` : ""}`, lines: [...told, ...(spec.more ? spec.more(round) : [])] };
      },
    });
    return [legend(spec.series, hidden, spec.series.length > 1 ? change : null), drawing];
  });
}

// Blocks that are active: the server's as a line, the clients' from least to most as a band.
function depths({ server, shallow, deep }, x, top, width) {
  const most = Math.max(1, ...deep, ...server);
  const y = (depth) => top + 62 - (depth / most) * 52;
  const along = (values) => values.map((depth, i) => `${i ? "L" : "M"}${x(i - 0.5).toFixed(1)} ${y(depth).toFixed(1)}H${x(i + 0.5).toFixed(1)}`).join("");
  const back = [...shallow].reverse().map((depth, i) => { const at = shallow.length - 1 - i; return `L${x(at + 0.5).toFixed(1)} ${y(depth).toFixed(1)}H${x(at - 0.5).toFixed(1)}`; }).join("");
  return [
    [0, most].map((tick) => [svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }), text(MARGIN.left - 7, y(tick) + 4, tick, { "text-anchor": "end" })]),
    text(MARGIN.left, y(most) - 7, width > 560 ? "active blocks: the server’s (line), clients’ from least to most (band)" : "active blocks"),
    svg("path", { d: `${along(deep)}${back}Z`, fill: "var(--h3)", opacity: 0.55 }),
    svg("path", { d: along(server), fill: "none", stroke: "var(--ink)", "stroke-width": 1.8 }),
  ];
}

// Stacked bars over rounds. `spec`: label, n, series [{name, values, color}], format.
function bars(box, spec) {
  draw(box, (width) => {
    const height = 190;
    const totals = Array.from({ length: spec.n }, (_, i) => sum(spec.series.map((one) => one.values[i])));
    const { x, y, grid } = frame(width, height, spec.n, 0, Math.max(...totals) * 1.05 || 1, spec.format, 4);
    const wide = clamp((x(1) - x(0)) * (spec.n > 80 ? 1 : 0.72), 0.6, 56);
    const base = new Array(spec.n).fill(0);
    const stacks = spec.series.map((one) => svg("path", {
      fill: one.color,
      d: one.values.map((value, i) => {
        if (!value) return "";
        const [bottom, top] = [y(base[i]), y(base[i] + value)];
        base[i] += value;
        return `M${(x(i) - wide / 2).toFixed(1)} ${bottom.toFixed(1)}V${top.toFixed(1)}h${wide.toFixed(1)}V${bottom.toFixed(1)}Z`;
      }).join(""),
    }));
    const cursor = svg("rect", { fill: "none", class: "cursor", y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom, width: wide + 3, visibility: "hidden" });
    const drawing = canvas(width, height, spec.label, grid, stacks, cursor, roundLabels(width, spec.n, height - 14));
    explore(drawing, {
      at: (px) => nearest(px, width, spec.n),
      first: () => spec.n - 1,
      step: (round, dx) => clamp(round + dx, 0, spec.n - 1),
      clear: () => cursor.setAttribute("visibility", "hidden"),
      show: (round) => {
        cursor.setAttribute("x", x(round) - wide / 2 - 1.5); cursor.setAttribute("visibility", "visible");
        const told = spec.series.map((one) => [one.name, spec.format(one.values[round])]);
        if (spec.series.length > 1) told.push(["together", spec.format(totals[round])]);
        return { x: x(round), y: 40, title: `Round ${round + 1}`, lines: told };
      },
    });
    const all = html("div", { class: "legend" }, html("span", {}, `${spec.format(sum(totals))} in all`));
    return [spec.series.length > 1 ? legend(spec.series.map((one) => ({ ...one, area: true }))) : all, drawing];
  });
}

// Points of several runs: [{name, x, y, low}], on a scale of logarithms where they are far apart.
function scatter(box, spec) {
  draw(box, (width) => {
    const points = spec.points().filter((point) => known(point.x) && known(point.y));
    if (!points.length) return html("p", { class: "absent" }, "No run has both figures on record.");
    const [height, left, right, top, bottom] = [330, 52, 20, 14, 40];
    const xs = points.map((point) => point.x);
    const logs = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 8;
    const form = logs ? Math.log10 : (value) => value;
    let [a, b] = [Math.min(...xs.map(form)), Math.max(...xs.map(form))];
    const wide = Math.max((b - a) * 0.09, logs ? 0.05 : Math.abs(b) * 0.05) || 1;
    [a, b] = [logs || a - wide > 0 ? a - wide : Math.min(a, 0), b + wide];
    const lows = points.map((point) => (known(point.low) ? point.low : point.y));
    const high = Math.min(1, Math.max(...points.map((point) => point.y)) + 0.015);
    const low = Math.max(0, Math.min(...lows) - 0.02);
    const x = (value) => left + ((form(value) - a) / (b - a)) * (width - left - right);
    const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
    const at = logs ? decades(a, b) : ticks(a, b, Math.max(2, Math.floor(width / 130)));
    const grid = [
      ticks(low, high, 5).map((tick) => [svg("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), text(left - 7, y(tick) + 4, percent(tick), { "text-anchor": "end" })]),
      at.map((tick) => [svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }), text(x(tick), height - bottom + 16, spec.format(tick), { "text-anchor": "middle" })]),
      text(width - right, height - 6, spec.axis, { "text-anchor": "end" }),
    ];
    const ring = svg("circle", { r: 10, class: "cursor", fill: "none", visibility: "hidden" });
    const taken = [];
    const drawing = canvas(width, height, spec.label, grid, points.map((point) => {
      const end = x(point.x) > width * 0.6;
      let down = y(point.y) + 4;
      while (taken.some(([tx, ty]) => Math.abs(tx - x(point.x)) < 130 && Math.abs(ty - down) < 13)) down += 13;
      taken.push([x(point.x), down]);
      return [
        svg("line", { x1: x(point.x), x2: x(point.x), y1: y(point.y), y2: y(known(point.low) ? point.low : point.y), stroke: point.color, "stroke-width": 2, opacity: 0.5 }),
        mark(point.mark, x(point.x), y(point.y), 5, point.color),
        text(x(point.x) + (end ? -11 : 11), down, point.name.length > 26 ? `…${point.name.slice(-25)}` : point.name, { "text-anchor": end ? "end" : "start", class: "strong" }),
      ];
    }), ring);
    explore(drawing, {
      at: (px, py) => { const far = points.map((point) => Math.hypot(x(point.x) - px, y(point.y) - py)); const best = far.indexOf(Math.min(...far)); return far[best] < 60 ? best : null; },
      first: () => 0,
      step: (i, dx, dy) => clamp(i + (dx || dy), 0, points.length - 1),
      clear: () => ring.setAttribute("visibility", "hidden"),
      show: (i) => {
        const point = points[i];
        ring.setAttribute("cx", x(point.x)); ring.setAttribute("cy", y(point.y)); ring.setAttribute("visibility", "visible");
        return { x: x(point.x), y: y(point.y), title: point.name, lines: [["personal", percent(point.y)], ["worst tenth", percent(point.low)], [spec.axis, spec.format(point.x)]] };
      },
    });
    return drawing;
  });
}

function decades(a, b) {
  const found = [];
  for (let power = Math.floor(a); power <= b; power += 1) {
    for (const k of b - a > 2.5 ? [1] : [1, 2, 5]) {
      const value = k * 10 ** power;
      if (Math.log10(value) >= a && Math.log10(value) <= b) found.push(value);
    }
  }
  return found;
}
