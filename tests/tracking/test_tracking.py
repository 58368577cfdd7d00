"""Trackers: what was logged is read back with each library's own reader."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import sys
from pathlib import Path

import pytest

from fedms import measures, tracking
from fedms.config import load_config, untracked
from fedms.core.errors import UserError
from fedms.deploy.terms import differences
from fedms.events import Warned
from fedms.identity import identity
from fedms.run import run, serve
from fedms.store.files import read_lines

SMALL = ["data.max_rows=80", "partition.clients=2", "stage1.rounds=1", "stage2.rounds=1"]
ROOT = Path(__file__).parents[2]
ASIDE = ROOT / ".trackio"
"""Where `make test-trackers` puts Trackio, which does not go together with constraints.txt."""


def environment():
    own = ("WANDB", "MLFLOW", "TRACKIO", "GRADIO", "DO_NOT_TRACK", "PYTHON")
    return {name: value for name, value in os.environ.items() if name.startswith(own)}


def performed(folder, *words, watch=lambda event: None):
    """A small run that is tracked; of trackers there is nothing new in the environment."""
    before = environment()
    summary = run(load_config(None, [*SMALL, *words]), folder, watch=watch)
    assert environment() == before
    return summary


@pytest.fixture
def in_place_of_trackio(tmp_path_factory, monkeypatch):
    """`in_place_of_trackio(text)`: a library of its name, here and in trackers' processes."""

    def put(text):
        folder = tmp_path_factory.mktemp("lib")
        (folder / "trackio.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")

    return put


def by_round(folder, name):
    """What the run folder says of a measure."""
    return [line[name] for line in read_lines(folder / "rounds.jsonl")]


def need(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f'{library} is not installed: pip install "fedms[{library}]"')


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One run with the trackers that are installed and quick."""
    names = [n for n in ("tensorboard", "wandb") if importlib.util.find_spec(n)]
    folder = tmp_path_factory.mktemp("tracked") / "run"
    told = []
    words = [f"tracking.to={names!r}".replace("'", '"'), "tracking.project=digits-try"]
    summary = performed(folder, *words, watch=told.append)
    assert not [event.text for event in told if isinstance(event, Warned)]
    return folder, summary


def test_tensorboard(tracked):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, summary = tracked
    read = EventAccumulator(str(folder / "tracking" / "tensorboard"))
    read.Reload()
    texts = {"config/text_summary", "summary/text_summary"}, {"config", "summary"}
    assert any(names <= {*read.Tags()["tensors"]} for names in texts)  # as its readers name them

    def values(name):
        return [(e.step, e.tensor_proto.float_val[0]) for e in read.Tensors(name)]

    assert [step for step, _ in values("stage")] == [1, 2, 3]
    assert [v for _, v in values("upload_bytes")] == by_round(folder, "upload_bytes")
    assert [v for _, v in values("train_flops")] == pytest.approx(
        [costs["flops"] for costs in by_round(folder, "costs")], rel=1e-6
    )
    last = values("test_accuracy_personal")[-1]
    assert last == (3, pytest.approx(summary["test"]["personal"]["mean"]))


def wandb_records(data):
    """Of an offline run: LevelDB's log format (blocks of 32 KiB) around wandb's own messages.

    Its library writes such files; what reads them is in a program of its own, which sends them.
    """
    from wandb.proto import wandb_internal_pb2

    assert data.startswith(b":W&B")
    at, whole, found = 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:  # too little for a header
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def test_wandb(tracked):
    need("wandb")
    folder, summary = tracked
    (file,) = (folder / "tracking" / "wandb").rglob("run-*.wandb")
    found = wandb_records(file.read_bytes())
    history = [r.history for r in found if r.WhichOneof("record_type") == "history"]
    lines = [{(i.key or ".".join(i.nested_key)): i.value_json for i in h.item} for h in history]
    sent = [int(line["upload_bytes"]) for line in lines if "upload_bytes" in line]
    assert sent == by_round(folder, "upload_bytes")
    (own,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (own.project, own.display_name) == ("digits-try", "digits-fedms-seed0")
    assert "stage1.rounds" in str(own.config)
    assert own.host == ""
    said = {i.key: i.value_json for r in found for i in r.summary.update}
    said |= {i.nested_key[0]: i.value_json for r in found for i in r.summary.update if i.nested_key}
    assert float(said["wall_seconds"]) == pytest.approx(summary["cost"]["wall_seconds"])


@pytest.mark.trackers
def test_mlflow(tmp_path):
    need("mlflow")
    folder = tmp_path / "run"
    summary = performed(folder, "tracking.to=mlflow")
    with sqlite3.connect(folder / "tracking" / "mlflow" / "mlflow.db") as file:
        run_id, status = file.execute("select run_uuid, status from runs").fetchone()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/tracking/mlflow/mlflow.db")
    found = client.get_run(run_id)
    assert (status, found.info.run_name) == ("FINISHED", "digits-fedms-seed0")
    sent = [m.value for m in client.get_metric_history(run_id, "upload_bytes")]
    assert sorted(sent)[-3:] == sorted(by_round(folder, "upload_bytes"))
    assert found.data.params["stage1.rounds"] == "1"
    name = "summary.test_accuracy_personal_mean"
    assert found.data.metrics[name] == pytest.approx(summary["test"]["personal"]["mean"])


@pytest.mark.trackers
def test_trackio(tmp_path, monkeypatch):
    if importlib.util.find_spec("trackio") is None:
        if not ASIDE.is_dir():
            pytest.skip("trackio is not installed: make test-trackers")
        monkeypatch.setattr(sys, "path", [*sys.path, str(ASIDE)])
        monkeypatch.setenv("PYTHONPATH", f"{ASIDE}:{os.environ.get('PYTHONPATH', '')}")
    folder = tmp_path / "run"
    performed(folder, "tracking.to=trackio")
    (place,) = (folder / "tracking" / "trackio").glob("*.db")
    with sqlite3.connect(place) as file:
        logged = file.execute("select step, metrics from metrics order by id").fetchall()
    sent = [
        (step, m["upload_bytes"])
        for step, text in logged
        if "upload_bytes" in (m := json.loads(text))
    ]
    assert sent == [*enumerate(by_round(folder, "upload_bytes"), 1)]


LIBRARY = """
import json, os
class Run:
    def log(self, values, step): pass
