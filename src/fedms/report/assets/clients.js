// A run's clients: one order for the table and all figures, a filter, and one client to look at.
function clientsOf(run, article) {
  const { clients } = run;
  const n = clients.id.length;
  const { scores } = clients;
  const everyone = Array.from({ length: n }, (_, i) => i);
  const gain = scores.personal && scores.global ? everyone.map((i) => (known(scores.personal[i]) && known(scores.global[i]) ? scores.personal[i] - scores.global[i] : null)) : null;
  const columns = { id: clients.id, strip: gain, gain, train: clients.train, test: clients.test, classes: clients.classes, depth: clients.depth, gate_weight: clients.gate_weight, ...scores };
  const state = { order: everyone, shown: everyone, chosen: null, by: null, down: false, words: "" };
  const watchers = [];
  let placed = everyone.join();
  let waiting = false;
  const table = article.querySelector("table.clients");
  const lines = table ? [...table.tBodies[0].rows] : [];

  const compare = (values) => (a, b) => {
    if (!known(values[a]) || !known(values[b])) return known(values[b]) - known(values[a]);
    if (typeof values[a] === "string") return values[a].localeCompare(values[b], "en", { numeric: true });
    return values[a] - values[b];
  };
  function arrange() {
    const values = columns[state.by];
    state.order = values ? [...everyone].sort((a, b) => (known(values[a]) && known(values[b]) && state.down ? -1 : 1) * compare(values)(a, b) || a - b) : everyone;
    const words = state.words.toLowerCase();
    const exact = everyone.some((i) => clients.id[i].toLowerCase() === words);
    state.shown = state.order.filter((i) => !words || (exact ? clients.id[i].toLowerCase() === words : clients.id[i].toLowerCase().includes(words)));
    if (table) {
      const keep = new Set(state.shown);
      lines.forEach((line, i) => { line.hidden = !keep.has(i); });
      const now = state.order.join();
      if (now !== placed) table.tBodies[0].append(...state.order.map((i) => lines[i]));
      placed = now;
      for (const head of table.tHead.rows[0].cells) {
        if (head.dataset.column === state.by) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
    }
    tell();
  }
  function tell() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      lines.forEach((line, i) => (i === state.chosen ? line.setAttribute("aria-current", "true") : line.removeAttribute("aria-current")));
      watchers.forEach((watcher) => watcher());
    });
  }
  const sortBy = (name, down) => { state.by = name; state.down = down; arrange(); };
  const choose = (i) => { state.chosen = state.chosen === i ? null : i; tell(); };
  const filter = (words) => {
    state.words = words.trim();
    arrange();
    if (state.words && state.shown.length === 1) [state.chosen] = state.shown;
    else if (!state.words) state.chosen = null;
  };

  if (table) {
    for (const head of table.tHead.rows[0].cells) {
      const name = head.dataset.column;
      const button = html("button", { type: "button", onclick: () => sortBy(name, state.by === name ? !state.down : name !== "id") }, ...head.childNodes);
      head.replaceChildren(button);
    }
    lines.forEach((line, i) => {
      const cell = line.cells[0];
      cell.replaceChildren(html("button", { type: "button", title: clients.id[i], onclick: () => choose(i) }, ...cell.childNodes));
    });
  }
  return { run, n, state, columns, gain, sortBy, choose, filter, watch: (watcher) => watchers.push(watcher), name: (i) => clients.id[i] };
}

// One client's facts, beside what figures show of all.
function card(box, one) {
  const { run } = one;
  const { clients } = run;
  const i = one.state.chosen;
  if (i === null) { box.replaceChildren(); return; }
  const facts = [
    ...Object.keys(ROLES).filter((role) => clients.scores[role] && known(clients.scores[role][i])).map((role) => `${ROLES[role].name} ${percent(clients.scores[role][i])}`),
    `${count(clients.train[i])} training, ${count(clients.val[i])} validation and ${count(clients.test[i])} test rows`,
    `${count(clients.classes[i])} classes`,
    known(clients.depth[i]) ? `${clients.depth[i]} blocks` : null,
    known(clients.gate_weight[i]) ? `mean weight on the global expert ${clients.gate_weight[i].toFixed(2)}` : null,
  ].filter(known);
  const minis = html("div", { class: "minis" });
  box.replaceChildren(html("div", { class: "card" }, html("h3", {}, `Client ${clients.id[i]}`), html("p", {}, facts.join(" · ")), minis));
  const mini = (title) => { const plot = html("div", { class: "plot" }); minis.append(html("div", {}, html("figcaption", {}, title), plot)); return plot; };
  if (clients.labels && clients.labels[i].length) {
    const held = [...clients.labels[i]].sort((a, b) => b[1] - a[1]).slice(0, 12);
    const weights = new Map((clients.routedClasses ? clients.routedClasses[i] : []).map(([label, rows, weight]) => [label, [rows, weight]]));
    const plot = mini(held.length < clients.labels[i].length ? "Its classes with most rows" : "Its classes");
    const most = held[0][1];
    const head = html("tr", {}, ["class", "", "rows", weights.size ? "gate" : null].filter(known).map((word) => html("th", { scope: "col" }, word)));
    plot.append(html("table", { class: "held" }, html("thead", {}, head), html("tbody", {}, held.map(([label, rows]) => html("tr", {},
      html("th", { scope: "row" }, run.classes[label]),
      html("td", {}, html("span", { style: `display:block;height:.6rem;border-radius:2px;background:var(--h5);width:${(100 * rows) / most}%` })),
      html("td", {}, count(rows)), weights.size ? html("td", {}, weights.has(label) ? weights.get(label)[1].toFixed(2) : "–") : null)))));
  }
  if (clients.routed && clients.routed[i]) {
    histogram(mini("Its test rows by weight on the global expert"), {
      label: `Test rows of client ${clients.id[i]} by weight on the global expert`, height: 170, values: () => clients.routed[i], names: edges(run), edges: true,
      title: (k) => between(run, k), color: "var(--global)", foot: ["local", "global"],
    });
  }
}

