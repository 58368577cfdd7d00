"""Reports without a browser: well-formed, the run's own numbers, no markup of others, small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.report import figures, write

VOID = {"meta", "br", "input"}
RAW = {"script", "style"}


class Page(HTMLParser):
    """Reads a page, and fails where an element is not closed in its turn."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.data, self.text = [], [], [], {}
        self.cells, self.rows = [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.elements.append((tag, facts))
        if tag in VOID:
            return
        self.open.append((tag, facts))
        if tag == "tr":
            self.cells = []
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        name, _ = self.open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        if tag == "tr" and self.cells:
            table = next(f for t, f in reversed(self.open) if t == "table")
            self.rows.setdefault(table.get("class"), []).append(self.cells)

    def handle_data(self, text):
        tag, facts = self.open[-1] if self.open else ("", {})
        self.text[tag] = self.text.get(tag, "") + text
        if tag == "data":
            self.data.append((facts.get("data-key"), float(facts["value"]), text))
        if self.cells and any(t in ("th", "td") for t, _ in self.open):
            self.cells[-1] += text

    def script(self):
        """The figures that charts are drawn from."""
        (data,) = re.findall(r'id="data">(.*?)</script>', self.rawdata_of, re.DOTALL)
        return json.loads(data)


def page(path):
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    found.rawdata_of = text
    return found


@pytest.fixture(scope="module")
def ten(made, strange, tmp_path_factory):
    return made(tmp_path_factory.mktemp("ten") / "run", change=strange)


@pytest.fixture(scope="module")
def ten_page(ten):
    return page(write([ten]))


def lines(run, name):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().split("\n")[:-1]]


def at(summary, key):
    for name in key.split("."):
        summary = summary[name]
    return summary


SHOWN = {
    *(f"test.{role}.{name}" for role in ("zero_shot", "global", "local", "personal", "oracle")
      for name in ("mean", "worst_decile", "weighted", "std")),
    *(f"cost.{name}" for name in ("upload_bytes", "download_bytes", "trainable_parameters",
                                  "total_parameters", "wall_seconds", "train_flops")),
}  # fmt: skip


def test_its_numbers_are_those_of_the_summary(ten, ten_page):
    summary = json.loads((ten / "summary.json").read_text())
    keyed = [(key, value, text) for key, value, text in ten_page.data if key]
    assert {key for key, _, _ in keyed} == SHOWN
    for key, value, text in keyed:
        assert value == at(summary, key)
        if key.startswith("test."):
            assert text == f"{100 * at(summary, key):.1f} %"


def test_every_client_is_in_the_table_with_its_numbers(ten, ten_page):
    test = json.loads((ten / "summary.json").read_text())["test"]
    scored = lines(ten, "clients")
    head, *rows = ten_page.rows["clients"]
    assert head[:6] == [
        *("client", "global → personal", "personal", "global expert", "local expert", "zero-shot")
    ]
    assert [row[0] for row in rows] == [line["id"] for line in scored]
    for row, line in zip(rows, scored, strict=True):
        roles = ("personal", "global", "local", "zero_shot")
        expected = [f"{100 * test[role]['per_client'][line['id']]:.1f}" for role in roles]
        assert row[2:6] == expected
        assert row[7:] == [
            *(str(line["rows"][split]) for split in ("train", "test")),
            *(str(line[name]) for name in ("classes", "depth")),
            f"{line['gate_weight']:.2f}",
        ]


def test_charts_are_drawn_from_the_records(ten, ten_page):
    (data,) = ten_page.script()
    rounds = lines(ten, "rounds")
    for name in ("stage", "depth", "validation", "upload_bytes", "seconds"):
        assert data["rounds"][name] == [line[name] for line in rounds]
    assert data["rounds"]["flops"] == [line["costs"]["flops"] for line in rounds]
    assert data["rounds"]["deep"] == [max(line["client_depths"]) for line in rounds]
    labels = lines(ten, "labels")
    for held, line in zip(data["clients"]["labels"], labels, strict=True):
        whole = {}
        for split in ("train", "val", "test"):
            for label, n in line[split]:
                whole[label] = whole.get(label, 0) + n
        assert dict(map(tuple, held)) == whole
    gates = lines(ten, "gates")
    rows = sum(n for line in gates for _, _, n in line["counts"])
    assert sum(map(sum, data["clients"]["routed"])) == rows
    assert sum(map(sum, data["gateClasses"])) == rows
    high = sum(n for line in gates for _, at, n in line["counts"] if at == 9)
    assert sum(bins[9] for bins in data["gateClasses"]) == high > 0


