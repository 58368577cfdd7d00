"""Somebody who took no part adapts as an unseen client of the simulation does, from files alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
from PIL import Image
from safetensors.torch import load_file

from fedms.build import build, load_table
from fedms.config import load_config
from fedms.core.errors import DivergenceError, UserError
from fedms.export import export
from fedms.inputs import read_inputs
from fedms.newcomers import adapt
from fedms.run import run
from fedms.scoring import evaluate
from fedms.store.marks import FEDERATION
from fedms.store.run_folder import RunFolder
from fedms.store.states import load_server_state
from fedms.use import NEW, Models

WAYS = {
    "all that is ours": ("gate.statistics=personal",),
    "a gate alone": ("gate.calibration=false",),
    "stage 1 alone": ("stage2.rounds=0", "gate.statistics=personal"),
    "a linear head": ("model.head=linear",),
    **{m: (f"method={m}",) for m in ("finetune", "local", "fedalt", "dual", "fedcgs")},
    "dual by an MLP": ("method=dual", "baselines.gate_hidden=4"),
}
WITHOUT = ("fedavg", "flora", "centralised")


@pytest.fixture(scope="module")
def hospitals(small, tmp_path_factory):
    """Digits of four sites in one file, the newcomer's own in another; settings of a run."""
    place = tmp_path_factory.mktemp("hospitals")
    config = small("partition.clients=4", "data.max_rows=160")
    federation, table, rows = build(config).federation, load_table(config), []
    for site, who in zip("abcd", federation.clients, strict=True):
        for split in ("train", "val", "test"):
            for i in getattr(who, split):
                picture = io.BytesIO()
                Image.fromarray(table.inputs[i]).save(picture, "PNG")
                rows.append((picture.getvalue(), table.labels[i], split, site))
    every = pandas.DataFrame(rows, columns=["picture", "digit", "split", "site"])
    every.to_parquet(place / "all.parquet")
    words = (
        *("data.source=parquet", f"data.path={place}/all.parquet", "data.input=picture"),
        *("data.label=digit", "data.split=split", "data.max_rows=", "runtime.threads=1"),
        *("partition.by=column", "partition.column=site", "partition.unseen_clients=1"),
        *("partition.unseen_rows=1000", "partition.unseen_rounds=2", "name=hospitals"),
        f"data.classes={json.dumps(sorted(federation.classes))}",
    )
    (unseen,) = build(small(*words)).unseen
    own = place / "own.parquet"
    every[every.site == unseen.id].drop(columns="site").to_parquet(own)
    return SimpleNamespace(place=place, words=words, unseen=unseen.id, own=own, rows=every)


@pytest.fixture(scope="module")
def given(hospitals):
    """The newcomer's settings."""
    return (f"data.path={hospitals.own}", "data.split=split")


@pytest.fixture(scope="module")
def finished(done, hospitals):
    return done(*hospitals.words, *WAYS["all that is ours"]).path


@pytest.mark.quick("all that is ours")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_as_in_the_simulation(done, hospitals, given, tmp_path, way):
    was = done(*hospitals.words, *way)
    found = adapt(was.path, tmp_path / "own", given, client=hospitals.unseen)
    for when, name in (("before", "unseen"), ("after", "unseen_adapted")):
        then, score = was.summary["test"][name], found[when]["test"]["personal"]
        assert score["accuracy"] == then["mean"]
        assert score["loss"] == pytest.approx(then["loss"], abs=1e-6)
    again = evaluate(tmp_path / "own")[hospitals.unseen]["personal"]
    assert again["accuracy"] == found["after"]["test"]["personal"]["accuracy"]
    assert again["loss"] == pytest.approx(found["after"]["test"]["personal"]["loss"], abs=2e-5)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("adapted.json", "config.toml")
    }


@pytest.mark.quick("all that is ours")
@pytest.mark.parametrize("way", ["all that is ours", "finetune", "fedalt", "stage 1 alone"])
def test_an_export_is_enough(done, hospitals, given, tmp_path, way):
    """What is handed over makes the same models, and names nobody and no place."""
    path = done(*hospitals.words, *WAYS[way]).path
    if way == "fedalt":  # clients share no expert, so that there is nothing to export
        with pytest.raises(UserError, match="clients share no expert"):
            export(path, tmp_path / "shared", NEW)
        return
    export(path, tmp_path / "shared", NEW)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert ("sums of rows' features" in card) == (way != "finetune")
    text = (tmp_path / "shared" / FEDERATION / "config.toml").read_text()
    assert str(hospitals.place) not in text
    for who in ("site", "caps.a"):
        assert f'"{who}"' not in text
    adapt(path, tmp_path / "one", given, client="e")
    for source in (tmp_path / "shared", tmp_path / "shared" / FEDERATION):
        adapt(source, tmp_path / "two", given, client="e", force=True)
        assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_export_has_no_more_than_clients_were_sent(finished, tmp_path):
    """No momentum, and nothing of one client."""
    export(finished, tmp_path / "shared", NEW)
    state = tmp_path / "shared" / FEDERATION / "state.safetensors"
    names = set(Models(finished).learner.layout.shapes)
    kinds = {name.split("/")[0] for name in load_file(state)}
    assert load_server_state(state)[0].queue == ()
    assert kinds <= {"global", "gate", "statistics", "calibration"}
    assert {n.split("/", 1)[1] for n in load_file(state) if n.startswith("global/")} <= names


