"""What the Flower programs share: everything that calls home is off, and the run is timed.

Import it before flwr: the settings are read when that is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from flwr.simulation import run_simulation
from memory import age

STARTED = "started"
"""A client's metric: when its function began (seconds since the epoch)."""


def earliest(records: list[object], weighted_by: str) -> MetricRecord:
    """Aggregates clients' metrics: when the first of them began."""
    return MetricRecord({STARTED: min(float(r["metrics"][STARTED]) for r in records)})  # type: ignore[index]


@dataclass
class Clock:
    """When things happened, in seconds since the epoch, as workers' clocks have to be compared.

    A round counts from its predecessor's end; the first, from the moment its first client began.
    What is before that is start-up: imports, Ray, its workers and their imports.
    """

    imported: float = field(default_factory=age)
    ends: list[float] = field(default_factory=list)
    first_client: float = 0.0

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> None:
        """As `evaluate_fn` of a strategy: evaluates nothing, notes the end of every round."""
        if server_round:
            self.ends.append(time.time())

    def seconds(self) -> dict[str, float | list[float]]:
        """Start-up, this program's own imports within it, and every round."""
        starts = [self.first_client, *self.ends[:-1]]
        rounds = [end - start for start, end in zip(starts, self.ends, strict=True)]
        start = age() - (time.time() - self.first_client)
        return {
            "import_seconds": self.imported,
            "start_seconds": start,
            "round_seconds": rounds,
        }


def fedavg(grid: Grid, initial: ArrayRecord, clients: int, rounds: int, clock: Clock) -> Result:
    """Flower's own FedAvg over all clients, every round, without evaluation.

    Raises:
        RuntimeError: if a round did not come about (Flower itself goes on).
    """
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
        train_metrics_aggr_fn=earliest,
    )
    result = strategy.start(
        grid=grid, initial_arrays=initial, num_rounds=rounds, evaluate_fn=clock.evaluate
    )
    metrics = result.train_metrics_clientapp
    if len(metrics) != rounds:
        raise RuntimeError(f"got {len(metrics)} rounds with results; expected {rounds}")
    clock.first_client = float(metrics[1][STARTED])
    return result


def simulate(
    main: Callable[[Grid], None], client: ClientApp, *, clients: int, workers: int
) -> None:
    """Run a server function and a ClientApp in Flower's simulation, one core a worker."""
    server = ServerApp()

    @server.main()
    def _main(grid: Grid, _: object) -> None:
        main(grid)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": workers},
        },
    )
