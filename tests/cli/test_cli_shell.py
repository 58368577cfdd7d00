"""The command as a shell sees it: help, completion, JSON, mistakes, colours."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer.main

from fedms.cli import app
from fedms.cli.base import SPINS
from fedms.store.files import append_json, write_json, write_text

COLOUR = r"\x1b\[([0-9;]*;)?3[0-8]"
GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
HEAVY = ["torch", "transformers", "peft", "numpy", "pandas", "matplotlib", "datasets", "scipy"]
HEAVY += ["sklearn", "pydantic"]
ALL_HELP = f"""
import sys
from fedms.cli import main
for words in {[["--help"], *([name, "--help"] for name in COMMANDS)]!r}:
    sys.argv = ["fedms", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
sys.stderr.write(str(sorted(set({HEAVY!r}) & set(sys.modules))))
"""


def test_help_of_no_command_loads_what_is_heavy():
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]")
    assert done.stdout.count("Usage: fedms") == len(COMMANDS) + 1
    assert done.stdout.count("Example: fedms") == len(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_every_word_is(fedms, name):
    """Words in brackets are no styles, and arguments are explained as options are."""
    said = "".join(re.findall(r"[^│╭╮╰╯─\s]", fedms(name, "--help").out))
    function = next(c.callback for c in app.registered_commands if _name(c) == name)
    told = 0
    for kind in get_type_hints(function, include_extras=True).values():
        for each in getattr(kind, "__metadata__", ()):
            if help := getattr(each, "help", None):
                assert "".join(help.split()) in said
                told += 1
    assert told or name == "doctor"


def _name(command):
    return command.name or command.callback.__name__.replace("_", "-")


WAITING = """
import os, sys
from fedms.cli import base
base.app = lambda **how: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
base.main()
"""


@pytest.mark.parametrize(
    ("settings", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=str,
)
def test_threads_do_not_look_for_work_for_long(settings, spins):
    """Set before torch is loaded, in a process of ours; what the user set stands."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-c", WAITING]
    done = subprocess.run(
        words, env={**kept, **settings}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (f"{spins} False\n", 0)


def test_exit_codes_are_told_in_help(fedms):
    assert "Exit codes: 0 fine; 2 what was given is wrong" in " ".join(fedms("--help").out.split())


def test_people_see_what_they_need_first(fedms):
    lines = fedms("--help").out.split("Commands")[1].splitlines()
    names = [word for line in lines for word in line.split()[1:2] if word in COMMANDS]
    assert names[:3] == ["run", "resume", "watch"]
    assert set(names) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name):
    assert "--json" in {word for p in GROUP.commands[name].params for word in p.opts}


def test_json_of_what_has_no_run(fedms):
    assert json.loads(fedms("--version", "--json").out).keys() == {"fedms"}
    assert "fedavg" in json.loads(fedms("compare", "--methods", "help", "--json").out)


