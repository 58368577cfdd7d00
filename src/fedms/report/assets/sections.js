// Puts every figure where the page has a place for it.
const LABELS = { id: "name", personal: "personal", global: "global expert", gain: "gain", zero_shot: "zero-shot", local: "local expert", train: "rows", test: "test rows", classes: "classes", depth: "depth", gate_weight: "gate weight" };

function tools(one, index) {
  const names = Object.keys(LABELS).filter((name) => one.columns[name] && one.columns[name].some(known));
  const list = html("datalist", { id: `clients-${index}` }, one.run.clients.id.map((id) => html("option", { value: id })));
  const input = html("input", { type: "search", list: list.id, placeholder: "all clients", autocomplete: "off", spellcheck: "false", oninput: () => one.filter(input.value) });
  const select = html("select", { onchange: () => one.sortBy(select.value, direction.getAttribute("aria-pressed") === "true") }, names.map((name) => html("option", { value: name }, LABELS[name])));
  const direction = html("button", { type: "button", "aria-pressed": "false", onclick: () => { direction.setAttribute("aria-pressed", String(direction.getAttribute("aria-pressed") !== "true")); one.sortBy(select.value, direction.getAttribute("aria-pressed") === "true"); } }, "greatest first");
  one.watch(() => { if (one.state.by && names.includes(one.state.by)) select.value = one.state.by; direction.setAttribute("aria-pressed", String(one.state.down)); });
  return html("div", { class: "bar", role: "search" }, html("label", {}, "find a client", input, list), html("label", {}, "order by", select), direction);
}

function roundFigures(run) {
  const { rounds } = run;
  const n = rounds.stage.length;
  const series = Object.keys(ROLES).filter((role) => rounds.test[role]).map((role) => ({ ...ROLES[role], name: `test, ${ROLES[role].name}`, values: rounds.test[role], sparse: true }));
  if (known(run.test.zero_shot)) series.push({ ...ROLES.zero_shot, name: "test, zero-shot", values: rounds.stage.map(() => run.test.zero_shot), mark: "none" });
  series.unshift({ name: "validation", values: rounds.validation, color: "var(--ink)", dash: "3 2", mark: "none" });
  const held = [["activations", rounds.peak_activation_bytes, 0], ["cache", rounds.cache_bytes, 1], ["device", rounds.peak_device_bytes, 2]].filter(([, values]) => values.some(known));
  const phases = Object.keys(rounds.phases).length ? rounds.phases : { "all phases": rounds.seconds };
  const shades = ["var(--personal)", "var(--global)", "var(--local)", "var(--oracle)", "var(--fifth)"];
  return {
    accuracy: (box) => lines(box, {
      label: "Accuracy over rounds, with stages, and the number of active blocks", n, series, format: percent, top: 1, stages: rounds.stage,
      depth: { server: rounds.depth, shallow: rounds.shallow, deep: rounds.deep },
      more: (round) => [["active blocks, server", rounds.depth[round]], ["active blocks, clients", rounds.shallow[round] === rounds.deep[round] ? rounds.deep[round] : `${rounds.shallow[round]}–${rounds.deep[round]}`], ["clients asked", count(rounds.asked[round])], ["not used", count(rounds.rejected[round])]],
    }),
    bytes: (box) => bars(box, { label: "Bytes sent in each round", n, format: bytes, series: [{ name: "up", values: rounds.upload_bytes, color: shades[0] }, { name: "down", values: rounds.download_bytes, color: shades[1] }] }),
    flops: (box) => bars(box, { label: "Floating point operations of each round", n, format: flops, series: [{ name: "work", values: rounds.flops, color: shades[0] }] }),
    seconds: (box) => bars(box, { label: "Seconds of each round by phase", n, format: seconds, series: Object.entries(phases).map(([name, values], i) => ({ name, values, color: shades[i % shades.length] })) }),
    memory: (box) => lines(box, { label: "Memory of each round", n, height: 190, format: bytes, zero: true, series: held.map(([name, values, i]) => ({ name, values, color: CYCLE[i], dash: DASHES[i], mark: MARKS[i] })) }),
  };
}

const share = (bins, k) => (bins ? bins[k] / (sum(bins) || 1) : 0);
// What all but a few values are below: where the darkest shade begins.
const usual = (values) => { const some = values.filter((value) => value > 0).sort((a, b) => a - b); return some.length ? some[Math.floor(some.length * 0.98)] : 1; };

