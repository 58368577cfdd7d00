// Tables of shades: rows of each class by client, shares of weights by client and by class.
const LEVELS = 8;

// `spec`: label, rows [names], columns [names], value(row, column), order [row numbers], most,
// short(value), tell(row, column) → [lines], choose(row), chosen(), foot.
function heat(box, spec) {
  draw(box, (width) => {
    const order = spec.order();
    const [n, m] = [order.length, spec.columns.length];
    const named = n <= 45;
    const long = Math.max(...spec.rows.map((name) => name.length), 1);
    const left = named ? clamp(long * 6.6 + 12, 34, Math.min(150, width * 0.3)) : 34;
    const cell = (width - left - 4) / m;
    const tall = named ? clamp(cell, 15, 26) : Math.max(640 / n, 0.25);
    const slanted = spec.columns.some((name) => name.length * 6.6 > cell - 2);
    const few = !slanted || cell > 9;
    const top = few ? (slanted ? Math.min(96, 12 + Math.max(...spec.columns.map((name) => name.length)) * 5.4) : 18) : 6;
    const height = top + n * tall + (spec.foot ? 34 : 8);
    const shades = Array.from({ length: LEVELS }, () => []);
    const numbers = [];
    order.forEach((row, i) => {
      for (let column = 0; column < m; column += 1) {
        const value = spec.value(row, column);
        if (!value) continue;
        const level = clamp(Math.ceil((value / spec.most(row)) ** 0.6 * LEVELS) - 1, 0, LEVELS - 1);
        const gap = named ? 1 : 0;
        shades[level].push(`M${(left + column * cell).toFixed(2)} ${(top + i * tall).toFixed(2)}h${(cell - gap).toFixed(2)}v${Math.max(tall - gap, 0.2).toFixed(2)}h-${(cell - gap).toFixed(2)}z`);
        if (!named) continue;
        const words = spec.short(value, row);
        if (cell > words.length * 6.4 + 3 && tall >= 15) {
          numbers.push(text(left + (column + 0.5) * cell - 0.5, top + i * tall + tall / 2 + 3.6, words, { "text-anchor": "middle", style: `fill:${level >= 4 ? "var(--card)" : "var(--ink)"};font-size:10.5px` }));
        }
      }
    });
    const clip = (name) => (name.length * 6.6 > left - 10 ? `${name.slice(0, Math.floor((left - 16) / 6.6))}…` : name);
    const heads = few ? spec.columns.map((name, column) => {
      const at = left + (column + 0.5) * cell;
      const cut = name.length > 16 ? `${name.slice(0, 15)}…` : name;
      return slanted ? text(at + 3, top - 6, cut, { transform: `rotate(-60 ${at + 3} ${top - 6})` }) : text(at, top - 6, name, { "text-anchor": "middle" });
    }) : null;
    const ring = svg("rect", { class: "cursor", fill: "none", "stroke-width": 2, visibility: "hidden", style: "opacity:1" });
    const chosen = spec.chosen ? order.indexOf(spec.chosen()) : -1;
    const drawing = canvas(width, height, spec.label,
      svg("rect", { x: left, y: top, width: m * cell, height: n * tall, fill: "var(--faint)" }),
      shades.map((parts, level) => svg("path", { d: parts.join(""), fill: `var(--h${level + 1})` })), numbers, heads,
      named ? order.map((row, i) => text(left - 6, top + i * tall + tall / 2 + 4, clip(spec.rows[row]), { "text-anchor": "end", class: i === chosen ? "strong" : "" }))
        : text(left - 8, top + (n * tall) / 2, `${count(n)} ${spec.kind}`, { "text-anchor": "middle", transform: `rotate(-90 ${left - 8} ${top + (n * tall) / 2})` }),
      chosen >= 0 ? svg("rect", { x: left - 1, y: top + chosen * tall - 1, width: m * cell + 2, height: tall + 2, fill: "none", stroke: "var(--mark)", "stroke-width": 2 }) : null,
      spec.foot ? [text(left, height - 14, spec.foot[0]), text(width - 4, height - 14, spec.foot[1], { "text-anchor": "end" })] : null, ring);
    explore(drawing, {
      at: (px, py) => { const [i, k] = [Math.floor((py - top) / tall), Math.floor((px - left) / cell)]; return i >= 0 && i < n && k < m && px > 0 ? [i, Math.max(k, 0)] : null; },
      first: () => [Math.max(chosen, 0), 0],
      step: ([i, k], dx, dy) => [clamp(i + dy, 0, n - 1), clamp(k + dx, 0, m - 1)],
      clear: () => ring.setAttribute("visibility", "hidden"),
      choose: spec.choose ? ([i]) => spec.choose(order[i]) : null,
      show: ([i, k]) => {
        const size = Math.max(tall, 2);
        for (const [name, value] of Object.entries({ x: left + k * cell, y: top + i * tall - (size - tall) / 2, width: cell, height: size, visibility: "visible" })) ring.setAttribute(name, value);
        return { x: left + (k + 1) * cell, y: top + (i + 1) * tall, title: `${spec.kind === "clients" ? "Client " : "Class "}${spec.rows[order[i]]}`, lines: spec.tell(order[i], k) };
      },
    });
    return drawing;
  });
}