def test_words_of_others_are_no_markup(ten, ten_page):
    """Names of clients and classes, and reasons, are text: there are no elements of theirs."""
    names = [tag for tag, _ in ten_page.elements]
    assert names.count("script") == 2
    assert "img" not in names
    assert not any(name.startswith("on") for _, facts in ten_page.elements for name in facts)
    assert "window.struck" in ten_page.text["th"]  # they are there, though
    raw = ten_page.rawdata_of
    (embedded,) = re.findall(r'id="data">(.*?)</script>', raw, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert ten_page.script()[0]["clients"]["id"][:3] == [
        "<script>window.struck = 1</script>",
        "</script><img src=x onerror='window.struck = 1'>",
        "<!--",
    ]


def test_what_was_not_used_is_counted_and_named(made, tmp_path):
    def change(run):
        run.rejects |= {0: {"3": "claims 7 training rows"}, 2: {"5": "is gone", "6": "is gone"}}

    path = made(tmp_path / "run", change=change)
    text = write([path]).read_text()
    assert re.search(r"3 of [\d,]+ updates that were asked for were not used", text)
    for words in ("claims 7 training rows", "is gone"):
        assert words in text


def test_it_loads_nothing(ten_page):
    policy = [facts["content"] for tag, facts in ten_page.elements if "http-equiv" in facts]
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256")
    loading = {"src", "href", "srcset", "action", "data", "poster", "background"}
    assert not [f for tag, f in ten_page.elements if loading & f.keys()]
    assert not re.search(r"url\(|@import", ten_page.text["style"])
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|insertAdjacent|eval\(",
                         ten_page.text["script"])  # fmt: skip


def test_identifiers_are_unique(made, tmp_path):
    runs = [made(tmp_path / str(seed), seed=seed, clients=3) for seed in range(3)]
    found = page(write(runs, tmp_path / "all.html"))
    ids = [facts["id"] for _, facts in found.elements if "id" in facts]
    assert len(ids) == len(set(ids))


def test_a_thousand_clients_are_a_small_file_and_take_no_time(made, tmp_path):
    run = made(tmp_path / "run", clients=1000, classes=62, rounds=60)
    began = time.process_time()
    path = write([run])
    assert time.process_time() - began < 2  # a sixth of that on a machine of its own
    assert path.stat().st_size < 5e6
    text = path.read_text()
    assert text.count('<span class="s">') == 1000  # a strip for every client
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert len(json.loads(data)[0]["clients"]["labels"]) == 1000


def test_of_very_many_clients_and_classes_the_least_is_left_out(made, tmp_path, monkeypatch):
    monkeypatch.setattr("fedms.report.page.MOST_PAIRS", 20)
    found = page(write([made(tmp_path / "run")]))
    clients = found.script()[0]["clients"]
    assert clients["labels"] is clients["routedClasses"] is None
    assert len(clients["routed"]) == 10
    assert "There are too many clients and classes for this page" in found.text["p"]


def test_a_run_that_ended_early_shows_what_is_there(made, tmp_path):
    run = made(tmp_path / "run", rounds=7, complete=False, details=False)
    scored = [{**line, "gate_weight": None} for line in lines(run, "clients")]
    (run / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    found = page(write([run]))
    assert "This run is not complete: 7 rounds are on record." in found.text["p"]
    assert "of this method have no gate" not in found.text["p"]  # stage 2 may be to come
    assert f"fedms resume {run}" in found.text["code"]
    assert [key for key, _, _ in found.data if key] == []  # there is no summary to be equal to
    last = lines(run, "rounds")[-1]
    assert found.data[0][1] == last["test"]["personal"]["mean"]


def test_a_run_that_has_just_begun_has_a_report(made, tmp_path):
    run = made(tmp_path / "run", complete=False)
    for name in ("rounds", "clients"):
        (run / f"{name}.jsonl").write_text("")
    found = page(write([run]))
    assert "No test accuracy is on record." in found.text["p"]
    assert "no round is on record" in found.text["p"]
    assert len(found.rows["clients"]) == 11  # of the partition


def test_a_line_that_was_cut_short_is_passed_over(made, tmp_path):
    run = made(tmp_path / "run", complete=False)
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 12, "sta')
    assert len(page(write([run])).script()[0]["rounds"]["stage"]) == 12


def test_what_an_older_run_lacks_is_said(made, tmp_path):
    found = page(write([made(tmp_path / "run", details=False)]))
    assert "Which classes clients hold is not on record" in found.text["p"]
    assert "Where the gate sends rows is not on record" in found.text["p"]


def test_a_server_of_sites_says_why_it_does_not_know(made, tmp_path):
    run = made(tmp_path / "run", details=False)
    facts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**facts, "sites": "one"}))
    found = page(write([run]))
    assert "of whose classes the server keeps no record" in found.text["p"]
    assert "that would tell the server their classes" in found.text["p"]
    assert f"fedms submit DEPLOYMENT --out {run}-again" in found.text["code"]


