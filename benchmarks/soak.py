"""Kill runs of every method at random moments, resume them, and count equal endings.

    python benchmarks/soak.py                    # 200 kills
    python benchmarks/soak.py --kills 20 --seed 3

A small run on the digits is performed once per method without harm. Then it is started again and
again as a process of its own (forked when all is imported, which saves minutes), killed (SIGKILL)
at a random moment after its run folder has appeared, resumed, and in one of three cases killed once
more. Adapters, checkpoints, records and summaries must be equal but for times and what was computed
twice, and no other file may be there (docs/reliability.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import flwr_datasets  # noqa: F401 - before processes are forked, as the next
import sklearn.datasets  # noqa: F401

import fedms.run  # noqa: F401
from fedms.cli import main as main_of_fedms
from fedms.config import Method
from fedms.progress import figure

SMALL = (
    *("data.max_rows=120", "partition.clients=3", "partition.unseen_clients=1"),
    *("stage1.rounds=2", "stage2.rounds=2", "evaluate_every=1", "runtime.threads=1"),
)
NOT_ALONE = {"probe": ("model.head=linear",), "flexlora": ("lora.ranks.*=4",)}
CONTEXT = multiprocessing.get_context("fork")
METHODS = get_args(Method)
TIMES = {"seconds", "train_seconds", "phase_seconds", "wall_seconds", "hash"}
"""What is of times; a line's hash too."""
TIMED = {"environment.json", "config.toml", "report.html"}
"""Files that say when and where; the report is made of the others."""
TWICE = {"flops", "train_flops", "cache_bytes"}


def settings(method: str) -> list[str]:
    """A small run of a method."""
    return [*SMALL, f"method={method}", *NOT_ALONE.get(method, ())]


def perform(words: Sequence[str], run: Path, kill_after: float | None = None) -> float | None:
    """Seconds that a command took once there was a run folder; None if it was killed.

    Args:
        words: of the command.
        run: the run folder.
        kill_after: so many seconds after the folder has appeared.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = CONTEXT.Process(target=_command, args=(list(words), said.fileno()))
        process.start()
        while process.is_alive() and not (run / "config.toml").exists():
            time.sleep(0.002)
        began = time.monotonic()
        process.join(kill_after)
        if process.exitcode is None:
            process.kill()
            process.join()
        took = time.monotonic() - began
        if process.exitcode == -signal.SIGKILL:
            return None
        if process.exitcode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with {process.exitcode}: {said.read()}")
        return took


def _command(words: Sequence[str], said: int) -> None:
    """A command of ours, in this process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(said, 2)
    sys.argv = ["fedms", *words]
    main_of_fedms()


def ending(folder: Path) -> dict[str, str]:
    """Hashes of all that a run leaves, without what may differ."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            data = b"" if name in TIMED else path.read_bytes()
            if data and path.suffix in (".json", ".jsonl"):
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
    kills = runs = equal = 0
    with tempfile.TemporaryDirectory(prefix="fedms-soak-") as scratch:
        while kills < asked.kills:
            method = methods[runs % len(methods)]
            if method not in whole:
                undisturbed = Path(scratch) / method
                took = perform(["run", *settings(method), "--out", f"{undisturbed}"], undisturbed)
                whole[method] = took or 0.0, ending(undisturbed)
            took, expected = whole[method]
            run = Path(scratch) / f"run{runs}"
            runs += 1
            start = ["run", *settings(method), "--out", f"{run}"]
            kills += perform(start, run, draw.random() * took) is None
            if draw.random() < 1 / 3:
                kills += perform(["resume", f"{run}"], run, draw.random() * took) is None
            perform(["resume", f"{run}"], run)
            ended = ending(run)
            equal += ended == expected
            if other := sorted(n for n in ended | expected if ended.get(n) != expected.get(n)):
                sys.stdout.write(f"{run.name}, {method}: {', '.join(other)} not as undisturbed\n")
                sys.stdout.flush()
    sys.stdout.write(
        f"{kills} kills in {runs} runs of {len(whole)} methods: {equal} equal endings "
        f"({figure(equal / runs, 'share')})\n"
    )
    sys.exit(equal != runs)


if __name__ == "__main__":
    main()
