"""Kill runs of every method at random moments, resume them, and count equal endings.

    python benchmarks/soak.py                    # 200 kills
    python benchmarks/soak.py --kills 20 --seed 3
    python benchmarks/soak.py --events           # at every event of a run instead, in turn

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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import flwr_datasets  # noqa: F401 - before processes are forked, as the next
import sklearn.datasets  # noqa: F401

import fedms.run
from fedms.cli import main as main_of_fedms
from fedms.config import Method, load_config
from fedms.events import Event, RoundDone
from fedms.progress import figure

SMALL = (
    *("data.max_rows=120", "partition.clients=3", "partition.unseen_clients=1"),
    *("stage1.rounds=2", "stage2.rounds=2", "evaluate_every=1", "runtime.threads=1"),
)
NOT_ALONE = {"probe": ("model.head=linear",), "flexlora": ("lora.ranks.*=4",)}
CONTEXT = multiprocessing.get_context("fork")
METHODS = get_args(Method)
TIMES = {"seconds", "train_seconds", "phase_seconds", "wall_seconds"}
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


def at_every_event(words: Sequence[str], run: Path) -> int:
    """Kill a run at its first event, resume it, kill it at the next, and so on to its end.

    Returns:
        how many kills that were.
    """
    seen: set[str] = set()
    while True:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_until_another, args=(list(words), run, seen, sender))
        process.start()
        sender.close()
        try:
            seen.add(receiver.recv())
        except EOFError:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{run} ended with {process.exitcode}") from None
            return len(seen)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"{run} ended with {process.exitcode}")


def _until_another(words: Sequence[str], run: Path, seen: set[str], sender: Connection) -> None:
    """Begin a run or go on with it, until an event that was not seen yet."""

    def watch(event: Event) -> None:
        known = event.record.round if isinstance(event, RoundDone) else getattr(event, "round", "")
        name = f"{type(event).__name__} {known}"
        if name not in seen:
            sender.send(name)
            os.kill(os.getpid(), signal.SIGKILL)

    if (run / "config.toml").exists():
        fedms.run.resume(run, watch=watch)
    else:
        fedms.run.run(load_config(None, words), run, watch=watch)


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


class Tally:
    """Runs that were killed, beside undisturbed ones of their methods, in a folder."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._whole: dict[str, tuple[float, dict[str, str]]] = {}
        self.kills = self.runs = self.equal = 0

    def undisturbed(self, method: str) -> tuple[float, dict[str, str]]:
        """Seconds of a method's run, and its ending."""
        if method not in self._whole:
            run = self._scratch / method
            took = perform(["run", *settings(method), "--out", f"{run}"], run)
            self._whole[method] = took or 0.0, ending(run)
        return self._whole[method]

    def next(self) -> Path:
        """Where the next run goes."""
        return self._scratch / f"run{self.runs}"

    def count(self, method: str, kills: int) -> None:
        """The next run has ended."""
        run, (_, expected) = self.next(), self.undisturbed(method)
        ended = ending(run)
        self.runs += 1
        self.kills += kills
        self.equal += ended == expected
        if other := sorted(n for n in ended | expected if ended.get(n) != expected.get(n)):
            sys.stdout.write(f"{run.name}, {method}: {', '.join(other)} not as undisturbed\n")
            sys.stdout.flush()

    def say(self) -> None:
        """What came of all."""
        share = figure(self.equal / self.runs, "share")
        sys.stdout.write(
            f"{self.kills} kills in {self.runs} runs of {len(self._whole)} methods: "
            f"{self.equal} equal endings ({share})\n"
        )


def at_random(tally: Tally, method: str, draw: random.Random) -> None:
    """Kill a run at a random moment, one in three once more, and let it end."""
    run, (took, _) = tally.next(), tally.undisturbed(method)
    start = ["run", *settings(method), "--out", f"{run}"]
    kills = int(perform(start, run, draw.random() * took) is None)
    if draw.random() < 1 / 3:
        kills += perform(["resume", f"{run}"], run, draw.random() * took) is None
    perform(["resume", f"{run}"], run)
    tally.count(method, kills)


def main() -> None:
    """Do so many kills, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments, so many in all")
    parser.add_argument("--events", action="store_true", help="at every event of one run a method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    draw, methods = random.Random(asked.seed), asked.methods.split(",")  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="fedms-soak-") as scratch:
        tally = Tally(Path(scratch))
        for method in methods if asked.events else ():
            tally.count(method, at_every_event(settings(method), tally.next()))
        while not asked.events and tally.kills < asked.kills:
            at_random(tally, methods[tally.runs % len(methods)], draw)
        tally.say()
    sys.exit(tally.equal != tally.runs)


if __name__ == "__main__":
    main()