// One row of bars: values with names under them, and the same of one client as outlines above.
function histogram(box, spec) {
  draw(box, (width) => {
    const [height, left, right, top, bottom] = [spec.height || 200, 46, 6, 12, 36];
    const values = spec.values();
    const total = sum(values) || 1;
    const over = spec.over && spec.over();
    const whole = over ? sum(over) || 1 : 1;
    const most = Math.max(...values.map((value) => value / total), ...(over || []).map((value) => value / whole)) * 1.08 || 1;
    const cell = (width - left - right) / values.length;
    const y = (share) => top + (1 - share / most) * (height - top - bottom);
    const bar = (value, i) => svg("rect", { x: left + i * cell + 1, y: y(value), width: Math.max(cell - 2, 1), height: y(0) - y(value), fill: spec.color || "var(--h5)" });
    const outline = (value, i) => svg("rect", { x: left + i * cell + cell * 0.2, y: y(value), width: cell * 0.6, height: y(0) - y(value), fill: "var(--global)", "fill-opacity": 0.25, stroke: "var(--global)", "stroke-width": 2 });
    const ring = svg("rect", { class: "cursor", fill: "none", y: top, height: y(0) - top, width: cell, visibility: "hidden" });
    const drawing = canvas(width, height, spec.label,
      ticks(0, most, 4).map((tick) => [svg("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), text(left - 7, y(tick) + 4, `${Math.round(tick * 100)} %`, { "text-anchor": "end" })]),
      values.map((value, i) => bar(value / total, i)), over ? over.map((value, i) => (value ? outline(value / whole, i) : null)) : null,
      spec.names.map((name, i) => (cell > String(name).length * 7 || i % Math.ceil(values.length / (width / 60)) === 0 ? text(left + (i + (spec.edges ? 0 : 0.5)) * cell, height - bottom + 15, name, { "text-anchor": "middle" }) : null)),
      spec.edges ? text(width - right, height - bottom + 15, "1", { "text-anchor": "middle" }) : null,
      spec.foot ? [text(left, height - 5, spec.foot[0]), text(width - right, height - 5, spec.foot[1], { "text-anchor": "end" })] : null, ring);
    explore(drawing, {
      at: (px) => (px >= left ? clamp(Math.floor((px - left) / cell), 0, values.length - 1) : null),
      first: () => 0,
      step: (i, dx) => clamp(i + dx, 0, values.length - 1),
      clear: () => ring.setAttribute("visibility", "hidden"),
      show: (i) => {
        ring.setAttribute("x", left + i * cell); ring.setAttribute("visibility", "visible");
        const told = [[spec.all || "rows", `${count(values[i])} (${percent(values[i] / total)})`]];
        if (over) told.push([spec.overName(), `${count(over[i])} (${percent(over[i] / whole)})`]);
        return { x: left + (i + 1) * cell, y: top + 20, title: spec.title(i), lines: told };
      },
    });
    return [over ? legend([{ name: spec.all || "all clients", color: spec.color || "var(--h5)", area: true }, { name: spec.overName(), color: "var(--global)", area: true }]) : null, drawing].filter(known);
  });
}