def test_whoever_has_a_model_of_its_own_exports_no_federation(finished, tmp_path):
    client = Models(finished).clients[0]
    export(finished, tmp_path / "own", client)
    assert not (tmp_path / "own" / FEDERATION).exists()


def test_the_folder_is_used_as_a_run_is(finished, hospitals, given, tmp_path):
    adapt(finished, tmp_path / "e", given)
    models = Models(tmp_path / "e")
    assert models.only() == "e"
    table = read_inputs([str(hospitals.own)], (), "image", "picture")
    said = [each.label for each in models.predict(table, "e")]
    assert len(said) == len(pandas.read_parquet(hospitals.own))
    export(tmp_path / "e", tmp_path / "card", "e")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "- adapted: 2 rounds on the client's own rows" in card
    assert "test accuracy, personal" in card
    assert not (tmp_path / "card" / FEDERATION).exists()


def test_no_rounds_are_what_is_shared_with_its_own_classes(finished, given, tmp_path):
    found = adapt(finished, tmp_path / "e", given, rounds=0)
    assert found["before"]["test"] == found["after"]["test"]
    assert "local" not in found["after"]["test"]
    scored = evaluate(tmp_path / "e")["e"]["personal"]
    assert scored["accuracy"] == found["after"]["test"]["personal"]["accuracy"]


@pytest.mark.quick("fedavg")
@pytest.mark.parametrize("method", WITHOUT)
def test_methods_without_models_of_their_own(done, hospitals, given, tmp_path, method):
    path = done(*hospitals.words, f"method={method}").path
    with pytest.raises(UserError, match="have no models of their own"):
        adapt(path, tmp_path / "e", given)
    assert not (tmp_path / "e").exists()


def test_rows_that_have_changed_since(finished, hospitals, tmp_path):
    """Rows that it trained on must not become test rows."""
    shutil.copyfile(hospitals.own, tmp_path / "rows.parquet")
    adapt(finished, tmp_path / "e", (f"data.path={tmp_path}/rows.parquet",), rounds=1)
    evaluate(tmp_path / "e")
    pandas.read_parquet(hospitals.own)[1:].to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="are other ones now"):
        evaluate(tmp_path / "e")


def test_mistakes(finished, hospitals, given, tmp_path, small):
    odd = hospitals.rows.copy()
    odd["digit"] = "eleven"
    odd.to_parquet(tmp_path / "odd.parquet")
    one = hospitals.rows[:1].copy()
    one["split"] = "test"
    one.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    to = tmp_path / "e"
    for words, wanted, message in (
        ((), {}, "got no data.path"),
        ((*given, "method=fedavg"), {}, "all else is as the run had it"),
        ((*given, 'data.classes=["0"]'), {}, "all else is as the run had it"),
        ((f"data.path={tmp_path}/none.parquet",), {}, "none.parquet"),
        ((f"data.path={tmp_path}/odd.parquet",), {}, "eleven"),
        ((f"data.path={tmp_path}/one.parquet", "data.split=split"), {}, "train"),
        (given, {"client": NEW}, "expected a name"),
        (given, {"client": ""}, "expected a name"),
        (given, {"rounds": -1}, "at least 0"),
        (given, {"rounds": 1.5}, "whole number"),
        ((*given, "model.name=no-such"), {}, "no-such"),
    ):
        with pytest.raises(UserError, match=message):
            adapt(finished, to, words, **wanted)
        assert not to.exists()
    for force in (False, True):
        with pytest.raises(UserError, match="which exists"):
            adapt(finished, tmp_path / "there", given, force=force)
    with pytest.raises(UserError, match="no run folder"):
        adapt(tmp_path / "there", to, given)
    adapt(finished, to, given, rounds=1)
    with pytest.raises(UserError, match="which exists"):
        adapt(finished, to, given)
    assert adapt(finished, to, given, rounds=2, force=True)["rounds"] == 2


def test_another_foundation_model(finished, given, tmp_path, model_folder):
    export(finished, tmp_path / "shared", NEW)
    name = model_folder("clip")
    with pytest.raises(UserError, match="another foundation model"):
        adapt(tmp_path / "shared", tmp_path / "e", (*given, f"model.name={name}"))


