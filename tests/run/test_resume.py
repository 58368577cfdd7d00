"""A run that ended early goes on from its last checkpoint, and ends as it would have."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil

import pytest
import torch
from rich.console import Console

from fedms import report
from fedms.core.errors import UserError
from fedms.events import RoundBegins, Saved
from fedms.progress import Progress
from fedms.run import Evaluated, Finished, RoundDone, Started, resume, run
from fedms.store import files as store
from fedms.store import run_folder, states
from fedms.store.files import locked


class EndError(Exception):
    """The process ends here."""


COUNTED = Started, RoundDone, Evaluated, Finished


def ended(config, path, *, after):
    """A run that ends after so many events."""
    left = iter(range(after))

    def watch(event):
        if isinstance(event, COUNTED) and next(left, None) is None:
            raise EndError

    with pytest.raises(EndError):
        run(config, path, watch=watch)


EVENTS = 7
"""Started, then of four rounds each that it is done, and at its end or the stage's its scores."""


@pytest.mark.quick("0", "4", "7")
@pytest.mark.parametrize("after", [0, 2, 4, 5, EVENTS])
def test_a_run_ends_as_if_nothing_had_happened(tmp_path, small, done, after, ending):
    config = small("partition.unseen_clients=1")
    ended(config, tmp_path / "run", after=after)
    summary = resume(tmp_path / "run")
    expected = done("partition.unseen_clients=1").path
    assert ending(tmp_path / "run") == ending(expected)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.slow
def test_so_many_events_there_are(tmp_path, small):
    seen = []
    run(small("partition.unseen_clients=1"), tmp_path / "run", watch=seen.append)
    assert [type(e) for e in seen[:4]] == [Started, RoundBegins, RoundDone, Saved]
    assert sum(isinstance(e, RoundBegins) for e in seen) == sum(isinstance(e, Saved) for e in seen)
    seen = [event for event in seen if isinstance(event, COUNTED)]
    assert len(seen) == EVENTS + 1  # the last says that it is complete
    assert [type(e) for e in seen[:2]] == [Started, RoundDone]
    assert sum(isinstance(e, Evaluated) for e in seen) == 2


