"""What rounds cost beside training: overhead a client, growth with clients, several workers."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedms.bench.rows import Row
from fedms.build import make_algorithm
from fedms.config import load_config
from fedms.core import calibration, discriminant
from fedms.core.algorithm import Expert, Fit, Score, View
from fedms.core.costs import Costs
from fedms.core.layout import Layout
from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Rows, Split
from fedms.run import run
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

_WIDTH, _RANK, _BLOCKS = 384, 16, 6


class Idle:
    """A learner that trains nothing: 24 adapter tensors, 0.6 MB in all, and a gate.

    `asked` is when it was first told to train, by `perf_counter`.
    """

    asked = 0.0

    def __init__(self) -> None:
        sides = {"A": (_RANK, _WIDTH), "B": (_WIDTH, _RANK)}
        blocks = tuple(
            tuple(f"{block}.{target}.{side}" for target in "qv" for side in sides)
            for block in range(_BLOCKS)
        )
        shapes = {name: sides[name[-1]] for block in blocks for name in block}
        gate = {"down": (_WIDTH // 4, _WIDTH), "up": (_WIDTH, _WIDTH // 4), "head": (2, _WIDTH)}
        pairs = tuple((block[i], block[i + 1]) for block in blocks for i in (0, 2))
        self.layout = Layout(
            blocks, (), ("down", "up"), ("head",), {**shapes, **gate}, pairs, (), 1, 1
        )

    def initial_expert(self, names: frozenset[str], seed: int) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(self.layout.shapes[name]) for name in sorted(names)}

    def initial_gate(self, seed: int) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(self.layout.shapes[name]) for name in ("down", "up", "head")}

    def fit(self, fits: Sequence[Fit], pace: int) -> list[View]:
        self.asked = self.asked or time.perf_counter()
        return [fit.view for fit in fits]

    def mean_direction(self, expert: Expert, rows: Rows) -> torch.Tensor:
        return torch.zeros(_WIDTH)

    def score(self, view: View, data: ClientData, split: Split) -> Score:
        return Score()

    def routing(self, view: View, data: ClientData) -> Routing:
        return Routing((), ())

    def derivatives(self, view: View, data: ClientData) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(shape) for name, shape in calibration.SHAPES.items()}

    def statistics(
        self, data: ClientData, names: frozenset[str] = frozenset()
    ) -> dict[str, torch.Tensor]:
        return {name: torch.ones(shape) for name, shape in discriminant.shapes(1, 1).items()}

    def spent(self) -> Costs:
        return Costs()


def idle_rounds(clients: int, cohort: int, rounds: int, *, stage: int) -> tuple[float, list[float]]:
    """Seconds until the first idle client works, and of every round.

    Rounds are sending, screening, averaging and private states.
    """
    called = time.perf_counter()
    config = load_config(
        None,
        [
            f"stage1.rounds={rounds if stage == 1 else 0}",
            f"stage2.rounds={rounds if stage == 2 else 0}",
            f"stage1.cohort={cohort}",
            f"stage2.cohort={cohort}",
            "sal.trigger=all",
            "gate.statistics=none",
        ],
    )
    learner = Idle()
    rows = Rows({"x": np.zeros((1, 1))}, np.zeros(1, dtype=np.int64))
    everyone = [ClientData(str(i), rows, rows, rows) for i in range(clients)]
    algorithm = make_algorithm(config, learner.layout)
    with tempfile.TemporaryDirectory(prefix="fedms-bench-") as folder:
        simulator = Simulator(algorithm, learner, everyone, ClientStates(Path(folder)))
        seconds, began = [], time.perf_counter()
        for _ in run_rounds(algorithm, simulator, algorithm.init(learner, 0)):
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return learner.asked - called, seconds


def overhead_rows() -> Iterator[Row]:
    """Milliseconds a client and round of each stage, training left out."""
    clients, rounds = 50, 6
    for stage, what in ((1, "adapters up and down"), (2, "private state to disk and back")):
        _, seconds = idle_rounds(clients, clients, rounds, stage=stage)
        each = 1e3 * statistics.median(seconds[1:]) / clients
        yield Row.of(f"overhead stage {stage} ({what})", each, "ms a client", rounds - 1)


def growth_rows() -> Iterator[Row]:
    """Seconds a round and peak memory with 10 of N clients, each N in a process of its own."""
    found = {}
    for clients in (10, 100, 1000, 10_000):
        command = [sys.executable, "-m", "fedms.bench.rounds", str(clients)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        found[clients] = json.loads(done.stdout)
    for unit, name in (("s", "seconds a round"), ("bytes", "peak memory")):
        for clients, figures in found.items():
            peer = ("10 clients", found[10][unit]) if clients > 10 else None
            repeats = 20 if unit == "s" else 1
            yield Row.of(f"{name}, 10 of {clients:,} clients", figures[unit], unit, repeats, peer)


def workers_rows(*, device: torch.device) -> Iterator[Row]:
    """Seconds of rounds of the embedded default on two processes, beside one."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="fedms-bench-") as folder:
        for repeat in range(3):
            for workers, each in seconds.items():
                words = [f"runtime.workers={workers}", "runtime.threads=1"]
                words += [f"runtime.device={device}"]
                words += ["stage1.rounds=3", "stage2.rounds=3", "evaluate_every=0"]
                summary = run(load_config(None, words), Path(folder) / f"{workers}-{repeat}")
                each.append(summary["cost"]["train_seconds"])
    one, two = (sorted(each)[1] for each in seconds.values())
    yield Row.of("digits, 6 rounds, 2 workers of a thread", two, "s", 3, ("1 worker", one))


def _growth(clients: int) -> dict[str, float]:
    _, seconds = idle_rounds(clients, 10, 21, stage=2)
    return {"s": statistics.median(seconds[1:]), "bytes": float(_peak_bytes())}


def _peak_bytes() -> int:
    """The most memory this process had; what `getrusage` says includes its parent's on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_growth(int(sys.argv[1]))))