function clientFigures(one) {
  const { run } = one;
  const { clients } = run;
  const common = { rows: clients.id, kind: "clients", order: () => one.state.shown, choose: one.choose, chosen: () => one.state.chosen };
  const again = (make) => (box) => { make(box); one.watch(drawn.get(box)); };
  const held = (clients.labels || []).map((pairs) => new Map(pairs));
  const most = usual(held.flatMap((pairs) => [...pairs.values()]));
  const mostShare = usual((clients.routed || []).filter(known).flatMap((bins) => bins.map((_, k) => share(bins, k))));
  const mostOfClass = usual((run.gateClasses || []).flatMap((bins) => bins.map((_, k) => share(bins, k))));
  const weights = edges(run);
  const all = clients.routed ? weights.map((_, k) => sum(clients.routed.map((bins) => (bins ? bins[k] : 0)))) : [];
  const told = (bins, k) => [[between(run, k), bins ? `${count(bins[k])} of ${count(sum(bins))} rows` : "no test rows"]];
  const filled = run.gateClasses ? run.gateClasses.map((bins, i) => [sum(bins), i]).filter(([rows]) => rows).map(([, i]) => i) : [];
  return {
    strips: again((box) => strips(box, one)),
    labels: again((box) => heat(box, { ...common, label: "Rows of each class held by each client", columns: run.classes, value: (row, column) => held[row].get(column), most: () => most, short: (value) => count(value), tell: (row, column) => [[run.classes[column], `${count(held[row].get(column) || 0)} rows`], ["all classes", `${count(sum([...held[row].values()]))} rows`]] })),
    gate: again((box) => histogram(box, { label: "Test rows of all clients by weight on the global expert", values: () => all, names: weights, edges: true, title: (k) => between(run, k), foot: ["local expert", "global expert"], all: "all clients", over: () => (known(one.state.chosen) ? clients.routed[one.state.chosen] : null), overName: () => `client ${one.name(one.state.chosen)}` })),
    gateClients: again((box) => heat(box, { ...common, label: "Share of each client’s test rows by weight on the global expert", columns: spans(run), value: (row, k) => share(clients.routed[row], k), most: () => mostShare, short: (value) => `${Math.round(100 * value)}`, tell: (row, k) => told(clients.routed[row], k), foot: ["local expert", "global expert"] })),
    gateClasses: (box) => heat(box, { rows: run.classes, kind: "classes", order: () => filled, label: "Share of each class’s test rows by weight on the global expert", columns: spans(run), value: (row, k) => share(run.gateClasses[row], k), most: () => mostOfClass, short: (value) => `${Math.round(100 * value)}`, tell: (row, k) => told(run.gateClasses[row], k), foot: ["local expert", "global expert"] }),
  };
}

function place(area, makers) {
  for (const figure of area.querySelectorAll("figure[data-chart]")) {
    const make = makers[figure.dataset.chart];
    if (make) make(figure.querySelector(".plot"));
  }
}

function oneRun(article) {
  const index = Number(article.dataset.run);
  const run = runs[index];
  const one = clientsOf(run, article);
  const spot = article.querySelector('figure[data-chart="strips"]');
  if (spot) {
    const box = html("div", { "aria-live": "polite" });
    spot.before(tools(one, index));
    spot.after(box);
    one.watch(() => card(box, one));
  }
  place(article, { ...(run.rounds.stage.length ? roundFigures(run) : {}), ...(one.n ? clientFigures(one) : {}) });
  if (one.gain && one.n > 12) one.sortBy("personal", false);
}

function sideBySide(area) {
  const looks = (i) => ({ color: CYCLE[i % CYCLE.length], dash: DASHES[i % DASHES.length], mark: MARKS[i % MARKS.length] });
  const axes = {
    bytes: { axis: "bytes sent", format: bytes, x: (cost) => cost.upload_bytes + cost.download_bytes },
    flops: { axis: "work of training", format: flops, x: (cost) => cost.train_flops },
    seconds: { axis: "seconds of training", format: seconds, x: (cost) => cost.train_seconds },
    memory: { axis: "activations", format: bytes, x: (cost) => cost.peak_activation_bytes },
  };
  place(area, {
    cost: (box) => {
      const spec = { label: "Cost against personal test accuracy of all runs", ...axes.bytes };
      spec.points = () => runs.map((run, i) => ({ name: run.name, x: spec.x(run.cost), y: run.test.personal, low: run.worst, ...looks(i) }));
      const select = html("select", { onchange: () => { Object.assign(spec, axes[select.value]); drawn.get(box)(); } }, Object.entries(axes).map(([name, { axis }]) => html("option", { value: name }, axis)));
      box.before(html("div", { class: "bar" }, html("label", {}, "cost", select)));
      scatter(box, spec);
    },
    overlay: (box) => {
      const series = runs.map((run, i) => ({ name: run.name, values: run.rounds.test.personal || [], sparse: true, ...looks(i) })).filter((one) => one.values.some(known));
      const n = Math.max(0, ...runs.map((run) => run.rounds.stage.length));
      if (series.length) lines(box, { label: "Personal test accuracy of all runs over rounds", n, series, format: percent, top: 1 });
      else box.append(html("p", { class: "absent" }, "No run was scored between rounds."));
    },
  });
}

function tabs(area, articles) {
  const select = html("select", { onchange: () => show(Number(select.value)) }, runs.map((run, i) => html("option", { value: i }, run.name)));
  const show = (index) => articles.forEach((article, i) => { article.hidden = i !== index; });
  area.after(html("div", { class: "tabs bar" }, html("label", {}, "look at one run", select)));
  show(0);
}

document.documentElement.classList.remove("plain");
const articles = [...document.querySelectorAll("article.run")];
articles.forEach(oneRun);
const area = document.getElementById("runs");
if (area) { sideBySide(area); tabs(area, articles); }
document.documentElement.dataset.ready = "yes";
