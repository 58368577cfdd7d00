"""How events are printed: names with brackets stay as they are, lists stay short."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedms.config import load_config
from fedms.core.rows import ClientSizes
from fedms.progress import Progress
from fedms.run import Evaluated, Finished, RoundDone, Started
from fedms.runtimes.rounds import RoundRecord


def printed(*events, overrides=()) -> str:
    out = io.StringIO()
    progress = Progress(load_config(None, overrides), Console(file=out, width=100, highlight=False))
    for event in events:
        progress(event)
    return out.getvalue()


def started(*clients: str) -> Started:
    sizes = [ClientSizes(client, 1234, 5, 6, 3) for client in clients]
    return Started(SimpleNamespace(partition=sizes, partition_summary="so many rows"), Path("r"), 4)


def record(**changes) -> RoundRecord:
    facts = {
        "round": 1,
        "stage": 2,
        "depth": 3,
        "client_depths": (2, 4, 3),
        "cohort": ("a", "b", "c"),
        "rejected": {},
        "warned": {},
        "late": (),
        "validation": 0.5,
        "upload_bytes": 1,
        "download_bytes": 1,
        "trainable_parameters": 1,
        "seconds": 1.0,
    }
    return RoundRecord(**{**facts, **changes})


def line(sent=1_234_567, **changes) -> str:
    return printed(RoundDone(record(**changes), 6, 4, sent, 12.3, 45.6))


def test_round_line():
    expected = "stage 2  round   2/4  depth 2–4/6  validation 0.500  sent 1.2 MB  12 s, 46 s left\n"
    assert line() == expected
    assert "depth 3/6" in line(client_depths=(3, 3))
    assert "validation –" in line(validation=None)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000_000, "2.5 GB"), (10**16, "TB")],
)
def test_sizes(sent, shown):
    assert f"{shown}  12 s" in line(sent).replace("10000.0 ", "")


def test_rejected_clients_are_named_with_the_reason():
    text = line(rejected={"[b]": "has values that are not finite"})
    assert "rejected client [b]: has values that are not finite" in text


def test_partition_names_every_client_up_to_twenty():
    assert "so many rows" in printed(started("a"))
    assert "1,234" in printed(started("a"))
    text = printed(started(*(f"client{i:02}" for i in range(23))))
    assert "client19" in text
    assert "client20" not in text
    assert "… and 3 more clients" in text


@pytest.mark.parametrize("name", ["[deleted]", "[/b]", "[red]x"])
def test_brackets_in_names_are_no_markup(name):
    assert name in printed(started(name))
    assert name in printed(started("a"), overrides=[f"model.name={name}"])


def test_evaluation():
    text = printed(Evaluated(3, {"global": 0.5, "personal": 0.75}))
    assert text == "  test accuracy after round 3: global expert 0.500, personal 0.750\n"


def test_table_leaves_out_what_was_not_measured():
    scores = {"mean": 0.5, "worst_decile": 0.25, "weighted": 0.625, "std": 0.125}
    test = {"zero_shot": None, "global": scores, "local": None, "personal": scores, "unseen": None}
    cost = {
        "upload_bytes": 1500,
        "download_bytes": 0,
        "trainable_parameters": 25,
        "total_parameters": 1000,
        "wall_seconds": 7.0,
    }
    summary = {"test": test, "cost": cost, "not_used": 0}
    text = printed(Finished(summary, Path("runs/x")), overrides=["method=local"])
    assert "not used" not in text
    some = printed(Finished({**summary, "not_used": 3}, Path("runs/x")))
    assert "not used: 3 updates; rounds.jsonl says why" in some
    rows = [row.split("│")[1:-1] for row in text.splitlines() if row.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [[n, "0.500", "0.250", "0.625", "0.125"] for n in ("global expert", "local")]
    assert "1.5 kB up and 0 B down" in text
    assert "2.50% of 1,000 parameters" in text
    assert text.endswith("run folder: runs/x\nreport: runs/x/report.html\n")
    text = printed(Finished(summary, Path("runs/x"), "why"), overrides=["method=local"])
    assert text.endswith("run folder: runs/x\nno report: why\n")


def told(*, terminal: bool) -> str:
    """What the start and a round show."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal)
    with Progress(load_config(None), console) as progress:
        progress(started("a"))
        progress(RoundDone(record(), 6, 4, 1, 12.3, 45.6))
    return out.getvalue()


def test_a_bar_is_for_terminals():
    assert "2/4 rounds" in told(terminal=True)
    plain = told(terminal=False)
    assert "2/4 rounds" not in plain
    assert "stage 2  round   2/4" in plain
    assert "\x1b" not in plain


def test_quiet_is_quiet_until_the_end():
    out = io.StringIO()
    scores = {"mean": 0.5, "worst_decile": 0.25, "weighted": 0.625, "std": 0.125}
    cost = {"upload_bytes": 1, "download_bytes": 1, "trainable_parameters": 1}
    cost |= {"total_parameters": 4, "wall_seconds": 1.0}
    with Progress(load_config(None), Console(file=out), quiet=True) as progress:
        progress(started("a"))
        progress(RoundDone(record(), 6, 4, 1, 12.3, 45.6))
        assert out.getvalue() == ""
        progress(Finished({"test": {"personal": scores}, "cost": cost}, Path("runs/x")))
    assert "0.625" in out.getvalue()
    assert out.getvalue().endswith("run folder: runs/x\nreport: runs/x/report.html\n")