def test_other_methods_have_reports(made, tmp_path):
    found = page(write([made(tmp_path / "run", method="fedavg")]))
    assert "FedAvg is right on" in found.text["strong"]
    assert "Personal models of this method have no gate." in found.text["p"]
    assert found.rows["clients"][0][:3] == ["client", "personal", "zero-shot"]


def test_local_only_is_found_among_several(made, tmp_path):
    ours, alone = made(tmp_path / "ours"), made(tmp_path / "alone", method="local")
    other = made(tmp_path / "other", method="local", seed=1)
    mean = json.loads((alone / "summary.json").read_text())["test"]["personal"]["mean"]
    own = json.loads((ours / "summary.json").read_text())["test"]["personal"]["mean"]
    found = page(write([ours, other, alone], tmp_path / "all.html"))
    words = "above" if own > mean else "below"
    assert f"{100 * abs(own - mean):.1f} points {words} local-only training" in found.text["p"]
    rows = [row[0] for row in found.rows["scores"]]
    assert "local-only (alone)" in rows
    assert "local-only (other)" not in rows  # of another seed: other clients
    both = page(write([ours, other], tmp_path / "two.html"))
    assert "Local-only is not known here" in both.text["p"]


def test_several_runs_are_put_side_by_side_with_what_differs(made, tmp_path):
    runs = [made(tmp_path / "a" / "run", clients=4), made(tmp_path / "b" / "run", seed=3)]
    found = page(write(runs, tmp_path / "all.html"))
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    means = [summary["test"]["personal"]["mean"] for summary in summaries]
    order = sorted((0, 1), key=lambda i: -means[i])
    rows = {row[0]: row for row in found.rows[None]}
    listed = [name for name in rows if name in ("a/run", "b/run")]
    assert listed == [("a/run", "b/run")[i] for i in order]
    for name, mean in zip(("a/run", "b/run"), means, strict=True):
        assert rows[name][3] == f"{100 * mean:.1f} %"
    differs = {row[0]: row[1:] for row in found.rows["words"]}
    assert differs["partition.clients"] == ["4", "10"]
    assert differs["seed"] == ["0", "3"]
    assert "sal.step" not in differs


def test_the_command_runs_it_again(made, tmp_path):
    run = made(tmp_path / "with space")
    found = page(write([run]))
    assert f"fedms run '{run}/config.toml' --out '{run}-again'" in found.text["code"]
    assert "git checkout 0123abc" in found.text["code"]
    assert 'class_vectors = "statistics"' in found.text["code"]  # the whole configuration


def test_what_is_no_run_is_refused(tmp_path, made):
    with pytest.raises(UserError, match="which is no run folder"):
        write([tmp_path])
    run = made(tmp_path / "run")
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json, which cannot be read"):
        write([run])
    run = made(tmp_path / "other")
    (run / "rounds.jsonl").write_text('{"round": 0}\n')
    with pytest.raises(UserError, match="not as fedms writes them: KeyError"):
        write([run])
    with pytest.raises(UserError, match="which cannot be written"):
        write([made(tmp_path / "third")], tmp_path / "third" / "config.toml" / "x.html")


def test_figures_say_null_for_what_is_not_known(made, tmp_path):
    runs = [made(tmp_path / "a"), made(tmp_path / "b", method="fedavg", complete=False)]
    first, second = figures(runs)
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert first["test"] == summary["test"]
    assert first["cost"] == summary["cost"]
    assert (first["complete"], second["complete"]) == (True, False)
    assert second["test"]["global"] is None
    assert second["test"]["personal"]["mean"] > 0