def test_json_of_a_deployment(fedms, tmp_path):
    pytest.importorskip("cryptography", reason="fedms deploy needs the extra flower")
    words = ("data.source=csv", "data.path=a.csv", "data.classes=['a','b']", "--insecure")
    ended = fedms("deploy", *words, "--sites", "north", "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert Path(said["sites"]["north"]).is_dir()


@pytest.fixture
def odd(tmp_path):
    """Folders and files in which something is wrong, by name."""
    write_text(tmp_path / "no.toml", "name = = 1")
    write_text(tmp_path / "file", "text")
    (tmp_path / "empty").mkdir()
    for name in ("config", "environment", "summary", "rounds"):
        run = tmp_path / f"bad-{name}"
        run.mkdir()
        write_text(run / "config.toml", "= 1" if name == "config" else "")
        write_text(run / "environment.json", "{" if name == "environment" else "{}")
        if name == "summary":
            write_text(run / "summary.json", "[1")
        if name == "rounds":
            append_json(run / "rounds.jsonl", {"round": 0})
    write_json(tmp_path / "file.json", {})


CONFIGURED = {"run": (), "partition": (), "estimate": (), "compare": (), "deploy": ("--sites", "a")}
SETTINGS = [
    ["stage1.round=5"],
    ["stage1.rounds=many"],
    ["method=fedns"],
    ["=1"],
    ["stage1=3"],
    ["nowhere.toml"],
    ["no.toml"],
    ["empty"],
    ["seed=1", "no.toml"],
    ["partition.by=column"],
    ["data.source=csv"],
    ["stage1.rounds=0", "stage2.rounds=0"],
]
FOLDERS = {
    "resume": (),
    "watch": (),
    "report": (),
    "serve": (),
    "predict": ("some text",),
    "evaluate": (),
    "export": ("--to", "out"),
    "adapt": ("data.path=rows.csv", "--to", "out"),
    "site": (),
    "server": (),
    "submit": (),
}
OTHER = [
    ["partition", "--picture", "a.gif"],
    ["partition", "partition.clients=5000"],
    ["estimate", "--seconds", "-1"],
    ["estimate", "--seconds", "soon"],
    ["estimate", "--seconds", "nan"],
    ["estimate", "model.name=no-such-model"],
    ["estimate", "sal.caps.nobody=1"],
    ["compare", "--methods", "fedns"],
    ["compare", "--seeds", "one"],
    ["bench", "--only", "nothing"],
    ["resume", "bad-config"],
    ["resume", "bad-environment"],
    ["watch", "bad-summary"],
    ["predict", "bad-rounds", "x"],
    ["deploy"],
    ["fly"],
    ["--nope"],
]
MISTAKES = [
    *([name, *words, *more] for name, more in CONFIGURED.items() for words in SETTINGS),
    *([name, at, *more] for name, more in FOLDERS.items() for at in ("none", "file", "empty")),
    *([name, "--nope"] for name in COMMANDS),
    *([name] for name in FOLDERS),
    *OTHER,
]


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line(fedms, odd, tmp_path, words):
    before = sorted(tmp_path.rglob("*"))
    ended = fedms(*words)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("fedms: ")
    assert ended.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_with_odd_lines_can_be_watched(fedms, odd):
    assert fedms("watch", "bad-rounds").code == 0


MEANT = [
    (["rnu"], "did you mean run?"),
    (["run", "--ouy", "x"], "--out"),  # in click's words, which change
    (["run", "stage1.round=1"], "did you mean stage1.rounds?"),
    (["run", "method=fedavgg"], "did you mean fedavg?"),
    (["run", "partition.by=dirichlett"], "did you mean dirichlet?"),
    (["run", "digits.toml"], "did you mean recipes/digits.toml?"),
    (["run", "digits"], "did you mean recipes/digits.toml?"),
    (["compare", "--methods", "finetun"], "did you mean finetune?"),
    (["watch", "runs/digts"], "did you mean runs/digits?"),
    (["predict", "runs/digts", "x"], "did you mean runs/digits?"),
    (["resume", "digits"], "did you mean runs/digits?"),
]


@pytest.mark.parametrize(("words", "said"), MEANT)
def test_what_was_probably_meant(fedms, tmp_path, words, said):
    for file in ("recipes/digits.toml", "runs/digits/config.toml", "runs/digits/environment.json"):
        write_text(tmp_path / file, "{}" if file.endswith("json") else "")
    assert said in fedms(*words).err


def test_a_newcomers_folder_is_called_that_and_no_run_is_guessed_that_is_none(fedms, tmp_path):
    for file in (
        "hosp7/config.toml",
        "hosp7/adapted.json",
        "hosp8/config.toml",
        "other/config.toml",
    ):
        write_text(tmp_path / file, "{}" if file.endswith("json") else "")
    said = fedms("report", "hosp7").err
    assert said.startswith("fedms: got hosp7, which is no run folder, but fedms adapt's; expected")
    assert "did you mean" not in said


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is told that the last word may become."""
    asked = {"COMP_WORDS": " ".join(["fedms", *words]), "COMP_CWORD": str(len(words))}
    code = "from fedms.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "_FEDMS_COMPLETE": "complete_bash", **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a recipe, and a run of three clients."""
    for file in ("recipes/a.toml", "runs/mine/environment.json"):
        write_text(tmp_path / file, "")
    for client in ("north", "s%C3%BCd west"):
        (tmp_path / "runs/mine/adapters/clients" / client).mkdir(parents=True)
    write_json(tmp_path / "runs/mine/adapters/clients/cut%~0/client.json", {"client": "Больница"})
    return tmp_path


WORDS = [
    (["res"], ["resume"]),
    (["run", "rec"], ["recipes/a.toml"]),
    (["run", "sal.tr"], ["sal.trigger=queue", "sal.trigger=schedule", "sal.trigger=all"]),
    (["run", "stage1.ro"], ["stage1.rounds="]),
    (["estimate", "sal.trigger=a"], ["sal.trigger=all"]),
    (["watch", "ru"], ["runs/mine"]),
    (["predict", "runs/mine", "--client", "n"], ["north", "new"]),
    (["export", "runs/mine", "--client", "s"], [r"süd\ west"]),
    (["predict", "runs/mine", "--client", "Б"], ["Больница"]),
    (["run", "sal.trigger", "="], ["queue", "schedule", "all"]),
    (["run", "a.toml", "sal.trigger", "=", "a"], ["all"]),
    (["compare", "--methods", "local,fedav"], ["local,fedavg"]),
]


@pytest.mark.parametrize(("words", "expected"), WORDS, ids=" ".join)
def test_completion(place, words, expected):
    assert completed(place, *words) == expected


def test_completion_can_be_installed():
    """The script that a shell is given is for the command, whatever started it."""
    code = "from fedms.cli import main; main()"
    words = [sys.executable, "-c", code, "--show-completion", "bash"]
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert "_FEDMS_COMPLETE=complete_bash" in done.stdout


def test_a_full_disk_is_one_line():
    code = "import sys; sys.argv = ['fedms', '--help']; from fedms.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("fedms: got No space left on device")
    assert done.stderr.count("\n") == 1


def on_terminal(folder: Path, *words: str, **env: str) -> str:
    """What a command writes to a terminal of its own."""
    outer, inner = pty.openpty()
    code = f"import sys; sys.argv = {['fedms', *words]!r}; from fedms.cli import main; main()"
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, "TERM": "xterm-256color", "COLUMNS": "100", **env},
        stdout=inner,
        stderr=inner,
        stdin=inner,
    )
    os.close(inner)
    said = b""
    try:
        while part := os.read(outer, 65536):
            said += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(outer)
    assert process.wait(60) == 0
    return said.decode(errors="replace")


@pytest.mark.skipif(os.name != "posix", reason="opens a terminal")
def test_colours_are_for_terminals(fedms, tmp_path):
    assert re.search(COLOUR, on_terminal(tmp_path, "--help"))
    assert not re.search(COLOUR, on_terminal(tmp_path, "--help", NO_COLOR="1"))
    assert "\x1b" not in fedms("--help").out


@pytest.mark.skipif(os.name != "posix", reason="opens a terminal")
@pytest.mark.slow
def test_a_run_shows_a_bar_on_a_terminal(tmp_path):
    """Starts a run in a process of its own: 4 s."""
    words = ("data.max_rows=60", "partition.clients=2", "stage1.rounds=1", "stage2.rounds=1")
    said = on_terminal(tmp_path, "run", *words)
    assert "3/3 rounds" in said
    assert re.search(COLOUR, said)
    assert "stage 2  round   3/3  depth" in said
    assert json.loads((tmp_path / "runs/digits-fedms-seed0/summary.json").read_text())
