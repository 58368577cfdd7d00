"""What a round across machines takes beside training: fedms over Flower, and Flower by itself.

    python benchmarks/across.py [--sizes 1,20,100] [--rounds 4] [--write]

Two sites on this machine, without TLS. Both sides send the same bytes to every site and back, in 32
float32 tensors that change each round, and take turns. Flower's floor is a loop over its grid and a
ClientApp of a few lines with NumPy; fedms' is its whole round: messages, resident processes,
screening, averaging. The first round of each is left out. `--write` puts the table into
`docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any, cast

import numpy as np
import pages
import tomli_w
from echo import Nothing, echo

from fedms.core.algorithm import Learner
from fedms.core.rows import ClientData, ClientSizes, Rows
from fedms.deploy import engine
from fedms.runtimes.flower.relay import SOCKET
from fedms.runtimes.site import Site, answer_all, listening
from fedms.store.run_folder import environment

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
SITES = ("north", "south")
MODEL = (
    "from fedms.models import load_backbone; load_backbone('minilm', max_length=32, device='cpu')"
)
RELAY = "import fedms.runtimes.flower.relay"


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """A SuperLink with two nodes, whose sites answer here; where Flower has its files."""
    home, port = folder / "flower", _free_port()
    home.mkdir()
    secret = folder / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    auth = ("--superexec-auth-secret-file", str(secret))
    engine.connect(home, "127.0.0.1", port, None)
    with engine.Processes(home, folder / "logs") as processes, ExitStack() as lines:
        link = ("--host", "127.0.0.1", "--port", str(port), "--database", str(home / "state.db"))
        words = [engine.program("flower-superlink"), "--insecure", *link, *auth]
        processes.start("superlink", [*words, "--isolation", "process"])
        _wait(port)
        words = [engine.program("flower-superexec"), "--insecure", *auth]
        processes.start("superexec", [*words, "--runtime-api-address", f"127.0.0.1:{port}"])
        for name in SITES:
            place = folder / name / "socket"
            line = lines.enter_context(listening(place))
            threading.Thread(target=_answer, args=(name, folder, line), daemon=True).start()
            words = [engine.program("flower-supernode"), "--insecure"]
            words += ["--superlink", f"127.0.0.1:{port}"]
            words += ["--host", "127.0.0.1", "--port", str(_free_port())]
            words += ["--node-config", engine.quoted({SOCKET: str(place)})]
            processes.start(name, words)
        yield home


def _answer(name: str, folder: Path, line: Listener) -> None:
    """A site's own process, here a thread: the algorithm's size is what it is sent."""
    rows = Rows({"x": np.zeros((1, 1), np.float32)}, np.zeros(1, np.int64))
    none = rows.take(np.zeros(0, np.int64))
    data, sizes = ClientData(name, rows, none, none), ClientSizes(name, 1, 0, 0, 1)
    learner = cast(Learner, Nothing())
    site = Site(echo(0.0, 1), learner, data, sizes, {}, folder / name / "state")
    for _ in answer_all(site, line):
        pass


def turn(home: Path, folder: Path, what: str, size: float, rounds: int) -> dict[str, Any]:
    """One run of either side: seconds of every round but the first, and the server's peak."""
    run, out = f"{what}-{secrets.token_hex(4)}", folder / "out.json"
    app = folder / run
    app.mkdir()
    for name in ("echo.py", f"{what}_app.py"):
        shutil.copy(HERE / name, app)
    (app / "LICENSE").write_text("Apache-2.0\n")
    client = "floor_app:client" if what == "floor" else "fedms.runtimes.flower.relay:app"
    words: dict[str, str | int | float] = {"size": size, "rounds": rounds}
    words |= {"run": run, "out": str(out)}
    (app / "pyproject.toml").write_text(tomli_w.dumps(_project(what, client, words)))
    number = str(engine.ask(home, "run", str(app), engine.CONNECTION)["run-id"])
    while not (status := _status(home, number)).startswith("finished"):
        time.sleep(1.0)
    if status != "finished:completed":
        log = engine.last_words(folder / "logs" / "superexec.log")
        raise RuntimeError(f"got {status} of {what} with {size:g} MB: {log}")
    found: dict[str, Any] = json.loads(out.read_text())
    return {**found, "seconds": found["seconds"][1:]}


def _status(home: Path, number: str) -> str:
    words = ("ls", engine.CONNECTION, "--run-id", number)
    (found,) = engine.ask(home, *words)["runs"]
    return str(found["status"])


def _project(what: str, client: str, words: Mapping[str, str | int | float]) -> dict[str, Any]:
    flower = version("flwr")
    app = {
        "publisher": "fedms",
        "fab-format-version": 1,
        "flwr-version-target": flower,
        "fab-include": ["*.py", "LICENSE"],
        "components": {"serverapp": f"{what}_app:app", "clientapp": client},
        "config": dict(words),
    }
    return {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": f"fedms-{what}",
            "version": "1.0.0",
            "description": "A benchmark.",
            "license": {"file": "LICENSE"},
            "dependencies": [f"flwr>={flower}"],
        },
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}},
            "flwr": {"app": app},
        },
    }


def row(home: Path, folder: Path, size: float, rounds: int, turns: int) -> list[str]:
    """Both sides' median round with so many MB each way, and peaks of their servers."""
    found: dict[str, list[dict[str, Any]]] = {"floor": [], "rounds": []}
    for number in range(turns):
        for what in sorted(found, reverse=bool(number % 2)):
            found[what].append(turn(home, folder, what, size, rounds))
    seconds = {
        what: statistics.median(s for one in runs for s in one["seconds"])
        for what, runs in found.items()
    }
    peaks = {what: max(one["peak"] for one in runs) / 1e6 for what, runs in found.items()}
    return [
        f"{size:g} MB",
        *(f"{seconds[what]:.1f} s" for what in ("rounds", "floor")),
        f"{seconds['rounds'] / seconds['floor']:.2f}",
        *(f"{peaks[what]:,.0f} MB" for what in ("rounds", "floor")),
    ]


def start_seconds(program: str) -> float:
    """The median of three starts of a process that does this."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)  # noqa: S603
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def text(rows: Sequence[Sequence[str]], command: str) -> str:
    """The table, and what made it."""
    facts = environment(0)
    head = ["each way, every site", "fedms, a round", "Flower's floor", "fedms / Flower"]
    head += ["fedms' server, peak", "the floor's"]
    model, relay = start_seconds(MODEL), start_seconds(RELAY)
    return "\n".join(
        [
            pages.table(head, rows),
            "",
            f"A process that imports what it needs and loads MiniLM takes {model:.1f} s, the one "
            f"that hands a message to a site's own process {relay:.1f} s.",
            "",
            f"`{command}`; commit {str(facts['git_commit'])[:12]}; {facts['processor']}, "
            f"{facts['cores']} cores, shared; flwr {version('flwr')}, Python {facts['python']}.",
        ]
    )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(port: int) -> None:
    """Until something listens."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError("the SuperLink did not start")


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1,20,100,200", help="MB each way, by commas")
    parser.add_argument("--rounds", type=int, default=4, help="of each turn, the first left out")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    words = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedms-") as place, running(Path(place)) as home:
        for size in map(float, words.sizes.split(",")):
            rows.append(row(home, Path(place), size, words.rounds, words.turns))
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
    said = f"--sizes {words.sizes} --rounds {words.rounds} --turns {words.turns}"
    table = text(rows, f"python benchmarks/across.py {said}")
    sys.stdout.write(f"{table}\n")
    if words.write:
        pages.write(PAGE, "across", table)


if __name__ == "__main__":
    main()
