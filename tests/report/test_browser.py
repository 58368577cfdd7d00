"""Reports in a real browser: Chromium of the system, without a network, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'fedms[browser]'")

from fedms.report import write  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
READY = "document.documentElement.dataset.ready === 'yes'"
SIZES = (1, 10, 1000)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="module")
def reports(made, strange, tmp_path_factory):
    """Paths of reports by what they are of."""
    root = tmp_path_factory.mktemp("reports")
    runs = {
        "1": made(root / "1", clients=1),
        "10": made(root / "10", change=strange),
        "1000": made(root / "1000", clients=1000, classes=62, rounds=40),
        "fedavg": made(root / "fedavg", method="fedavg"),
        "local": made(root / "local", method="local"),
        "ended": made(root / "ended", rounds=7, complete=False, details=False),
        "begun": made(root / "begun", complete=False, details=False),
    }
    for name in ("rounds", "clients"):
        (runs["begun"] / f"{name}.jsonl").write_text("")
    found = {name: write([run]) for name, run in runs.items()}
    several = [runs[name] for name in ("10", "fedavg", "local", "ended", "begun")]
    found["several"] = write(several, root / "several.html")
    return found


@contextmanager
def opened(browser, path, *, width=1200, height=900, scheme="light", script=True):
    """A page of a report; on leaving it, nothing was complained of and nothing was asked for."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=script,
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    if script:
        page.wait_for_function(READY)
    yield page
    assert said == []
    assert asked == [path.as_uri()]
    context.close()


def summary(path):
    return json.loads((path.parent / "summary.json").read_text())


def at(facts, key):
    for name in key.split("."):
        facts = facts[name]
    return facts


WHAT = ("1", "10", "1000", "fedavg", "ended", "begun", "several")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("what", WHAT)
def test_every_figure_is_drawn_without_complaint(browser, reports, what, scheme):
    with opened(browser, reports[what], scheme=scheme) as page:
        empty = page.evaluate(
            """[...document.querySelectorAll('.run:not([hidden]) .chart, #runs .chart')]
            .filter((figure) => !figure.querySelector('svg[role=img], .absent'))
            .map((figure) => figure.dataset.chart)"""
        )
        assert empty == []
        assert page.evaluate("window.struck") is None
        assert not page.locator("main").inner_text().count("NaN")
        assert not page.evaluate("document.querySelector('main').innerHTML.includes('NaN')")


@pytest.mark.parametrize("what", ["1", "10", "1000"])
def test_the_numbers_shown_are_those_of_the_summary(browser, reports, what):
    with opened(browser, reports[what]) as page:
        shown = page.evaluate(
            """[...document.querySelectorAll('data[data-key]')].filter((d) => d.checkVisibility())
            .map((d) => [d.dataset.key, Number(d.value), d.innerText])"""
        )
        expected = summary(reports[what])
        assert len(shown) >= 20
        for key, value, text in shown:
            assert value == at(expected, key)
            if key.startswith("test."):
                assert text == f"{100 * value:.1f} %"
        tested = expected["test"]["personal"]["per_client"]
        cells = page.locator("table.clients tbody tr").evaluate_all(
            "rows => rows.map((row) => [row.cells[0].innerText.trim(), row.cells[2].innerText])"
        )
        assert dict(cells) == {c.strip(): f"{100 * a:.1f}" for c, a in tested.items()}


def test_a_client_is_found_and_followed_through_all_figures(browser, reports):
    with opened(browser, reports["1000"]) as page:
        page.get_by_label("find a client").fill("517")
        page.wait_for_selector(".card h3")
        rows = page.locator("table.clients tbody tr:not([hidden])")
        assert rows.count() == 1
        assert page.locator(".card h3").inner_text() == "Client 517"
        own = summary(reports["1000"])["test"]["personal"]["per_client"]["517"]
        assert f"personal {100 * own:.1f} %" in page.locator(".card p").inner_text()
        assert "client 517" in page.locator("[data-chart=gate] .legend").inner_text()
        page.get_by_label("find a client").fill("")
        page.wait_for_selector(".card h3", state="detached")
        assert rows.count() == 1000
        assert page.locator(".card").count() == 0