def test_a_complete_run_is_left_as_it_is(tmp_path, done):
    shutil.copytree(done().path, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert resume(tmp_path / "run") == json.loads((tmp_path / "run/summary.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("before", [1000.0, None])
def test_time_is_of_all_processes_and_time_left_of_rounds_done_here(tmp_path, small, done, before):
    """None: by a version that did not write it down."""
    path, seen, shown = tmp_path / "run", [], Console(file=io.StringIO(), width=200)
    ended(small(), path, after=4)  # of four rounds two count
    first, last, _ = map(json.loads, (path / "rounds.jsonl").read_text().splitlines())
    assert first["wall_seconds"] < last["wall_seconds"]
    last["wall_seconds"] = before
    last["hash"] = run_folder._hash(last)
    (path / "rounds.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(last)}\n")
    cost = resume(path, watch=seen.append)["cost"]
    (third, fourth) = (event for event in seen if isinstance(event, RoundDone))
    assert third.seconds_left == third.seconds < 1000
    assert fourth.seconds_left == 0
    if before is None:
        assert cost["wall_seconds"] is third.record.wall_seconds is None
    else:
        assert 1000 < third.record.wall_seconds < fourth.record.wall_seconds < cost["wall_seconds"]
        assert cost["wall_seconds"] < 2000
    Progress(small(), shown, quiet=True)(seen[-1])
    assert ("parameters trained;" in shown.file.getvalue()) == (before is not None)
    assert report.write([path, done().path], tmp_path / "report.html")


@pytest.mark.slow
def test_other_versions_are_told_of_and_written_down(tmp_path, small):
    path, told = tmp_path / "run", []
    ended(small(), path, after=4)
    facts = json.loads((path / "environment.json").read_text())
    facts["packages"]["torch"] = "2.0.0"
    (path / "environment.json").write_text(json.dumps(facts))
    resume(path, tell=told.append)
    (said,) = told
    assert f"torch 2.0.0, now {torch.__version__.split('+')[0]}" in said
    after = json.loads((path / "environment.json").read_text())
    (again,) = after.pop("resumed")
    assert after == facts
    assert again["packages"]["torch"] != "2.0.0"


def server(path):
    return sorted((path / "checkpoints" / "server").iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def alter(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.quick("client-alter")
@pytest.mark.parametrize("damage", [cut, alter])
@pytest.mark.parametrize("which", ["server", "client"])
def test_what_is_damaged_is_named_and_the_checkpoint_before_it_used(
    tmp_path, small, done, damage, which, ending
):
    path, told = tmp_path / "run", []
    ended(small(), path, after=6)
    assert [p.name for p in server(path)] == ["000002.safetensors", "000003.safetensors"]
    clients = path / "checkpoints" / "clients"
    bad = server(path)[-1] if which == "server" else clients / "1" / "000002.safetensors"
    damage(bad)
    resume(path, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"got {bad}, which is damaged: ")
    assert ending(path) == ending(done().path)


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path, small):
    ended(small(), tmp_path / "run", after=6)
    for state in server(tmp_path / "run"):
        cut(state)
    with pytest.raises(UserError, match="no checkpoint of which is whole"):
        resume(tmp_path / "run")


@pytest.mark.slow
def test_records_that_are_lost_are_missed(tmp_path, small, done, ending):
    """Of the last round, after a power failure: it is done again. Of all: there is no going on."""
    path, told = tmp_path / "run", []
    ended(small(), path, after=6)
    rounds = (path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (path / "rounds.jsonl").write_text("".join(rounds[:2]) + rounds[2][:20])
    resume(path, tell=told.append)
    assert len(told) == 1
    assert "which lacks some of 3 rounds; going back to an earlier checkpoint" in told[0]
    assert ending(path) == ending(done().path)
    ended(small(), tmp_path / "other", after=6)
    (tmp_path / "other" / "rounds.jsonl").write_text("")
    with pytest.raises(UserError, match="no checkpoint of which is whole"):
        resume(tmp_path / "other")


@pytest.mark.slow
def test_costs_that_were_altered_are_found_out(tmp_path, small, done, ending):
    path, told = tmp_path / "run", []
    ended(small(), path, after=6)
    first, second, third, _ = (path / "rounds.jsonl").read_text().splitlines()
    bytes_up = json.loads(third)["upload_bytes"]
    third = third.replace(f'"upload_bytes": {bytes_up}', f'"upload_bytes": {bytes_up + 1}')
    (path / "rounds.jsonl").write_text("\n".join([first, second, third, ""]))
    resume(path, tell=told.append)
    assert len(told) == 1
    assert "which is damaged in round 3; going back to an earlier checkpoint" in told[0]
    assert ending(path) == ending(done().path)


@pytest.mark.slow
def test_checkpoints_may_be_rare(tmp_path, small, done, ending):
    """Clients keep what they need to go back that far."""
    rare = "checkpoint_every=2"
    for after in (5, 6):  # 2 and 3 rounds are done
        path = tmp_path / str(after)
        ended(small(rare), path, after=after)
        assert [p.name for p in server(path)] == ["000002.safetensors"]
        resume(path)
        assert ending(path) == ending(done(rare).path)


def test_a_run_goes_on_with_what_it_began_with_or_not_at_all(tmp_path, small, monkeypatch):
    ended(small(), tmp_path / "run", after=4)
    known = json.loads((tmp_path / "run/environment.json").read_text())
    known["identity"]["weights"] = "others"
    (tmp_path / "run/environment.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"whose weights \(glyphclip\) are other ones now"):
        resume(tmp_path / "run")


def test_two_processes_do_not_share_a_run(tmp_path, small):
    ended(small(), tmp_path / "run", after=4)
    with (
        locked(tmp_path / "run" / "config.toml"),
        pytest.raises(UserError, match="where another process is at work"),
    ):
        resume(tmp_path / "run")
    with (
        locked(tmp_path / "run" / "config.toml"),
        pytest.raises(UserError, match=r"to replace by force, where another process is at work"),
    ):
        run(small(), tmp_path / "run", force=True)


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path, small, monkeypatch):
    ended(small("runtime.threads="), tmp_path / "run", after=4)
    known = json.loads((tmp_path / "run/environment.json").read_text())
    (tmp_path / "run/environment.json").write_text(json.dumps({**known, "threads": 3}))
    seen = []
    resume(tmp_path / "run", watch=lambda event: seen.append(torch.get_num_threads()))
    assert set(seen) == {3}


def test_what_is_no_run_folder_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match="which is no run folder"):
        resume(tmp_path)


METHODS = ("fedadam", "flora", "fedcgs", "ditto", "dual")
"""Of every kind one; `make soak` does it with all."""


@pytest.mark.quick("fedadam")
@pytest.mark.parametrize("method", METHODS)
def test_methods_go_on_as_if_nothing_had_happened(tmp_path, small, done, method, ending):
    """From a moment that differs between methods."""
    words = (f"method={method}", "partition.unseen_clients=1")
    expected = done(*words).path
    rounds = len(ending(expected)[1]["rounds"])
    ended(small(*words), tmp_path / "run", after=1 + METHODS.index(method) % rounds)
    resume(tmp_path / "run")
    assert ending(tmp_path / "run") == ending(expected)


class Writes:
    """Ends the process at one of its writes: before it, or in the middle of a line."""

    def __init__(self, monkeypatch, at):
        self.count, self.at = 0, at
        for name in ("write_bytes", "append_json"):
            monkeypatch.setattr(store, name, self.wrap(name, getattr(store, name)))
        monkeypatch.setattr(states, "write_bytes", store.write_bytes)
        monkeypatch.setattr(run_folder, "append_json", store.append_json)

    def wrap(self, name, write):
        def ending(path, value):
            self.count += 1
            if self.count == self.at:
                if name == "append_json":
                    with path.open("a") as file:
                        file.write('{"round": 0, "sta')
                raise EndError
            write(path, value)

        return ending


def writes(config, path, at):
    """A run that ends at that write, or how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        counted = Writes(patch, at)
        if at:
            with pytest.raises(EndError):
                run(config, path)
        else:
            run(config, path)
    return counted.count


@pytest.mark.quick("0.5")
@pytest.mark.parametrize("share", [0.05, 0.5, 0.75, 1.0])
def test_a_run_may_end_at_any_write(tmp_path, small, done, share, ending):
    """`make soak` kills whole processes, at any moment."""
    expected = done().path
    last = writes(small(), tmp_path / "counted", 0)
    at = max(5, round(share * last))  # the folder itself is made as a whole, or not at all
    writes(small(), tmp_path / "run", at)
    (tmp_path / "run/adapters").mkdir(exist_ok=True)
    (tmp_path / "run/adapters/.global.1234.aside").mkdir()  # as a killed process leaves one
    resume(tmp_path / "run")
    assert not [*(tmp_path / "run").rglob(".*")]
    assert (tmp_path / "run/report.html").exists()
    assert ending(tmp_path / "run") == ending(expected)


class Full:
    """A disk that takes so many writes to it and no more, or counts them."""

    def __init__(self, patch, takes, code):
        self.left, self.count, self.code, self.fsync = takes, 0, code, os.fsync
        patch.setattr(os, "fsync", self)

    def __call__(self, handle):
        if self.count == self.left:
            raise OSError(self.code, os.strerror(self.code))
        self.count += 1
        self.fsync(handle)


def flushes(config, path, takes=None, code=errno.ENOSPC, perform=run):
    with pytest.MonkeyPatch.context() as patch:
        disk = Full(patch, takes, code)
        perform(config, path)
    return disk.count


@pytest.mark.quick("0.7")
@pytest.mark.parametrize(
    ("share", "code"), [(0.3, errno.ENOSPC), (0.7, errno.EROFS), (0.9, errno.ENOSPC)]
)
def test_a_full_disk_ends_a_run_in_one_line_and_it_can_go_on(
    tmp_path, small, done, share, code, ending
):
    """In the middle of a checkpoint, of a line, of models; and again while it goes on."""
    every = flushes(small(), tmp_path / "counted")
    said = rf"got .*run, which cannot be written \(.*{os.strerror(code)}\).*try to resume"
    with pytest.raises(UserError, match=said):
        flushes(small(), tmp_path / "run", round(share * every), code)
    with pytest.raises(UserError, match=said):
        flushes(None, tmp_path / "run", 1, code, lambda _, path: resume(path))
    resume(tmp_path / "run")
    assert ending(tmp_path / "run") == ending(done().path)


def test_a_disk_that_is_full_at_the_start_is_told_of(tmp_path, small):
    with pytest.raises(UserError, match=r"run folder .*run, which cannot be written: .*No space"):
        flushes(small(), tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()
