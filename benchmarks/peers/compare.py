"""fedms beside what users would run otherwise: plain PEFT, Flower's simulation, pfl-research.

    python benchmarks/peers/compare.py            # all, writes the table of docs/performance.md
    python benchmarks/peers/compare.py --only accuracy --set data.max_rows=4000
    python benchmarks/peers/compare.py --only accuracy --device cuda

Needs the extra `bench`; pfl-research has an environment of its own (`--pfl-python`, see
`benchmarks/peers/README.md`). fedms and peers run one after another on one thread each, in turns.
On another device there is `accuracy` alone, which has a block of its own (`accuracy-cuda`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from statistics import mean, median
from typing import Any

from memory import run_measured
from write_job import write_job

from fedms.bench import Row
from fedms.config import load_config
from fedms.machine import device_name, pick_device
from fedms.store.run_folder import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
import pages

PEERS = Path(__file__).parent
ROOT = PEERS.parents[1]
RECIPE = ROOT / "recipes" / "banking77.toml"
PAGE = ROOT / "docs" / "performance.md"
PLAIN = "plain transformers and PEFT: FedAvg, then local fine-tuning, all blocks"
TARGETS = (0.85, 0.90, 0.93)
FRUGAL = [
    "stage1.rounds=1",
    "stage2.rounds=4",
    "training.learning_rate=5e-3",
    "training.learning_rate_schedule=cosine",
    "gate.bottleneck=4",
    "runtime.stack=8",
]
"""FedMS in half of the recipe's rounds, and so the peer's, with less of what costs bytes."""
FLOWER = "Flower's simulation (Ray, one worker)"
FEDAVG = [
    "stage2.rounds=0",
    "sal.trigger=all",
    "stage1.prior=none",
    "stage1.server_momentum=0",
    "gate.mix_prior=none",
    "evaluate_every=0",
]
"""fedms' own federated averaging of all blocks, as the peers do it."""


class Bench:
    """A folder for jobs and runs, and what all of them have in common."""

    def __init__(
        self, folder: Path, settings: Sequence[str], pfl_python: str, device: str = "cpu"
    ) -> None:
        self.folder, self.settings, self.pfl_python = folder, settings, pfl_python
        self.device = device
        self._count = 0

    def new(self, name: str) -> Path:
        """A path that nothing is at yet."""
        self._count += 1
        return self.folder / f"{self._count:03d}-{name}"

    def job(self, *settings: str, shuffle: bool = False) -> Path:
        """The peers' job for the recipe with these settings."""
        path = self.new("job")
        config = load_config(RECIPE, [*self.settings, *settings])
        write_job(path, config, threads=1, group_by_length=not shuffle, device=self.device)
        return path

    def peer(self, program: str, *words: object, python: str = sys.executable) -> dict[str, Any]:
        """The result of a program of this folder."""
        out = self.new(f"{program}.json")
        command = [python, str(PEERS / f"{program}.py"), *map(str, words), "--out", str(out)]
        subprocess.run(command, check=True)  # noqa: S603
        return dict(json.loads(out.read_text()))

    def fedms(self, *settings: str) -> dict[str, Any]:
        """Summary of a run, with its folder, seconds (whole, and by round) and peak memory."""
        out = self.new("run")
        words = [*self.settings, *settings, "runtime.threads=1", f"runtime.device={self.device}"]
        command = [sys.executable, "-m", "fedms.cli", "run", str(RECIPE), *words]
        seconds, peak = run_measured([*command, "--out", str(out), "--json"])
        summary = json.loads((out / "summary.json").read_text())
        lines = (out / "rounds.jsonl").read_text().splitlines()
        rounds = [json.loads(line)["seconds"] for line in lines]
        spent = {"seconds": seconds, "round_seconds": rounds, "peak_pss_bytes": peak}
        return {**summary, "folder": out, **spent}


