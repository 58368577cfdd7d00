"""Files that are whole or not there, and names that cannot leave their folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedms.store.files import (
    append_json,
    digest,
    keep_name,
    names_in,
    safe_name,
    sweep,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


def broken(*args: object, **kwargs: object) -> None:
    raise OSError("no space left on device")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_bytes(path, b"old")
    write_text(path, "né")
    assert content(tmp_path) == {"a/b.txt": "né".encode()}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_who_may_read_is_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "new")
        for text in ("new", "newer"):
            with whole_folder(tmp_path / "folder") as folder:
                write_text(folder / "file", text)
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("file", "folder/file")}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None], ids=["over a file", "a new file"])
def test_failing_write_leaves_what_was(tmp_path, monkeypatch, step, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    before = content(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, broken)
        with pytest.raises(OSError, match="no space"):
            write_bytes(path, b"new")
    assert content(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from fedms.store.files import whole_folder, write_text
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
if sys.argv[2] == "file":
    write_text(path / "a.txt", "new")
with whole_folder(path / "deep" / "b") as folder:
    write_text(folder / "c.txt", "new")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_was_writing_is_swept_up(tmp_path, kind):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / ".hidden", "not ours")
    before = content(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, kind], check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(tmp_path) != before
    sweep(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [1, {"x": -float("inf")}]])
def test_json_has_no_nan(tmp_path, bad):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError):
        write_json(path, bad)
    with pytest.raises(ValueError):
        append_json(path, {"x": bad})
    assert json.loads(path.read_text()) == {"old": 1}


def test_append_adds_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"a": 1}, {"b": "ü\nline two"}, {"c": None}]
    for line in lines:
        append_json(path, line)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == lines


def test_whole_folder_replaces_all_of_the_old(tmp_path):
    path = tmp_path / "a" / "b"
    for name in ("old", "new"):
        with whole_folder(path) as folder:
            (folder / name).write_text(name)
            assert folder != path
    assert content(tmp_path) == {"a/b/new": b"new"}


def fill(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "new").write_text("new")
        (folder / "new").with_name("more").write_text("more")
        if path.name == "fails":
            raise OSError("no space left on device")


@pytest.mark.parametrize("name", ["fails", "replace fails"])
@pytest.mark.parametrize("existed", [True, False])
def test_failing_folder_leaves_what_was(tmp_path, monkeypatch, name, existed):
    path = tmp_path / name
    if existed:
        path.mkdir()
        (path / "old").write_text("old")
    before = content(tmp_path)
    real = os.replace

    def replace(source, target):
        """Fail where the new folder is put in place; anything else works."""
        if (Path(source) / "new").exists():
            broken()
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="no space"):
            fill(path)
    assert content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name] * existed


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24)


@given(ids)
@example("..")
@example("../x")
@example("a/b")
@example("a\\b")
@example("/etc/passwd")
@example(".")
@example(".hidden")
@example("a\0b")
@example("C:x")
@example("line\nbreak")
def test_name_is_one_visible_part_of_a_path(name):
    encoded = safe_name(name)
    assert Path(encoded).parts == (encoded,)
    assert not encoded.startswith(".")
    assert not set(encoded) & set('/\\:\0\n"<>|?*')
    assert encoded.isascii()


@given(ids, ids)
@example("%2E", ".")
@example("..", "%2E.")
@example("a/b", "a%2Fb")
@example("a b", "a+b")
def test_distinct_ids_have_distinct_names(first, second):
    assert (safe_name(first) == safe_name(second)) == (first == second)


def test_plain_ids_stay_readable():
    names = ["0", "17", "f0_12", "alt.atheism", "John Doe (2)", "a@b.c"]
    assert [safe_name(name) for name in names] == names


def test_empty_id_is_not_the_folder_itself(tmp_path):
    assert tmp_path / safe_name("") != tmp_path


@pytest.mark.parametrize("name", ["x" * 300, "客" * 60, "%" * 120], ids=["long", "unicode", "%"])
def test_long_ids_can_be_written(tmp_path, name):
    other = name[:-1] + "y"
    for who in (name, other):
        write_text(tmp_path / f"{safe_name(who)}.safetensors", who)
    files = [p.read_text() for p in tmp_path.iterdir()]
    assert sorted(files) == sorted([name, other])


LONG = "Городская клиническая больница номер один"


def test_names_of_clients_are_read_as_they_were(tmp_path):
    assert names_in(tmp_path / "none") == []
    names = {"0", "a/b", "100%", "süd west", LONG, f"{LONG} и два", ""}
    for name in names:
        folder = tmp_path / safe_name(name)
        folder.mkdir()
        keep_name(folder, name)
    assert names_in(tmp_path) == sorted(names)
    assert not any((tmp_path / safe_name("süd west")).iterdir())


@pytest.mark.parametrize("text", [None, "", "[]", "{}"], ids=str)
def test_a_folder_without_a_name_in_it_is_named_as_far_as_it_tells(tmp_path, text):
    folder = tmp_path / safe_name(LONG)
    folder.mkdir()
    if text is not None:
        (folder / "client.json").write_text(text)
    (found,) = names_in(tmp_path)
    assert found.startswith(LONG[:20])


def test_a_digest_is_of_names_and_contents(tmp_path):
    write_text(tmp_path / "a/x.txt", "one")
    write_text(tmp_path / "a/y.json", "two")
    first = digest(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert digest(tmp_path / "copy") == first
    write_text(tmp_path / "a/.cache/z", "not of the data")
    assert digest(tmp_path / "a") == first
    (tmp_path / "a/x.txt").rename(tmp_path / "a/z.txt")
    assert digest(tmp_path / "a") != first
    write_text(tmp_path / "copy/x.txt", "eno")
    assert digest(tmp_path / "copy") != first
    assert digest(tmp_path / "copy/x.txt") != digest(tmp_path / "a/z.txt")
    assert digest(tmp_path / "a", (".json",)) == digest(tmp_path / "copy", (".json",))
