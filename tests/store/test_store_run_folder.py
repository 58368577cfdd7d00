"""A run folder is made once, replaced on demand only, and never where something else lives."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedms.core.errors import UserError
from fedms.store import files as store_files
from fedms.store import run_folder
from fedms.store.files import locked
from fedms.store.run_folder import RunFolder, environment


def create(path, *, force=False, config="seed = 3\n"):
    return RunFolder.create(path, config, seed=3, force=force)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "no folder"])
def test_create_makes_the_files_of_the_start(tmp_path, exists):
    path = tmp_path / "a" / "b"
    if exists:
        path.mkdir(parents=True)
    create(path)
    names = ["clients.jsonl", "config.toml", "environment.json", "rounds.jsonl"]
    assert files(path) == names
    assert (path / "config.toml").read_text() == "seed = 3\n"
    assert (path / "rounds.jsonl").read_text() == (path / "clients.jsonl").read_text() == ""


def test_existing_run_is_kept_without_force_and_replaced_with_it(tmp_path):
    path = tmp_path / "run"
    folder = create(path)
    folder.add_round({"round": 0})
    with pytest.raises(
        UserError, match=f"of a run that has not ended; try fedms resume {path}, another"
    ):
        create(path, config="seed = 4\n")
    (path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists; try another \(--out"):
        create(path, config="seed = 4\n")
    (path / "summary.json").unlink()
    assert [line["round"] for line in folder.lines(1)] == [0]
    create(path, force=True, config="seed = 5\n")
    assert (path / "config.toml").read_text() == "seed = 5\n"
    assert (path / "rounds.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["config.toml", "environment.json", "rounds.jsonl"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch, name, earlier):
    """Not half a folder, which would be taken for somebody else's ever after."""
    path = tmp_path / "run"
    if earlier:
        create(path)
    before = files(tmp_path)

    def interrupted(file, *rest):
        if file.name == name:
            raise KeyboardInterrupt
        return write_bytes(file, *rest)

    write_bytes = store_files.write_bytes
    monkeypatch.setattr(store_files, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create(path, force=True, config="seed = 4\n")
    assert files(tmp_path) == before
    monkeypatch.undo()
    create(path, force=True, config="seed = 4\n")
    assert (path / "config.toml").read_text() == "seed = 4\n"


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_a_run_that_began_meanwhile_is_left_alone(tmp_path, monkeypatch, force):
    """Another process makes the same folder, and is at work when this one has gathered its own."""
    path = tmp_path / "run"
    with ExitStack() as other:

        def meanwhile(seed):
            monkeypatch.undo()
            begun = create(path, config="name = 'other'\n")
            other.enter_context(locked(begun.config))
            begun.add_round({"round": 0})
            return environment(seed)

        monkeypatch.setattr(run_folder, "environment", meanwhile)
        with pytest.raises(UserError, match="at work" if force else "try fedms resume"):
            create(path, force=force, config="name = 'mine'\n")
    assert (path / "config.toml").read_text() == "name = 'other'\n"
    assert [line["round"] for line in RunFolder.open(path).lines(1)] == [0]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


FOREIGN = {
    "other files": {"thesis.tex": "years of work"},
    "a file": None,
    # cargo, Hugo and others name their settings config.toml too; so may the user's own recipe
    "other files and a config.toml": {"thesis.tex": "years of work", "config.toml": "[build]\n"},
}


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_run_is_left_alone(tmp_path, kind, force):
    path = tmp_path / "precious"
    inside = FOREIGN[kind]
    if inside is None:
        path.write_text("years of work")
    else:
        path.mkdir()
        for name, text in inside.items():
            (path / name).write_text(text)
    before = files(tmp_path)
    for attempt in (lambda: RunFolder.check(path, force=force), lambda: create(path, force=force)):
        with pytest.raises(UserError, match=str(path)):
            attempt()
    assert files(tmp_path) == before


def test_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        create(tmp_path / "file" / "run")


def test_paths_of_clients_stay_inside(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("..", "../../x", "/etc", "a/b"):
        assert folder.client_adapters(name).parent == tmp_path / "adapters" / "clients"


def test_environment(tmp_path):
    create(tmp_path / "run")
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["seed"] == 3
    since = datetime.now(UTC) - datetime.fromisoformat(found["started"])
    assert timedelta(0) <= since < timedelta(minutes=5)
    assert found["python"] == platform.python_version()
    assert found["cores"] == os.cpu_count()
    assert found["platform"] == platform.platform()
    for name in ("torch", "transformers", "peft", "numpy", "safetensors", "fedms"):
        assert found["packages"][name] == importlib.metadata.version(name)
    assert {"command", "git_commit", "processor", "memory_bytes"} <= found.keys()


def test_a_commit_is_marked_where_the_package_was_changed_and_nowhere_else(monkeypatch):
    said = {"rev-parse": "a" * 40, "status": ""}

    def git(command, **options):
        assert command[:2] == ["git", "-C"]
        assert Path(command[2], "store", "run_folder.py").is_file()
        return subprocess.CompletedProcess(command, 0, said[command[3]] + "\n", "")

    monkeypatch.setattr("subprocess.run", git)
    assert environment(0)["git_commit"] == "a" * 40
    said["status"] = " M src/fedms/cli.py"
    assert environment(0)["git_commit"] == "a" * 40 + "-dirty"


def test_environment_marks_what_is_unknown_as_none(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", missing)
    monkeypatch.setattr("importlib.metadata.version", _not_installed)
    found = environment(0)
    assert found["git_commit"] is None
    assert set(found["packages"].values()) == {None}


def _not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)
