"""Clients' models behind HTTP: over one foundation model, and as one PEFT model per client.

    python benchmarks/serving.py [--clients 1,10,100] [--askers 16] [--run DIR] [--write]

Both are answered for by the same service (`fedms.serve`: same framework, batching and threads) on
this machine. On fedms' side models share the foundation model; the peer's are what `fedms export`
wrote, loaded without fedms, each with a foundation model of its own. Both say the whole mixture:
foundation model, global and local expert, gate. The models are those of a small run on banking77
with MiniLM in float32, which is made first if DIR has none. A request is one text for a client
drawn at random. `--write` puts the table into `docs/serving.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pages
import torch

from fedms.build import load_table
from fedms.config import load_config
from fedms.core.rows import Rows
from fedms.data import Table
from fedms.export import fill
from fedms.models.standalone import Model
from fedms.run import run
from fedms.serve import server
from fedms.serve.service import Service
from fedms.store.run_folder import environment
from fedms.use import Models, Said

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "serving.md"
SIDES = {"fedms": "fedms", "peft": "one PEFT model each"}
SETTINGS = (
    *("partition.by=iid", "partition.clients=100", "data.max_rows=6000", "stage1.rounds=1"),
    *("stage1.cohort=10", "stage2.rounds=1", "runtime.precision=float32", "runtime.threads=1"),
)
PATIENCE = 1800.0
"""Seconds in which the first answers must come."""


class Peers:
    """Exported models, each with a foundation model of its own, for `Service`.

    Args:
        models: of the run, for what they take and their classes.
        folders: exports by client.
    """

    def __init__(self, models: Models, folders: dict[str, Path]) -> None:
        base = models.learner.backbone.name
        self.takes, self.classes, self.config = models.takes, models.classes, models.config
        del models  # and with it the foundation model that all shared
        self.clients = sorted(folders)
        self._models = {who: Model(folder, base) for who, folder in folders.items()}

    def has(self, client: str) -> bool:
        """Whether it was loaded."""
        return client in self._models

    def encoded(self, table: Table) -> Rows:
        """Texts as they are: each model has its tokenizer."""
        return Rows({"text": list(table.inputs)}, np.zeros(len(table), np.int64))

    def model(self, client: str) -> Model:
        """A client's."""
        return self._models[client]

    def together(self, parts: Sequence[tuple[Model, Rows]]) -> list[list[Said]]:
        """Answers; rows for one client are one batch."""
        texts: dict[int, list[str]] = {}
        for model, rows in parts:
            texts.setdefault(id(model), []).extend(rows.columns["text"])
        models = {id(model): model for model, _ in parts}
        said = {key: iter(self._said(models[key], found)) for key, found in texts.items()}
        return [[next(said[id(model)]) for _ in range(len(rows))] for model, rows in parts]

    def _said(self, model: Model, texts: Sequence[str]) -> Iterator[Said]:
        found = model.opinions(texts)
        experts = {name: found[name].exp().max(1) for name in ("global", "local")}
        for i, row in enumerate(found["personal"].exp()):
            best = {
                name: (self.classes[int(at[i])], float(p[i])) for name, (p, at) in experts.items()
            }
            label, weight = self.classes[int(row.argmax())], float(found["gate_weight"][i])
            probabilities = dict(zip(self.classes, row.tolist(), strict=True))
            yield Said(label, float(row.max()), weight, best, probabilities)


def answer(side: str, folder: Path, exports: Path, count: int) -> None:
    """The service of a side, in a process of its own; prints where it is."""
    models: Any = Models(folder, device="cpu")
    if side == "peft":
        clients = models.clients[:count]
        models = Peers(models, {who: exports / who for who in clients})
    line = server.open_socket("127.0.0.1", 0)
    sys.stdout.write(f"{server.address(line, '127.0.0.1')}\n")
    sys.stdout.flush()
    server.serve(Service(models), line, token=None, host="127.0.0.1", say=lambda _: None)


@dataclass(frozen=True)
class Figures:
    """What was measured of a side.

    Args:
        ready: seconds from the start of its program until every client was answered once.
        memory: bytes in memory then.
        alone: seconds of each request, with nobody else asking.
        crowd: likewise, with several askers.
        rate: answers a second of these.
        work: CPU seconds of the service an answer to these, which others on the machine do not
            change as much.
        labels: that were said to some texts, to see that both sides say the same.
    """

    ready: float
    memory: int
    alone: list[float]
    crowd: list[float]
    rate: float
    work: float
    labels: list[str]


def measure(
    side: str, folder: Path, exports: Path, clients: Sequence[str], texts: Sequence[str], words: Any
) -> Figures:
    """One turn of a side."""
    with serving(side, folder, exports, len(clients)) as (began, url, process):
        limits = httpx.Limits(max_connections=None)

        async def ask() -> Figures:
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
                first = [await timed(client, who, texts[0]) for who in clients]
                ready, memory = time.monotonic() - began, resident(process.pid)
                draw = np.random.default_rng(0)
                alone = await crowd(client, draw, clients, texts, words.alone, 1)
                start, spent = time.monotonic(), worked(process.pid)
                many = await crowd(client, draw, clients, texts, words.requests, words.askers)
                rate = len(many) / (time.monotonic() - start)
                work = (worked(process.pid) - spent) / len(many)
                labels = [label for _, label in [*first, *alone]]
                one, more = ([s for s, _ in found] for found in (alone, many))
                return Figures(ready, memory, one, more, rate, work, labels)

        return asyncio.run(ask())


