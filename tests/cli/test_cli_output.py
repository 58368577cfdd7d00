"""What a run shows, and that help and version come without loading what is heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

SMALL = ("data.max_rows=60", "partition.clients=2", "stage1.rounds=2", "stage2.rounds=1")


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\n"
        "from fedms.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'peft', 'numpy', 'datasets'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    for words in (["--help"], ["run", "--help"], ["--version"]):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.strip()) == (0, "heavy: []")
        assert time.perf_counter() - began < 5  # usually 0.3 s; loading torch takes longer
        assert ("run" if "--help" in words else version("fedms")) in done.stdout


def test_version(fedms):
    assert fedms("--version") == (0, f"fedms {version('fedms')}\n", "")


def test_no_arguments_show_the_help(fedms):
    assert "Usage" in "".join(fedms()[1:])


def test_json_alone_is_on_standard_output(fedms, tmp_path):
    ended = fedms("run", *SMALL, "--json", "--out", "a")
    assert ended.code == 0
    shown = json.loads(ended.out, parse_constant=pytest.fail)
    assert shown == {
        "folder": "a",
        **json.loads((tmp_path / "a" / "summary.json").read_text()),
    }


@pytest.fixture
def lines(fedms) -> list[str]:
    ended = fedms("run", *SMALL, "evaluate_every=1")
    assert ended.code == 0
    return ended.out.splitlines()


ROUND = re.compile(
    r"stage (?P<stage>\d)  round +(?P<round>\d+)/4  depth (?P<depth>\d)/6  "
    r"validation (?P<validation>[01]\.\d{3})  sent (?P<sent>[\d.]+ k?B)  "
    r"\d+ s, (?P<left>\d+) s left"
)


def test_progress(lines, tmp_path):
    assert lines[0] == "fedms on digits: glyphclip, 4 rounds, seed 0"
    found = [match for line in lines if (match := ROUND.fullmatch(line))]
    assert "stage 0  round   1/4  class statistics  sent " in "".join(lines)
    shown = [(m["stage"], m["round"], m["depth"]) for m in found]
    assert shown == [("1", "2", "1"), ("1", "3", "1"), ("2", "4", "1")]
    assert found[-1]["left"] == "0"
    run = tmp_path / "runs" / "digits-fedms-seed0"
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [float(m["validation"]) for m in found] == [
        round(r["validation"], 3) for r in records[1:]
    ]
    sent = [
        sum(r["upload_bytes"] + r["download_bytes"] for r in records[: i + 1]) for i in range(1, 4)
    ]
    assert [m["sent"] for m in found] == [f"{s / 1000:.1f} kB" for s in sent]
    assert sum("test accuracy after round" in line for line in lines) == 4
    assert lines[-2] == "run folder: runs/digits-fedms-seed0"
    assert lines[-1] == "report: runs/digits-fedms-seed0/report.html"
    summary = json.loads((run / "summary.json").read_text())["test"]
    table = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in lines if "│" in line}
    names = {"zero_shot": "zero-shot", "global": "global expert", "personal": "fedms"}
    for role, name in names.items():
        keys = ("mean", "worst_decile", "weighted", "std")
        assert [cell.strip() for cell in table[name]] == [f"{summary[role][k]:.3f}" for k in keys]