def test_clients_are_sorted_by_the_table_and_the_keyboard(browser, reports):
    with opened(browser, reports["1000"]) as page:
        head = page.locator("table.clients th[data-column=zero_shot]")
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        first = page.locator("table.clients tbody tr").first
        tested = summary(reports["1000"])["test"]["zero_shot"]["per_client"]
        assert first.locator("td").nth(4).inner_text() == f"{100 * max(tested.values()):.1f}"
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert first.locator("td").nth(4).inner_text() == f"{100 * min(tested.values()):.1f}"
        assert page.get_by_label("order by").input_value() == "zero_shot"


def test_figures_answer_to_keys_and_pointers(browser, reports):
    lines = (reports["10"].parent / "rounds.jsonl").read_text().split("\n")[:-1]
    rounds = [json.loads(line) for line in lines]
    with opened(browser, reports["10"]) as page:
        tip, chart = page.locator("#tip"), page.locator("[data-chart=accuracy] svg[role=img]")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        said = tip.inner_text()
        assert said.startswith("Round 11, stage 2")
        assert f"{100 * rounds[10]['validation']:.1f} %" in said
        page.keyboard.press("Escape")
        assert "on" not in (tip.get_attribute("class") or "")
        chart.hover(position={"x": 60, "y": 90})
        assert tip.inner_text().startswith("Round 1, stage 0")
        strip = page.locator("[data-chart=strips] svg[role=img]")
        strip.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card h3")
        title = "Client </script><img src=x onerror='window.struck = 1'>"
        assert page.locator(".card h3").inner_text() == title
        assert page.evaluate("window.struck") is None


def test_a_curve_can_be_taken_away(browser, reports):
    with opened(browser, reports["10"]) as page:
        box = page.locator("[data-chart=accuracy]")
        curves = box.locator("svg[role=img] path[stroke-width='2']")
        before = curves.count()
        box.get_by_role("button", name="test, global expert").click()
        assert curves.count() == before - 1
        pressed = box.get_by_role("button", name="test, global expert").get_attribute(
            "aria-pressed"
        )
        assert pressed == "false"


def test_everything_can_be_reached_by_keyboard(browser, reports):
    """Tab goes through all controls and figures that are shown, and out again."""
    with opened(browser, reports["10"]) as page:
        wanted = page.evaluate(
            """[...document.querySelectorAll('button, input, select, summary, svg[role=img]')]
            .filter((e) => e.checkVisibility()).length"""
        )
        page.evaluate("window.reached = new Set()")
        for _ in range(wanted + 60):
            page.keyboard.press("Tab")
            page.evaluate("reached.add(document.activeElement)")
        reached = page.evaluate(
            """[...reached].filter((e) => e.matches('button, input, select, summary, svg'))
            .length"""
        )
        assert reached == wanted > 30
        unnamed = page.evaluate(
            """[...document.querySelectorAll('svg[role=img]')].filter((e) => !e.ariaLabel).length"""
        )
        assert unnamed == 0


@pytest.mark.parametrize("what", ["10", "1000", "several"])
def test_on_a_phone_the_page_does_not_scroll_sideways(browser, reports, what):
    with opened(browser, reports[what], width=360, height=740) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("table.clients tbody tr button").first.click()
        for summary_ in page.locator("summary:visible").all():
            summary_.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_on_a_phone_scores_are_read_without_scrolling(browser, reports):
    with opened(browser, reports["10"], width=360, height=740) as page:
        mean = page.locator("table.scores tbody tr").first.locator("data[data-key$=mean]")
        box = mean.bounding_box()
        assert 0 < box["x"] < box["x"] + box["width"] < 340


LABELS = """(which) => [...document.querySelectorAll(`[data-chart=${which}] svg[role=img] text`)]
    .map((one) => one.textContent).filter((words) => / (%|MB|kB)$/.test(words))"""


def test_ticks_have_labels_of_their_own(browser, made, tmp_path):
    """Of runs that hardly differ, and of accuracies that stand still."""
    runs = [made(tmp_path / name) for name in "ab"]
    facts = json.loads((runs[1] / "summary.json").read_text())
    facts["cost"]["upload_bytes"] += 9000
    (runs[1] / "summary.json").write_text(json.dumps(facts))
    flat = made(tmp_path / "flat", change=lambda run: setattr(run, "roles", {"personal": 0.99}))
    lines = (flat / "rounds.jsonl").read_text().splitlines()
    still = [json.dumps({**json.loads(line), "validation": 0.75, "test": None}) for line in lines]
    (flat / "rounds.jsonl").write_text("".join(f"{line}\n" for line in still))
    for path, which in ((write(runs, tmp_path / "all.html"), "cost"), (write([flat]), "accuracy")):
        with opened(browser, path) as page:
            found = page.evaluate(LABELS, which)
            assert len(found) == len(set(found)) > 1, found


