"""What README and docs tell people to do is done here."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer.main

from fedms.cli import app, main
from fedms.config import Method, Rounds, load_config
from fedms.serve.limits import Limits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    "data.max_rows=3000",
    "partition.clients=3",
    "partition.min_rows=1",
    "model.max_length=8",
    "stage1.rounds=1",
    "stage2.rounds=1",
    "sal.start=1",
]


def test_the_python_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (personal,) = re.findall(r"'personal': ([\d.]+)", done.stdout)
    assert 0.9 < float(personal) <= 1
    assert done.stdout.count("stage") == 7


def commands() -> list[str]:
    return re.findall(r"^ {4}\.venv/bin/fedms (run .*)$", README, re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_the_commands_run(command, tmp_path, monkeypatch):
    """Each as it stands, on few rows and for one round of each stage."""
    _, recipe, *words = command.split("#")[0].split()
    if "--out" in words:
        del words[words.index("--out") :]
    data = load_config(ROOT / recipe).data.path
    if data and not (ROOT / data).exists():
        pytest.skip(f"{data} is not beside the project")
    out = tmp_path / "run"
    monkeypatch.chdir(ROOT)
    arguments = ["fedms", "run", recipe, *words, *SMALL, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert (out / "summary.json").exists()


def test_there_are_commands_and_targets():
    assert len(commands()) >= 2
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_every_method_is_told_of():
    table = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## Methods")[1]
    told = re.findall(r"^\| `([a-z0-9]+)`", table, re.MULTILINE)
    assert set(told) - {"zeroshot"} == set(get_args(Method))


def test_every_recipe_is_told_of():
    for recipe in (ROOT / "recipes").glob("*.toml"):
        assert f"`{recipe.name}`" in README


def test_the_file_map_is_true():
    for line in README.split("## Where things are")[1].splitlines():
        found = re.match(r"^ {4,6}([a-z_]+/|[a-z_]+\.py)", line)
        if found:
            name = found.group(1)
            assert (ROOT / name).exists() or (ROOT / "src/fedms" / name).exists(), name


DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def mentioned() -> list[str]:
    """Commands of ours in a block, or between backticks with words behind them."""
    blocks = re.findall(r"^ {4}(fedms .*)$", DEPLOYMENT, re.MULTILINE)
    inline = re.findall(r"`(fedms (?:deploy|server|site|submit|resume) [^`]+)`", DEPLOYMENT)
    units = re.findall(r"^ExecStart=\S+/(fedms .*)$", DEPLOYMENT, re.MULTILINE)
    return [*blocks, *inline, *units]


@pytest.mark.parametrize("command", mentioned())
def test_commands_across_machines_are_understood(command):
    """`tests/deploy` performs them."""
    _, name, *words = command.split("#")[0].split()
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, list(words))


SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall(r"^ {4}(fedms .*)$", SERVING, re.MULTILINE))
def test_commands_that_use_models_are_understood(command):
    """`tests/cli/test_cli_models.py` and `tests/serve` perform them."""
    _, name, *words = shlex.split(command)
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, list(words))


def test_limits_are_told_of_as_they_are():
    limits = Limits()
    assert f"{limits.inputs} inputs a request" in SERVING
    assert f"{limits.characters:,} characters" in SERVING
    assert f"{limits.pixels // 10**6} million pixels" in SERVING
    assert f"{limits.waiting} rows and {limits.bodies // 10**6} MB" in SERVING
    assert f"{limits.patience:g} s for a body" in SERVING


def test_there_are_commands_across_machines():
    known = {"deploy", "server", "site", "submit", "predict", "evaluate", "export", "run"}
    assert {c.split()[1] for c in mentioned()} <= known
    assert {c.split()[1] for c in mentioned()} >= {"deploy", "server", "site", "submit"}


def test_units_and_container_file_are_well_formed():
    units = re.findall(r"```ini\n(.*?)```", DEPLOYMENT, re.DOTALL)
    assert len(units) == 2
    for unit in units:
        parser = configparser.ConfigParser(strict=True)
        parser.optionxform = str
        parser.read_string(unit)
        assert parser.sections() == ["Unit", "Service", "Install"]
        assert parser["Service"]["ExecStart"].startswith("/")
        writable = parser["Service"]["ReadWritePaths"]
        assert writable in parser["Service"]["ExecStart"]
    (container,) = re.findall(r"```dockerfile\n(.*?)```", DEPLOYMENT, re.DOTALL)
    known = {"FROM", "RUN", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD"}
    for line in container.splitlines():
        instruction, rest = line.split(" ", 1)
        assert instruction in known
        if instruction in ("VOLUME", "ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(rest))


def test_rules_for_rounds_are_told_of():
    for name in Rounds.model_fields:
        assert f"`rounds.{name}" in DEPLOYMENT, name
