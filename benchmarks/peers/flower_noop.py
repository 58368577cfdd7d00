"""What Flower's simulation costs by itself: clients that send back the arrays they got.

    python benchmarks/peers/flower_noop.py --clients 10 --rounds 5 --out RESULT.json [--workers N]

24 float32 tensors, 0.6 MB in all.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import flower_runtime
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

TENSORS, SIZE = 24, 6250


def make_client() -> ClientApp:
    """A ClientApp that trains nothing."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, flower_runtime.STARTED: time.time()})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main() -> None:
    """Run the rounds."""
    clock = flower_runtime.Clock()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    arrays = ArrayRecord([np.zeros(SIZE, np.float32) for _ in range(TENSORS)])

    def server(grid: Grid) -> None:
        flower_runtime.fedavg(grid, arrays, words.clients, words.rounds, clock)

    flower_runtime.simulate(server, make_client(), clients=words.clients, workers=words.workers)
    result = {
        "peer": "flower_noop",
        "clients": words.clients,
        "workers": words.workers,
        "threads": 1,
        **clock.seconds(),
        "versions": {name: version(name) for name in ("flwr", "ray", "numpy")},
    }
    words.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