def accuracy_rows(bench: Bench) -> Iterator[Row]:
    """Training seconds and bytes until validation accuracies, the peer's best among them.

    The peer's batches hold texts of like length, as fedms' do.
    """
    theirs = personal_curve(bench.peer("plain_peft", bench.job()))
    mine = run_curve(bench.fedms("evaluate_every=1", *FRUGAL)["folder"])
    for target in (*TARGETS, max(point["validation"] for point in theirs)):
        ours, peer = first(mine, target), first(theirs, target)
        for key, unit in (("train_seconds", "s"), ("bytes", "bytes")):
            what = {"s": "seconds", "bytes": "bytes sent"}[unit]
            yield Row.of(
                f"{what} until validation accuracy {target:.3f}",
                ours[key] if ours else float("nan"),
                unit,
                1,
                (PLAIN, peer[key] if peer else float("nan")),
            )
    for key in ("validation", "test"):
        best = [max(curve, key=itemgetter("validation")) for curve in (mine, theirs)]
        name = f"{key} accuracy at its best validation"
        yield Row.of(name, best[0][key], "share", 1, (PLAIN, best[1][key]))


def personal_curve(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """The peer's curve with every client at its best round so far, as fedms keeps it too."""
    best: dict[str, Mapping[str, float]] = {}
    points: list[dict[str, float]] = []
    for point in result["curve"]:
        for client, scores in point["clients"].items():
            known = scores["validation"] is not None
            if known and scores["validation"] > best.get(client, {"validation": -1})["validation"]:
                best[client] = scores
        scores = {key: mean(c[key] for c in best.values()) for key in ("validation", "test")}
        points.append({**point, **scores})
    return points


def run_curve(folder: Path) -> list[dict[str, float]]:
    """Personal accuracies after every round, with seconds and bytes so far."""
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    points, seconds, sent = [], 0.0, 0
    for number, record in enumerate(rounds, start=1):
        seconds += record["seconds"]
        sent += record["upload_bytes"] + record["download_bytes"]
        there = [line for line in lines if line["round"] == number]
        known = [line for line in there if line["validation"]["personal"] is not None]
        scores = {
            split: mean(line[split]["personal"] for line in known)
            for split in ("validation", "test")
        }
        points.append({**scores, "train_seconds": seconds, "bytes": sent})
    return points


def first(points: Sequence[Mapping[str, float]], target: float) -> Mapping[str, float] | None:
    """The first point that reaches the target."""
    return next((point for point in points if point["validation"] >= target), None)


def flower_rows(bench: Bench) -> Iterator[Row]:
    """FedAvg of all blocks: seconds and memory, beside Flower's simulation on Ray."""
    job = bench.job()
    pairs = [(bench.fedms(*FEDAVG), bench.peer("flower_sim", job)) for _ in range(2)]

    def each(result: Mapping[str, Any]) -> float:
        return float(median(result["round_seconds"][1:]))  # Ray and its worker start in the first

    yield medians("seconds a round of FedAvg, all blocks", "s", pairs, each)
    yield medians("seconds of the whole run", "s", pairs, itemgetter("seconds"))
    yield medians("memory of all its processes", "bytes", pairs, itemgetter("peak_pss_bytes"))


def overhead_rows(bench: Bench) -> Iterator[Row]:
    """Clients that train nothing, beside Flower's: what a round costs, and what starting does."""
    clients = 50
    words = ("--clients", clients, "--rounds", 6)
    programs = ("fedms_noop", "flower_noop")
    pairs = [[bench.peer(program, *words) for program in programs] for _ in range(3)]

    def each(result: Mapping[str, Any]) -> float:
        return 1e3 * float(median(result["round_seconds"][1:])) / clients

    def start(result: Mapping[str, Any]) -> float:
        return float(result["start_seconds"] - result["import_seconds"])

    yield medians(f"overhead of a round, {clients} idle clients", "ms a client", pairs, each)
    yield medians("start until the first idle client works", "s", pairs, start)
    yield medians("the same with imports", "s", pairs, itemgetter("start_seconds"))


def medians(
    measure: str,
    unit: str,
    pairs: Sequence[Sequence[Mapping[str, Any]]],
    of: Callable[[Mapping[str, Any]], float],
) -> Row:
    """A row of fedms' results beside Flower's, which took turns."""
    ours, theirs = (median(of(result) for result in side) for side in zip(*pairs, strict=True))
    return Row.of(measure, ours, unit, len(pairs), (FLOWER, theirs))


def pfl_rows(bench: Bench) -> Iterator[Row]:
    """FedAvg of all blocks, seconds a round, beside pfl-research in one process."""
    job = bench.job()
    plain = ["runtime.precision=float32", "runtime.cache_bytes=0B"]
    kinds = {
        "all blocks, float32, no cache": [*FEDAVG, *plain],
        "all blocks, as fedms runs": FEDAVG,
        "SAL from one block, as fedms runs": [
            *(word for word in FEDAVG if not word.startswith("sal")),
            "sal.start=1",
        ],
    }
    ours = {kind: bench.fedms(*words) for kind, words in kinds.items()}
    peer = bench.peer("pfl_fedavg", job, python=bench.pfl_python)
    theirs = median(peer["round_seconds"])
    for kind, summary in ours.items():
        seconds = summary["round_seconds"]
        yield Row.of(
            f"seconds a round of FedAvg, {kind}",
            median(seconds),
            "s",
            len(seconds),
            ("pfl-research 0.6, one process", theirs),
        )


MEASURES = {
    "accuracy": accuracy_rows,
    "flower": flower_rows,
    "overhead": overhead_rows,
    "pfl": pfl_rows,
}
BLOCKS = {name: name for name in MEASURES} | {"overhead": "overhead-peers"}
"""Blocks of the page by measure; its block `overhead` is that of `fedms bench`."""


def block(rows: Sequence[Row], facts: Mapping[str, Any], command: str) -> str:
    """Rows in markdown, with where they are from."""
    head = ["measure", "fedms", "peer", "fedms / peer", "peer is"]
    device = f"one {facts['device']}, " if "device" in facts else ""
    shared = "" if device else ", shared"
    lines = [
        pages.table(head, ([*pages.cells(row), str(row.peer_name)] for row in rows)),
        "",
        f"`{command}`; commit {str(facts['git_commit'])[:12]}; {device}{facts['processor']}, "
        f"{facts['cores']} cores{shared}, one thread each; torch {facts['packages']['torch']}.",
    ]
    return "\n".join(lines)


def _known(value: Any) -> Any:
    """JSON has no NaN: what was not reached is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, help="one measure")
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--pfl-python", default=sys.executable, help="python that has pfl")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="[cpu]")
    parser.add_argument("--json", type=Path, help="also write rows there")
    words = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    facts, option = environment(0), ""
    if words.device != "cpu":
        if words.only != "accuracy":
            parser.error("of measures, accuracy alone is for other devices: --only accuracy")
        facts["device"] = device_name(pick_device(words.device))
        option = f" --device {words.device}"
    for name, rows_of in MEASURES.items():
        if words.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="fedms-peers-") as folder:
            rows = list(rows_of(Bench(Path(folder), words.set, words.pfl_python, words.device)))
        settings = "".join(f" --set {setting}" for setting in words.set)
        command = f"python benchmarks/peers/compare.py --only {name}{settings}{option}"
        text = block(rows, facts, command)
        sys.stdout.write(text + "\n")
        if words.json:
            known = json.loads(words.json.read_text()) if words.json.exists() else []
            new = [{k: _known(value) for k, value in asdict(row).items()} for row in rows]
            words.json.write_text(json.dumps([*known, *new], indent=1, allow_nan=False))
        pages.write(PAGE, f"{BLOCKS[name]}-{words.device}" if option else BLOCKS[name], text)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"a program failed: {error}")
