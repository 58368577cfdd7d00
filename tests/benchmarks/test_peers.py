"""The peers of `benchmarks/peers`: they get what fedms trains on, and they train."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedms.build import build
from fedms.config import Config, load_config
from fedms.core.algorithm import View
from fedms.models.resident import FROZEN

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
PFL_PYTHON = ROOT / ".venv-pfl" / "bin" / "python"
COLOURS = {"red cat": "red", "green dog": "green", "blue bird": "blue"}
OTHERS = ["pay", "card", "lost my", "is where", "not i"]


@pytest.fixture(scope="module")
def config(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Texts that name the colour of their class, for two clients and a tiny sentence encoder."""
    file = tmp_path_factory.mktemp("data") / "texts.csv"
    rows = [
        f"{OTHERS[i % 5]} {word} {OTHERS[i % 3]},{label}"
        for i in range(40)
        for label, word in COLOURS.items()
    ]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    settings = {
        "model.name": model_folder("sentence"),
        "data.source": "csv",
        "data.path": file,
        "partition.by": "iid",
        "partition.clients": 2,
        "partition.val_fraction": 0.2,
        "lora.rank": 4,
        "lora.alpha": 8.0,
        "stage1.rounds": 6,
        "stage2.rounds": 2,
        "training.batch_size": 4,
        "training.learning_rate": 0.02,
    }
    return load_config(None, [f"{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def job(module: Any, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    module("write_job").write_job(folder, config)
    return folder


def perform(
    program: str, folder: Path, *words: str, python: str = sys.executable
) -> dict[str, Any]:
    """Run a peer as its users do, away from fedms' sources; its result, which is in the folder."""
    out = folder / f"{program}.json"
    command = [python, str(PEERS / f"{program}.py"), *words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_job_has_exactly_the_rows_that_fedms_trains_on(
    module: Any, config: Config, job: Path
) -> None:
    experiment = build(config)
    read = module("job").load_job(job)
    tokenizer = AutoTokenizer.from_pretrained(read.model)
    assert [c.id for c in read.clients] == [c.id for c in experiment.clients]
    for client, data in zip(read.clients, experiment.clients, strict=True):
        for split in ("train", "val", "test"):
            examples, rows = getattr(client, split), data.split(split)
            ids = tokenizer(examples.texts, truncation=True, max_length=read.max_length)
            assert ids["input_ids"] == [row.tolist() for row in rows.columns["input_ids"]]
            assert examples.labels == rows.labels.tolist()
            assert len(examples) > 0


def test_job_has_the_settings_of_the_configuration(module: Any, config: Config, job: Path) -> None:
    read = module("job").load_job(job)
    assert read.prompts == [sorted(COLOURS)]
    assert (read.temperature, read.rank, read.alpha) == (20.0, 4, 8.0)
    assert (read.rounds, read.local_rounds, read.batch_size) == (6, 2, 4)
    assert (read.learning_rate, read.weight_decay, read.seed) == (0.02, 0.0, config.seed)


def test_job_reads_as_it_was_written(module: Any, job: Path, tmp_path: Path) -> None:
    jobs = module("job")
    read = jobs.load_job(job)
    jobs.save_job(tmp_path, read)
    assert jobs.load_job(tmp_path) == read


def test_job_refuses_what_peers_cannot_train(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a sentence encoder"):
        module("write_job").write_job(tmp_path, load_config(None, ["data.max_rows=60"]))


@pytest.fixture(scope="module")
def plain(job: Path) -> dict[str, Any]:
    return perform("plain_peft", job, str(job))


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.py")), ids=lambda path: path.stem)
def test_peers_do_without_fedms(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    ours = path.stem in ("write_job", "compare", "fedms_noop")
    assert ("fedms" in {name.split(".")[0] for name in names}) == ours


@pytest.mark.slow
def test_plain_peft_learns(plain: dict[str, Any]) -> None:
    points = [(point["stage"], point["round"]) for point in plain["curve"]]
    assert points == [*(("global", n) for n in range(7)), ("local", 1), ("local", 2)]
    before, shared, own = (plain["curve"][i]["validation"] for i in (0, 6, 8))
    assert before < 0.6
    assert min(shared, own) > 0.8
    assert plain["threads"] == 1
    assert plain["versions"].keys() >= {"torch", "transformers", "peft"}


@pytest.mark.slow
def test_plain_peft_begins_where_fedms_begins(plain: dict[str, Any], config: Config) -> None:
    experiment = build(config)
    zero = [experiment.learner.score(View(FROZEN), c, "val") for c in experiment.clients]
    accuracies = [score.correct / score.rows for score in zero]
    assert plain["curve"][0]["validation"] == pytest.approx(sum(accuracies) / len(accuracies))


@pytest.mark.slow
def test_plain_peft_counts_what_is_sent(plain: dict[str, Any]) -> None:
    sent = [point["bytes"] for point in plain["curve"]]
    adapters = 3 * 2 * 2 * 4 * 16 * 4  # blocks, projections, A and B, rank, width, float32
    assert sent[0] == 0
    assert 4 * adapters < sent[1] < 4 * (adapters + 2000)  # two clients, both ways, with names
    assert sent[6] == 6 * sent[1]
    assert sent[8] == sent[7] == sent[6] + sent[1] // 2  # the average, once to everybody


@pytest.fixture(scope="module")
def whole(module: Any, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with one batch an epoch: then the order of rows does not matter."""
    folder = tmp_path_factory.mktemp("whole")
    jobs = module("job")
    changed = replace(jobs.load_job(job), batch_size=1000, epochs=4, local_rounds=0)
    jobs.save_job(folder, changed)
    return folder


def python_with(package: str) -> str:
    """The Python that has a framework: this one, or pfl's own; skips where neither does."""
    if importlib.util.find_spec(package):
        return sys.executable
    if package == "pfl" and PFL_PYTHON.exists():
        return str(PFL_PYTHON)
    where = {
        "ray": "ray is in the extra 'ray', which make loopback installs",
        "pfl": "pfl is in an environment of its own, which CI does not make",
    }
    pytest.skip(f"{where[package]}; `make test-peers` runs this")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("program", "package"), [("flower_sim", "ray"), ("pfl_fedavg", "pfl")], ids=["flower", "pfl"]
)
def test_frameworks_train_as_plain_peft_does(program: str, package: str, whole: Path) -> None:
    python = python_with(package)
    expected = perform("plain_peft", whole, str(whole))["curve"]
    result = perform(program, whole, str(whole), python=python)
    assert expected[0]["validation"] + 0.2 < result["validation"]
    for split in ("validation", "test"):
        assert result[split] == pytest.approx(expected[-1][split], abs=0.05)
    assert len(result["round_seconds"]) == 6
    assert 0 < sum(result["round_seconds"]) < result["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "package"),
    [("fedms_noop", "fedms"), ("flower_noop", "ray")],
    ids=["fedms", "flower"],
)
def test_idle_rounds_are_timed(program: str, package: str, tmp_path: Path) -> None:
    python = python_with(package)
    result = perform(program, tmp_path, "--clients", "3", "--rounds", "2", python=python)
    assert result["clients"] == 3
    assert 0 < result["import_seconds"] < result["start_seconds"] < 120
    assert len(result["round_seconds"]) == 2
    assert min(result["round_seconds"]) > 0


def test_overhead_is_medians_of_programs_in_turns(module: Any) -> None:
    """By hand: rounds after the first over 50 clients, starts without and with imports."""
    seconds = iter([10, 40, 20, 60, 30, 50])
    asked = []

    class Programs:
        def peer(self, program: str, *words: object) -> dict[str, Any]:
            asked.append(program)
            took = next(seconds)
            rounds = [1000.0, took / 2, took, 2 * took]
            return {"import_seconds": 1, "start_seconds": took, "round_seconds": rounds}

    rows = list(module("compare").overhead_rows(Programs()))
    assert asked == ["fedms_noop", "flower_noop"] * 3
    assert [(row.ours, row.peer, row.unit) for row in rows] == [
        (400.0, 1000.0, "ms a client"),
        (19, 49, "s"),
        (20, 50, "s"),
    ]


def test_what_is_spent_until_an_accuracy(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: two clients and one without validation rows, three rounds."""
    compare = module("compare")

    def run(folder: Path, seconds: float) -> Path:
        folder.mkdir()
        spent = {"seconds": seconds, "upload_bytes": 2, "download_bytes": 3}
        curve = [(0.5, 0.75), (0.75, 1.0), (1.0, 1.0)]
        lines = [
            {"round": n, "validation": {"personal": v}, "test": {"personal": (v or 0) / 2}}
            for n, values in enumerate(curve, start=1)
            for v in (*values, None)
        ]
        for name, records in (("rounds", [spent] * 3), ("clients", lines)):
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{name}.jsonl").write_text(text)
        return folder

    def point(seconds: float, *scores: float) -> dict[str, Any]:
        clients = {str(i): {"validation": v, "test": v / 4} for i, v in enumerate(scores)}
        clients["none"] = {"validation": None, "test": 0.0}
        return {"train_seconds": seconds, "bytes": 10 * seconds, "clients": clients}

    class Programs:
        def job(self) -> Path:
            return tmp_path

        def peer(self, program: str, job: Path) -> dict[str, Any]:
            return {"curve": [point(10, 0.5, 0.5), point(20, 1.0, 0.5), point(30, 0.0, 0.75)]}

        def fedms(self, *words: str) -> dict[str, Any]:
            return {"folder": run(tmp_path / "run", 2.0)}

    monkeypatch.setattr(compare, "TARGETS", (0.75,))
    rows = list(compare.accuracy_rows(Programs()))
    assert [(r.measure, r.ours, r.peer) for r in rows] == [
        ("seconds until validation accuracy 0.750", 4.0, 20),
        ("bytes sent until validation accuracy 0.750", 10, 200),
        ("seconds until validation accuracy 0.875", 4.0, 30),
        ("bytes sent until validation accuracy 0.875", 10, 300),
        ("validation accuracy at its best validation", 1.0, 0.875),
        ("test accuracy at its best validation", 0.5, 0.21875),
    ]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_of_a_whole_tree_is_measured(module: Any) -> None:
    hold = "import time; held = bytearray(b'x') * 100_000_000; time.sleep(1.5)"
    child = f"import subprocess, sys; {hold.replace('time.sleep(1.5)', 'child()')}"
    child = child.replace("child()", f"subprocess.run([sys.executable, '-c', {hold!r}])")
    seconds, peak = module("memory").run_measured([sys.executable, "-c", child])
    assert seconds > 1.5
    assert 200e6 < peak < 300e6
