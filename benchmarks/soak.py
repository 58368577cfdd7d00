"""Kill runs of every method at random moments, resume them, and count equal endings.

    python benchmarks/soak.py                    # 200 kills
    python benchmarks/soak.py --kills 20 --seed 3

A small run on the digits is performed once per method without harm. Then it is started again and
again as a process of its own, killed (SIGKILL) at a moment drawn from its later half (in the first
it is still starting), resumed, and in one of three cases killed once more. Adapters, checkpoints,
records and summaries must be equal but for times and what was computed twice
(docs/reliability.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from fedms.config import Method
from fedms.progress import figure

SMALL = (
    *("data.max_rows=120", "partition.clients=3", "partition.unseen_clients=1"),
    *("stage1.rounds=2", "stage2.rounds=2", "evaluate_every=1", "runtime.threads=1"),
)
NOT_ALONE = {"probe": ("model.head=linear",), "flexlora": ("lora.ranks.*=4",)}
METHODS = get_args(Method)
TIMES = {"seconds", "train_seconds", "phase_seconds", "wall_seconds", "hash"}
"""What is of times; a line's hash too."""
TIMED = {"environment.json", "config.toml", "report.html"}
"""Files that say when and where; the report is made of the others."""
TWICE = {"flops", "train_flops", "cache_bytes"}


def command(*words: object) -> list[str]:
    """Of ours, in a process of its own."""
    return [sys.executable, "-m", "fedms.cli", *map(str, words)]


def settings(method: str) -> list[str]:
    """A small run of a method."""
    return [*SMALL, f"method={method}", *NOT_ALONE.get(method, ())]


def perform(words: Sequence[str], seconds: float | None = None) -> float | None:
    """Seconds that a command took; None if it was killed after so many."""
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own words
        list(words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said[-500:]}")
    return time.monotonic() - began


def ending(folder: Path) -> dict[str, str]:
    """Hashes of all that a run leaves, without what may differ."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in TIMED:
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                lines = [data.decode()] if path.suffix == ".json" else data.decode().splitlines()
                data = json.dumps([_without(json.loads(line)) for line in lines]).encode()
            found[name] = hashlib.blake2b(data, digest_size=16).hexdigest()
    return found


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in TIMES | TWICE}
    return [_without(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    """Do so many kills, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    draw, methods = random.Random(asked.seed), asked.methods.split(",")  # noqa: S311 - no secret
    whole: dict[str, tuple[float, dict[str, str]]] = {}
    kills = runs = equal = before = 0
    with tempfile.TemporaryDirectory(prefix="fedms-soak-") as scratch:
        while kills < asked.kills:
            method = methods[runs % len(methods)]
            run = Path(scratch) / f"run{runs}"
            start = command("run", *settings(method), "--out", run)
            if method not in whole:
                took = perform(command("run", *settings(method), "--out", Path(scratch) / method))
                whole[method] = took or 0.0, ending(Path(scratch) / method)
            took, expected = whole[method]
            runs += 1
            if perform(start, draw.uniform(0.5, 1.0) * took) is not None:
                kills -= 1  # it was faster this time
            kills += 1
            if not (run / "config.toml").exists():
                before += 1
                perform(start)
            elif draw.random() < 1 / 3:
                kills += perform(command("resume", run), draw.uniform(0.3, 1.0) * took) is None
            perform(command("resume", run))
            same = ending(run) == expected
            equal += same
            if not same:
                sys.stdout.write(f"{method}, run {runs}: another ending\n")
    sys.stdout.write(
        f"{kills} kills in {runs} runs of {len(whole)} methods, {before} before there was a run "
        f"folder: {equal} equal endings ({figure(equal / runs, 'share')})\n"
    )
    sys.exit(equal != runs)


if __name__ == "__main__":
    main()