def init(**settings):
    said = {"space": settings["space_id"], **os.environ}
    with open(os.path.join(os.environ["TRACKIO_DIR"], "said"), "w") as file:
        json.dump(said, file)
    return Run()
def finish(): pass
"""


@pytest.mark.parametrize("space", [None, "me/board"])
def test_trackio_sends_nowhere_but_where_the_configuration_says(
    tmp_path, space, in_place_of_trackio, monkeypatch
):
    in_place_of_trackio(LIBRARY)
    for name in ("SPACE_ID", "SERVER_URL", "WEBHOOK_URL", "COLOR_PALETTE"):
        monkeypatch.setenv(f"TRACKIO_{name}", "elsewhere")
    words = [] if space is None else [f"tracking.trackio_space={space}"]
    config, told = load_config(None, ["tracking.to=trackio", *words]), []
    with tracking.tracked(config, tmp_path, told.append):
        pass  # of a run without a round
    assert not told
    said = json.loads((tmp_path / "tracking" / "trackio" / "said").read_text())
    assert said["space"] == space
    assert {k for k in said if k.startswith("TRACKIO")} == {"TRACKIO_DIR", "TRACKIO_COLOR_PALETTE"}


def test_a_tracker_that_fails_is_told_of_once_and_the_run_ends(tmp_path, in_place_of_trackio):
    """A library that is there, and raises at its first import."""
    in_place_of_trackio("raise OSError('no space left')")
    told = []
    summary = performed(tmp_path / "run", "tracking.to=trackio", watch=told.append)
    (warned,) = [event.text for event in told if isinstance(event, Warned)]
    assert "trackio tracks this run no longer: OSError: no space left" in warned
    assert summary["rounds"] == 3


def test_a_run_that_fails_is_not_left_open(tmp_path):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(UserError, match="diverged"):
        performed(tmp_path / "run", "tracking.to=tensorboard", "training.learning_rate=1e30")
    read = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard"))
    read.Reload()
    (said,) = read.Tensors("summary")
    assert said.tensor_proto.string_val[0] == b"    complete = false"


def test_a_tracker_that_is_not_installed_is_told_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "fedms\[mlflow\]"'):
        tracking.check(load_config(None, ["tracking.to=mlflow"]))


def test_a_server_too_looks_for_trackers_before_it_makes_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="without wandb"):
        serve(load_config(None, ["tracking.to=wandb"]), None, None, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_it_is_no_part_of_what_a_run_is():
    plain = load_config(None, [])
    one = load_config(None, ["tracking.to=wandb", "tracking.wandb_mode=online"])
    assert untracked(one) == plain
    assert identity(one) == identity(plain)
    assert differences(one, plain) == []


def test_names_of_trackers():
    several = load_config(None, ['tracking.to=["wandb", "mlflow", "wandb"]'])
    assert several.tracking.trackers == ("wandb", "mlflow")
    with pytest.raises(ValueError, match=r"tracking\.to"):
        load_config(None, ["tracking.to=tensorbord"])


def test_what_was_not_measured_is_not_logged():
    summary = {"rounds": 2, "test": {"global": None}, "cost": dict.fromkeys(measures.SUMMED)}
    assert measures.of_summary(summary) == {"rounds": 2}