def test_seconds_are_drawn_where_phases_are_not_known(browser, made, tmp_path):
    run = made(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["costs"]["seconds"] = {}
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with opened(browser, write([run])) as page:
        said = page.locator("[data-chart=seconds] .legend").inner_text()
        assert said == f"{sum(line['seconds'] for line in lines):.0f} s in all"


def test_figures_are_drawn_anew_when_the_window_changes(browser, reports):
    with opened(browser, reports["10"]) as page:
        wide = page.locator("[data-chart=accuracy] svg[role=img]").get_attribute("width")
        page.set_viewport_size({"width": 500, "height": 900})
        page.wait_for_function(
            "document.querySelector('[data-chart=accuracy] svg[role=img]').clientWidth < 500"
        )
        narrow = page.locator("[data-chart=accuracy] svg[role=img]").get_attribute("width")
        assert int(narrow) < int(wide)


def test_without_scripts_answer_and_tables_are_there(browser, reports):
    with opened(browser, reports["several"], script=False) as page:
        assert page.locator("article.run").count() == 5
        assert page.locator("article.run >> visible=true").count() == 5
        assert page.locator("table.clients").first.is_visible()
        assert page.locator("table.scores").first.is_visible()
        assert page.locator("figure.chart >> visible=true").count() == 0
        assert page.locator(".lead").first.is_visible()


def test_runs_are_compared_and_looked_at_one_by_one(browser, reports):
    with opened(browser, reports["several"]) as page:
        cost = page.locator("[data-chart=cost]")
        assert "bytes sent" in cost.locator("svg[role=img]").text_content()
        cost.get_by_role("combobox").select_option("seconds")
        assert "seconds of training" in cost.locator("svg[role=img]").text_content()
        assert page.locator("article.run:visible h2").first.inner_text() == "10"
        page.get_by_label("look at one run").select_option(label="fedavg")
        assert page.locator("article.run:visible").count() == 1
        assert page.locator("article.run:visible h2").first.inner_text() == "fedavg"
        assert page.locator("article.run:visible [data-chart=accuracy] svg[role=img]").is_visible()


CONTRAST = """(scheme) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (color) => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const style = getComputedStyle(document.documentElement);
  const back = light(style.getPropertyValue('--card'));
  const ratio = (name) => {
    const front = light(style.getPropertyValue(name));
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  };
  return Object.fromEntries(['--ink', '--muted', '--personal', '--global', '--local', '--zero',
    '--oracle', '--accent'].map((name) => [name, ratio(name)]));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_what_is_behind(browser, reports, scheme):
    """As WCAG 2 asks: 4.5 for text, 3 for what is drawn."""
    with opened(browser, reports["1"], scheme=scheme) as page:
        found = page.evaluate(CONTRAST)
        assert all(found[name] >= 4.5 for name in ("--ink", "--muted", "--accent"))
        assert all(ratio >= 3 for ratio in found.values()), found


def test_it_prints_on_paper_in_light_colours(browser, reports):
    with opened(browser, reports["10"], scheme="dark") as page:
        page.emulate_media(media="print")
        style = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(style) == "rgb(255, 255, 255)"
        assert page.locator(".bar:visible").count() == 0
        assert page.locator("[data-chart=labels] svg[role=img]").is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")


PICTURES = {
    "light": {"what": "10"},
    "dark": {"what": "10", "scheme": "dark"},
    "phone": {"what": "10", "width": 360, "height": 740},
    "phone-dark": {"what": "10", "width": 360, "height": 740, "scheme": "dark"},
    "one-client": {"what": "1"},
    "thousand-clients": {"what": "1000"},
    "several-runs": {"what": "several"},
    "not-complete": {"what": "ended"},
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(browser, reports, tmp_path, name):
    """Whole pages as PNG, into `$FEDMS_SCREENSHOTS`; and the first one as it prints."""
    how = dict(PICTURES[name])
    folder = Path(os.environ.get("FEDMS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    with opened(browser, reports[how.pop("what")], **how) as page:
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        if name == "light":
            page.pdf(path=folder / "printed.pdf", format="A4")
    assert (folder / f"{name}.png").stat().st_size > 10_000
