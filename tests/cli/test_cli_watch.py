"""`fedms watch`: curves of a run that is complete, that goes on, and that is being written."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from fedms import live
from fedms.core.errors import UserError
from fedms.curves import curve
from fedms.store.files import append_json, write_json, write_text


def line(number: int, **changes) -> dict:
    costs = {"upload_bytes": 1000, "download_bytes": 500}
    test = {"personal": {"mean": 0.5 + number / 100}, "global": {"mean": 0.5}}
    facts = {"round": number, "stage": 1, "client_depths": [1, 2, 3], "validation": 0.1 * number}
    return {**facts, **costs, "test": test, **changes}


@pytest.fixture
def running(tmp_path) -> Path:
    """The folder of a run after three rounds."""
    run = tmp_path / "run"
    run.mkdir()
    write_text(run / "config.toml", "")
    write_json(run / "environment.json", {})
    for number in range(3):
        append_json(run / "rounds.jsonl", line(number))
    for client, score in (("a", 0.9), ("b", 0.2), ("c", None)):
        append_json(run / "clients.jsonl", {"id": client, "test": {"personal": score}})
    return run


def test_json_is_what_the_files_say(fedms, running):
    said = json.loads(fedms("watch", running, "--json").out)
    assert (said["finished"], said["rounds"]) == (False, 3)
    assert said["curves"]["validation accuracy"] == [[1, 0.0], [2, 0.1], [3, 0.2]]
    assert said["curves"]["test accuracy, personal"] == [[1, 0.5], [2, 0.51], [3, 0.52]]
    assert said["curves"]["bytes sent"] == [[1, 1500], [2, 3000], [3, 4500]]
    assert said["curves"]["depth"] == [[1, 2], [2, 2], [3, 2]]
    assert said["clients"] == {"a": 0.9, "b": 0.2}


def test_what_is_no_terminal_is_told_once(fedms, running):
    """Though the run goes on; without escape codes."""
    ended = fedms("watch", running)
    assert ended.code == 0
    assert "validation accuracy: 0.200 after round 3" in ended.out
    assert "bytes sent: 4.5 kB after round 3" in ended.out
    assert "\x1b" not in ended.out
    lines = [line for line in ended.out.splitlines() if str(running) not in line]
    assert max(map(len, lines)) <= 80


def test_one_is_no_plural(fedms, running):
    write_text(running / "rounds.jsonl", "")
    append_json(running / "rounds.jsonl", line(0))
    write_text(running / "clients.jsonl", "")
    append_json(running / "clients.jsonl", {"id": "a", "test": {"personal": 0.9}})
    said = fedms("watch", running).out
    assert said.startswith("1 round: ")
    assert "1 client, personal" in said


def test_a_line_cut_short_is_passed_over(fedms, running):
    with (running / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(line(3))[:40])
    assert "3 rounds" in fedms("watch", running, "--once").out
    assert json.loads(fedms("watch", running, "--json").out)["rounds"] == 3


def test_nothing_is_written_or_locked(fedms, running):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in running.iterdir()}
    fedms("watch", running)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in running.iterdir()} == before


def test_it_follows_until_the_run_is_complete(running, monkeypatch):
    monkeypatch.setattr(live, "_PAUSE", 0.02)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=40)
    watching = threading.Thread(target=live.follow, args=(running,), kwargs={"to": console})
    watching.start()
    append_json(running / "rounds.jsonl", line(3, validation=0.75))
    watching.join(0.3)
    assert watching.is_alive()
    assert "0.750 after round 4" in out.getvalue()
    write_json(running / "summary.json", {})
    watching.join(10)
    assert not watching.is_alive()
    assert "complete, 4 rounds" in out.getvalue()


def test_a_run_without_a_round_yet(fedms, running):
    write_text(running / "rounds.jsonl", "")
    write_text(running / "clients.jsonl", "")
    assert "0 rounds" in fedms("watch", running).out


def test_ctrl_c_ends_it_without_a_word(fedms, running, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "follow", interrupt)
    assert fedms("watch", running) == (0, "", "")


def test_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        live.follow(tmp_path)


def test_a_rising_line_is_drawn_dot_by_dot():
    """From the lower left to the upper right: dots 7, 3, 5 and 4 of a braille character."""
    assert curve([(0, 0), (1, 1)], (0, 1), 1, 1) == [chr(0x2800 + 0x40 + 0x04 + 0x10 + 0x08)]


def test_equal_values_are_a_line_at_the_bottom():
    """Dots 7 and 8 all along."""
    drawn = curve([(1, 0.5), (3, 0.5)], (1, 3), 4, 2)
    assert drawn == ["\u2800" * 4, chr(0x28C0) * 4]
