"""`fedms report`, of a real run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

SMALL = ("data.max_rows=60", "partition.clients=2", "stage1.rounds=1", "stage2.rounds=1")


def test_a_run_has_a_report_and_it_can_be_written_again(fedms):
    assert fedms("run", *SMALL, "--json", "--out", "a").code == 0
    first = Path("a/report.html").read_text(encoding="utf-8")
    mean = json.loads(Path("a/summary.json").read_text())["test"]["personal"]["mean"]
    (shown,) = re.findall(r'data-key="test.personal.mean">([\d.]+) %</data></strong>', first)
    assert shown == f"{100 * mean:.1f}"
    Path("a/report.html").unlink()
    assert fedms("report", "a") == (0, "report: a/report.html\n", "")
    assert Path("a/report.html").read_text(encoding="utf-8") == first
    assert fedms("report", "a", "--out", "b.html").code == 0
    assert Path("b.html").read_text(encoding="utf-8") == first
    assert fedms("report", "a", "a").out == "report: report.html\n"
    assert Path("report.html").exists()
    said = json.loads(fedms("report", "a", "--json").out, parse_constant=pytest.fail)
    assert said["report"] == "a/report.html"
    assert said["runs"][0]["test"]["personal"]["mean"] == mean


def test_a_file_that_is_no_report_is_left_alone(fedms):
    """Whatever its name: it may be the user's table."""
    assert fedms("run", *SMALL, "--json", "--out", "a").code == 0
    mine = Path("mine.csv")
    mine.write_text("text,label\n", encoding="utf-8")
    ended = fedms("report", "a", "--out", "mine.csv")
    assert (ended.code, mine.read_text(encoding="utf-8")) == (2, "text,label\n")
    assert "where there is a file that is no report of fedms'; it was left alone" in ended.err
    assert fedms("report", "a", "--out", "mine.csv", "--force").code == 0
    assert fedms("report", "a", "--out", "mine.csv").code == 0  # one now


def test_what_cannot_be_done_is_one_line(fedms, tmp_path):
    (tmp_path / "empty").mkdir()
    for words in (["empty"], ["missing"]):
        ended = fedms("report", *words)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == (
            f"fedms: got {words[0]}, which is no run folder; expected one that fedms run made\n"
        )
    assert not list((tmp_path / "empty").iterdir())
    assert fedms("report").code == 2


def test_a_report_that_cannot_be_written_does_not_lose_the_run(fedms, monkeypatch):
    def full(path, text):
        raise OSError("No space left on device")

    monkeypatch.setattr("fedms.report.write_text", full)
    ended = fedms("run", *SMALL, "--json", "--out", "a")
    reason = "got report a/report.html, which cannot be written: No space left on device"
    assert (ended.code, ended.err) == (0, f"fedms: no report: {reason}\n")
    assert json.loads(ended.out)["clients"] == 2
    assert json.loads(Path("a/summary.json").read_text())["clients"] == 2
    assert sorted(os.listdir("a/adapters/clients")) == ["0", "1"]
