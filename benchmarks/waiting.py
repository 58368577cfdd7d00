"""How long threads should look for work before they sleep: a run, alone and on a busy machine.

    python benchmarks/waiting.py

torch's threads (libgomp on Linux) wait for one another by looking, 300,000 times by default; where
another process has one of the cores, most of a run is looking. The command line has them look
`SPINS` times. Beside the default are one thread, and threads that sleep at once. Nothing else
should be at work here: a busy machine is made by a process that counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pages
from performance import PAGE, block

from fedms.bench import Row
from fedms.cli.base import SPINS
from fedms.store.run_folder import environment

JOB = ("data.max_rows=1000", "stage1.rounds=3", "stage2.rounds=3", "evaluate_every=10")
DEFAULT = "300,000 looks, the default"
WAYS: Mapping[str, Mapping[str, str]] = {
    f"{SPINS:,} looks": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "no looks (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    DEFAULT: {"GOMP_SPINCOUNT": "300000"},
}
REPEATS = 2


def seconds(settings: Mapping[str, str]) -> float:
    """Of a run on the digits, as it says itself, without what it takes to start."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory(prefix="fedms-waiting-") as folder:
        words = [sys.executable, "-m", "fedms.cli", "run", *JOB, "--json", "--out", f"{folder}/run"]
        said = subprocess.run(  # noqa: S603 - our own words
            words, env={**kept, **settings}, capture_output=True, check=True
        ).stdout
    return float(json.loads(said)["cost"]["wall_seconds"])


@contextmanager
def company(processes: int) -> Iterator[None]:
    """So many processes that count."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rows() -> Iterator[Row]:
    """Seconds of a run each way, beside the default, alone and in company; ways take turns."""
    for others, where in ((0, "alone"), (1, "one core busy otherwise")):
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        with company(others):
            for _ in range(REPEATS):
                for way, settings in WAYS.items():
                    taken[way].append(seconds(settings))
        found = {way: statistics.median(times) for way, times in taken.items()}
        peer = (DEFAULT, found.pop(DEFAULT))
        for way, time in found.items():
            yield Row.of(f"digits, {way}, {where}", time, "s", REPEATS, peer)


def main() -> None:
    """Measure and write."""
    facts = environment(0)
    pages.write(PAGE, "waiting", block(list(rows()), facts, "python benchmarks/waiting.py"))


if __name__ == "__main__":
    main()