def test_damaged_and_unfinished_runs(finished, given, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    state = RunFolder(copy).server_states
    path = state.path(max(state.rounds()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        adapt(copy, tmp_path / "e", given)
    (copy / "rounds.jsonl").unlink()
    shutil.copyfile(finished / "checkpoints" / "server" / path.name, path)
    with pytest.raises(UserError, match="lacks some of"):
        adapt(copy, tmp_path / "e", given)
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="ended early"):
        adapt(copy, tmp_path / "e", given)


def test_a_run_of_the_embedded_digits(small, tmp_path, given):
    run(small("runtime.threads=1"), tmp_path / "run")
    words = (*given, "data.input=picture", "data.label=digit")
    found = adapt(tmp_path / "run", tmp_path / "e", words, rounds=1)
    assert found["rows"]["train"] > 0
    assert load_config(tmp_path / "e" / "config.toml").data.source == "parquet"


def test_what_comes_to_the_folder_meanwhile_stays(finished, given, tmp_path):
    to = tmp_path / "e"

    def come(text: str) -> None:
        to.mkdir(exist_ok=True)
        (to / "thesis.txt").write_text("precious")

    with pytest.raises(UserError, match="which exists"):
        adapt(finished, to, given, rounds=1, tell=come)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]
    assert [p.name for p in to.iterdir()] == ["thesis.txt"]


def test_what_it_is_made_of_is_not_replaced(finished, hospitals, given, tmp_path):
    """Neither its rows, nor the foundation model, nor what is adapted."""
    to = tmp_path / "e"
    adapt(finished, to, given, rounds=0)
    shutil.copyfile(hospitals.own, to / "rows.parquet")
    (to / "model").mkdir()
    export(finished, to / "shared", NEW)
    before = sorted(to.rglob("*"))
    for source, words in (
        (finished, (f"data.path={to}/rows.parquet",)),
        (finished, (*given, f"model.name={to}/model")),
        (finished, (*given, f"model.name={to}")),
        (to / "shared", given),
    ):
        with pytest.raises(UserError, match="which is replaced; expected them apart"):
            adapt(source, to, words, force=True)
    assert sorted(to.rglob("*")) == before


def test_not_the_folder_one_is_in(finished, given, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="the folder that this is called in"):
        adapt(finished, Path(), given, rounds=0)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_paths_of_a_home_folder(finished, hospitals, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(hospitals.place))
    adapt(finished, tmp_path / "e", ("data.path=~/own.parquet",), rounds=0)
    assert load_config(tmp_path / "e" / "config.toml").data.path == str(hospitals.own)


@pytest.mark.parametrize("rate", ["1e30", "1e12"])
def test_training_that_diverges_leaves_nothing(finished, given, tmp_path, rate):
    with pytest.raises(DivergenceError, match="training diverged"):
        adapt(finished, tmp_path / "e", (*given, f"training.learning_rate={rate}"))
    assert not any(tmp_path.iterdir())


def test_one_clients_folder_is_no_source(finished, given, tmp_path):
    adapt(finished, tmp_path / "e", given, rounds=0)
    with pytest.raises(UserError, match="which is one client's"):
        adapt(tmp_path / "e", tmp_path / "f", given)


def test_what_was_exported_is_as_it_was(finished, given, tmp_path):
    export(finished, tmp_path / "shared", NEW)
    config = tmp_path / "shared" / FEDERATION / "config.toml"
    config.write_text(config.read_text().replace("rank = 8", "rank = 4"))
    with pytest.raises(UserError, match="has changed since it was exported"):
        adapt(tmp_path / "shared", tmp_path / "e", given)


@pytest.mark.slow
def test_a_model_in_a_folder_elsewhere(small, tmp_path, model_folder, hospitals, given):
    """Its name is no model of the hub's."""
    folder = model_folder("clip")
    run(small(*hospitals.words, f"model.name={folder}", "stage1.rounds=1"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "shared", NEW)
    text = (tmp_path / "shared" / FEDERATION / "config.toml").read_text()
    assert f"(a folder called {folder.name})" in text
    assert str(folder) not in text
    with pytest.raises(UserError, match=f"a folder called {folder.name} elsewhere"):
        adapt(tmp_path / "shared", tmp_path / "e", given)
    words = (*given, f"model.name={folder}")
    assert adapt(tmp_path / "shared", tmp_path / "e", words, rounds=1)["rounds"] == 1


def test_its_own_device_may_have_a_cap(finished, given, tmp_path):
    adapt(finished, tmp_path / "e", (*given, 'sal.caps={"*" = 1}'), rounds=1)
    config = load_config(tmp_path / "e" / "config.toml")
    assert config.sal.caps == {"*": 1}