async def crowd(
    client: httpx.AsyncClient,
    draw: np.random.Generator,
    clients: Sequence[str],
    texts: Sequence[str],
    requests: int,
    askers: int,
) -> list[tuple[float, str]]:
    """Seconds and answers of so many requests, each asker's next one when it has its answer."""
    jobs = iter([(str(draw.choice(clients)), str(draw.choice(texts))) for _ in range(requests)])
    found = []

    async def asker() -> None:
        for who, text in jobs:
            found.append(await timed(client, who, text))

    await asyncio.gather(*(asker() for _ in range(askers)))
    return found


async def timed(client: httpx.AsyncClient, who: str, text: str) -> tuple[float, str]:
    """Seconds and label of a request."""
    began = time.perf_counter()
    answer = await client.post("/predict", json={"client": who, "inputs": [text]})
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds, str(answer.json()["predictions"][0]["label"])


@contextmanager
def serving(
    side: str, folder: Path, exports: Path, count: int
) -> Iterator[tuple[float, str, subprocess.Popen[str]]]:
    """A side's program: when it was started, where it is, and the process."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--serve", side, "--run", str(folder)]
    command += ["--exports", str(exports), "--clients", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            yield began, process.stdout.readline().strip(), process
        finally:
            process.terminate()


def resident(pid: int) -> int:
    """Bytes of a process that are in memory, as Linux says."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(kilobytes)


def worked(pid: int) -> float:
    """CPU seconds of a process, as Linux says."""
    found = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK")


def row(count: int, side: str, turns: Sequence[Figures]) -> list[str]:
    """Cells: medians over turns, and quantiles of all their requests."""
    alone = [s for one in turns for s in one.alone]
    many = [s for one in turns for s in one.crowd]
    return [
        str(count),
        SIDES[side],
        *(f"{1000 * np.quantile(alone, q):.0f} ms" for q in (0.5, 0.95)),
        f"{statistics.median(one.rate for one in turns):.0f}",
        *(f"{1000 * np.quantile(many, q):.0f} ms" for q in (0.5, 0.95)),
        f"{1000 * statistics.median(one.work for one in turns):.1f} ms",
        f"{statistics.median(one.ready for one in turns):.0f} s",
        f"{max(one.memory for one in turns) / 1e9:.2f} GB",
    ]


def text(rows: Sequence[Sequence[str]], words: argparse.Namespace, bytes_each: int) -> str:
    """The table, and what made it."""
    facts = environment(0)
    head = ["clients", "models", "p50, alone", "p95, alone", f"answers/s, {words.askers} askers"]
    head += ["p50", "p95", "CPU an answer", "all answered after", "memory"]
    command = f"python benchmarks/serving.py --clients {words.clients} --askers {words.askers}"
    command += f" --requests {words.requests} --alone {words.alone} --turns {words.turns}"
    return "\n".join(
        [
            pages.table(head, rows),
            "",
            f"A client's own model is {bytes_each / 1e3:,.0f} kB in memory. `{command}`; commit "
            f"{str(facts['git_commit'])[:12]}; {facts['processor']}, {facts['cores']} cores, "
            f"shared, {torch.get_num_threads()} thread(s); torch {facts['packages']['torch']}, "
            f"peft {facts['packages']['peft']}, Python {facts['python']}.",
        ]
    )


def prepare(folder: Path, exports: Path) -> tuple[list[str], list[str], int]:
    """Clients, texts, and bytes of a client's model; makes the run and exports that lack."""
    if not (folder / "summary.json").is_file():
        data = ROOT.parent / "shared" / "data" / "banking77" / "data.csv.gz"
        recipe = ROOT / "recipes" / "banking77.toml"
        run(load_config(recipe, [*SETTINGS, f"data.path={data}"]), folder)
    models = Models(folder, device="cpu")
    for who in models.clients:
        if not (exports / who).is_dir():
            (exports / who).mkdir(parents=True)
            fill(models, exports / who, who)
    each = models.model(models.clients[0]).bytes
    return models.clients, list(load_table(models.config).inputs[:1000]), each


def compare(words: argparse.Namespace, folder: Path, exports: Path) -> None:
    """Both sides in turns, for every number of clients."""
    clients, texts, bytes_each = prepare(folder, exports)
    rows = []
    for count in map(int, words.clients.split(",")):
        turns: dict[str, list[Figures]] = {side: [] for side in SIDES}
        for turn in range(words.turns):
            for side in sorted(SIDES, reverse=bool(turn % 2)):
                chosen = clients[:count]
                turns[side].append(measure(side, folder, exports, chosen, texts, words))
        said = {json.dumps(one.labels) for figures in turns.values() for one in figures}
        if len(said) > 1:
            raise RuntimeError(f"got different answers of both sides with {count} clients")
        rows += [row(count, side, turns[side]) for side in SIDES]
        for cells in rows[-2:]:
            sys.stdout.write(f"{cells}\n")
        sys.stdout.flush()
    table = text(rows, words, bytes_each)
    sys.stdout.write(f"{table}\n")
    if words.write:
        pages.write(PAGE, "serving", table)


def main() -> None:
    """Measure, and write; or be one of the services that are measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", default="1,10,100", help="numbers of them, by commas")
    parser.add_argument("--askers", type=int, default=16, help="who ask at the same time")
    parser.add_argument("--requests", type=int, default=400, help="of all askers")
    parser.add_argument("--alone", type=int, default=100, help="requests with nobody else asking")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--run", type=Path, help="folder of the run [a temporary one]")
    parser.add_argument("--write", action="store_true", help="into docs/serving.md")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--exports", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        answer(words.serve, words.run, words.exports, int(words.clients))
        return
    with tempfile.TemporaryDirectory(prefix="fedms-") as place:
        folder = words.run or Path(place) / "run"
        compare(words, folder, words.exports or Path(place) / "exports")


if __name__ == "__main__":
    main()