const spans = (run) => Array.from({ length: run.bins }, (_, i) => [i, i + 1].map((k) => (k / run.bins).toString().replace("0.", ".")).join("–"));
const edges = (run) => Array.from({ length: run.bins }, (_, i) => (i / run.bins).toString());
const between = (run, k) => `Weight ${(k / run.bins).toFixed(1)} to ${((k + 1) / run.bins).toFixed(1)}`;

// All clients beside each other, in their order: from the global expert's accuracy to their own.
function strips(box, one) {
  const { clients } = one.run;
  const [shared, own] = [clients.scores.global, clients.scores.personal];
  draw(box, (width) => {
    const order = one.state.shown;
    if (!order.length) return html("p", { class: "absent" }, "No client has such a name.");
    const drawnRoles = [shared, own].filter(known);
    const values = drawnRoles.flatMap((column) => order.map((i) => column[i])).filter(known);
    if (!values.length) return html("p", { class: "absent" }, "No accuracy of clients is on record.");
    const [height, left, right, top, bottom] = [260, 50, 12, 12, 26];
    const low = Math.max(0, Math.min(...values) - 0.03);
    const n = order.length;
    const x = (at) => left + ((at + 0.5) / n) * (width - left - right);
    const y = (value) => top + (1 - (value - low) / (1 - low || 1)) * (height - top - bottom);
    const wide = (width - left - right) / n;
    const size = clamp(wide * 0.28, 1, 5);
    const thick = clamp(wide * 0.35, 0.4, 3);
    const parts = { up: [], down: [], same: [], shared: [], own: [] };
    const ball = (a, b) => `M${(a - size).toFixed(1)} ${b.toFixed(1)}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0`;
    order.forEach((i, at) => {
      const [g, p] = [shared ? shared[i] : null, own ? own[i] : null];
      if (known(g) && known(p)) parts[p > g ? "up" : p < g ? "down" : "same"].push(`M${x(at).toFixed(1)} ${y(g).toFixed(1)}V${y(p).toFixed(1)}`);
      if (known(g)) parts.shared.push(ball(x(at), y(g)));
      if (known(p)) parts.own.push(ball(x(at), y(p)));
    });
    const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    const chosen = order.indexOf(one.state.chosen);
    const drawing = canvas(width, height, `Test accuracy of ${n} clients, from the global expert to the personal model`,
      ticks(low, 1, 5).map((tick) => [svg("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), text(left - 7, y(tick) + 4, percent(tick), { "text-anchor": "end" })]),
      chosen >= 0 ? svg("rect", { x: x(chosen) - Math.max(wide / 2, 4), y: top, width: Math.max(wide, 8), height: height - top - bottom, fill: "var(--h2)", opacity: 0.7 }) : null,
      svg("path", { d: parts.up.join(""), stroke: "var(--up)", "stroke-width": thick, fill: "none" }),
      svg("path", { d: parts.down.join(""), stroke: "var(--down)", "stroke-width": thick, fill: "none" }),
      svg("path", { d: parts.shared.join(""), fill: "var(--card)", stroke: "var(--global)", "stroke-width": clamp(size * 0.45, 0.6, 2) }),
      svg("path", { d: parts.own.join(""), fill: "var(--personal)" }),
      n <= width / 34 ? order.map((i, at) => text(x(at), height - bottom + 16, one.name(i).length > 6 ? `${one.name(i).slice(0, 5)}…` : one.name(i), { "text-anchor": "middle", class: at === chosen ? "strong" : "" }))
        : text(left, height - bottom + 16, `${count(n)} clients in the order of the table`), cursor);
    explore(drawing, {
      at: (px) => (px < left ? null : clamp(Math.floor((px - left) / wide), 0, n - 1)),
      first: () => Math.max(chosen, 0),
      step: (at, dx) => clamp(at + dx, 0, n - 1),
      clear: () => cursor.setAttribute("visibility", "hidden"),
      choose: (at) => one.choose(order[at]),
      show: (at) => {
        const i = order[at];
        cursor.setAttribute("x1", x(at)); cursor.setAttribute("x2", x(at)); cursor.setAttribute("visibility", "visible");
        const told = Object.keys(ROLES).filter((role) => clients.scores[role] && known(clients.scores[role][i])).map((role) => [ROLES[role].name, percent(clients.scores[role][i])]);
        if (one.gain && known(one.gain[i])) told.push(["gain", `${signed(one.gain[i])} points`]);
        return { x: x(at), y: 30, title: `Client ${one.name(i)}`, lines: [...told, ["training rows", count(clients.train[i])], ["classes", count(clients.classes[i])]] };
      },
    });
    const shownRoles = [own ? { ...ROLES.personal, mark: "circle" } : null, shared ? { ...ROLES.global, mark: "ring" } : null].filter(known);
    return [legend(shownRoles.map((role) => ({ ...role, dash: "0 30" }))), drawing];
  });
}