def test_what_an_older_version_did_not_count_is_a_dash(made, tmp_path):
    run = made(tmp_path / "run", complete=False)
    old = [
        {name: v for name, v in line.items() if name != "costs"} for line in lines(run, "rounds")
    ]
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    found = page(write([run]))
    assert found.script()[0]["rounds"]["flops"] == [None] * 12
    assert found.script()[0]["cost"]["train_flops"] is None
    assert "– of training" in "".join(found.text["div"].split("\n"))


def test_the_command_needs_no_torch():
    code = "import sys; from fedms.report import write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_best_of_several_is_one_that_is_complete_and_of_the_same_clients(made, tmp_path):
    alone = made(tmp_path / "alone", method="local")
    runs = [made(tmp_path / "early", complete=False), alone]
    means = [figures([run])[0]["test"]["personal"]["mean"] for run in runs]
    assert means[0] > means[1]
    found = page(write(runs, tmp_path / "all.html"))
    assert found.text["strong"].startswith("local-only (alone): ")
    assert found.data[0][1:] == (means[1], f"{100 * means[1]:.1f} %")
    assert "is the highest of all runs that are complete." in found.text["p"]
    assert "These runs are not all of the same clients" not in found.text["p"]
    found = page(write([*runs, made(tmp_path / "other", seed=1)], tmp_path / "all.html"))
    assert "These runs are not all of the same clients" in found.text["p"]


def known(run, **facts):
    """The run's folder, with what identifies its rows and weights."""
    path = run / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": facts}))
    return run


def test_clients_are_the_same_by_rows_and_weights_wherever_these_are(made, tmp_path):
    """Each run from Python has a copy of the model; and rows in memory have no name."""

    def from_python(name, **how):
        def change(run):
            words = [f"model.name={tmp_path / name}", "data.source=memory", f"name={name}"]
            run.config = load_config(None, [f"method={run.method}", *words])

        return made(tmp_path / name, change=change, **how)

    ours = known(from_python("ours"), data="sha256:1", weights="sha256:2")
    alone = known(from_python("alone", method="local"), data="sha256:1", weights="sha256:2")
    assert "local-only training" in page(write([ours, alone], tmp_path / "a.html")).text["p"]
    known(alone, data="sha256:3", weights="sha256:2")
    said = page(write([ours, alone], tmp_path / "a.html")).text["p"]
    assert "Local-only is not known here" in said
    assert "These runs are not all of the same clients" in said


def test_a_run_of_rows_in_memory_is_repeated_from_python(made, tmp_path):
    def change(run):
        run.config = load_config(None, ["data.source=memory"])

    run = made(tmp_path / "it's", change=change)
    code = page(write([run])).text["code"]
    assert f'FedMS(config="{run}/config.toml").fit(datasets, out="{run}-again")' in code
    assert "fedms run" not in code
    (run / "summary.json").unlink()
    assert f'FedMS.resume("{run}", datasets)' in page(write([run])).text["code"]


def test_where_all_have_the_global_expert_nobody_gains_by_their_own(made, tmp_path):
    run = made(tmp_path / "run", change=lambda run: run.roles.pop("local"))
    scored = lines(run, "clients")
    for line in scored:
        line["test"]["global"] = line["test"]["personal"]
    (run / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    said = page(write([run])).text["p"]
    assert "above zero-shot." in said
    assert "the personal model is better than" not in said


def test_a_method_without_a_mixture_has_no_gate(made, tmp_path):
    run = made(tmp_path / "run", method="local")
    scored = [{**line, "gate_weight": 0.0} for line in lines(run, "clients")]  # as once written
    (run / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    assert "Personal models of this method have no gate." in page(write([run])).text["p"]


def test_of_clients_without_test_rows_no_gate_is_asked(made, tmp_path):
    run = made(tmp_path / "run")
    (run / "gates.jsonl").unlink()
    summary = json.loads((run / "summary.json").read_text())
    nothing = {**summary, "test": dict.fromkeys(summary["test"])}
    (run / "summary.json").write_text(json.dumps(nothing))
    found = page(write([run]))
    assert "No client has test rows." in found.text["p"]
    assert "scores" not in found.rows  # rather than an empty table


def test_equal_runs_are_all_named_the_best(made, tmp_path):
    runs = [made(tmp_path / name) for name in ("a", "b", "c")]
    said = page(write(runs, tmp_path / "all.html")).text["p"]
    assert "is the highest here, as is that of b and c." in said
