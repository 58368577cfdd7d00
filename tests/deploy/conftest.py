"""A deployment on this machine: real SuperLink, SuperNodes and, where there is one, nginx."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from fedms.build import build, load_table
from fedms.config import dump_config, load_config

SITES = ("north", "south", "west")
TIMES = ("train_seconds", "phase_seconds", "wall_seconds")
OWN = ("train_flops", "peak_activation_bytes", "cache_bytes")
"""Each site has shapes and a cache of its own."""
DIGITS = None, ("data.max_rows=150",)


def tables(
    folder: Path, sites: Sequence[str], rounds: int, recipe: Path | None, words: Sequence[str]
) -> Path:
    """A job dealt to sites: all in one file, each in its own, and its configuration."""
    dealt = (f"partition.clients={len(sites)}", "partition.unseen_clients=0")
    small = load_config(recipe, [*words, *dealt])
    federation, table, rows = build(small).federation, load_table(small), []
    for site, who in zip(sites, federation.clients, strict=True):
        for split in ("train", "val", "test"):
            for i in getattr(who, split):
                rows.append((_cell(table.inputs[i]), table.labels[i], split, site))
    every = pandas.DataFrame(rows, columns=["input", "label", "split", "site"])
    every.to_parquet(folder / "all.parquet")
    for site in sites:
        every[every.site == site].drop(columns="site").to_parquet(folder / f"{site}.parquet")
    config = load_config(
        recipe,
        [
            *(*words, "name=clinics", "evaluate_every=0", "runtime.threads=1"),
            *("data.source=parquet", f"data.path={folder}/all.parquet", "data.input=input"),
            *("data.label=label", "data.split=split", "data.max_rows="),
            f"data.classes={json.dumps(list(federation.classes))}",
            *("partition.by=column", "partition.column=site", "partition.unseen_clients=0"),
            *(f"stage1.rounds={rounds}", f"stage2.rounds={rounds}"),
        ],
    )
    (folder / "clinics.toml").write_text(dump_config(config))
    return folder / "clinics.toml"


def _cell(value: object) -> object:
    """What parquet holds of an input: text, or an image's bytes."""
    if isinstance(value, str):
        return value
    out = io.BytesIO()
    Image.fromarray(value).save(out, "PNG")
    return out.getvalue()


def free_port() -> int:
    """Of two that follow each other."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with suppress(OSError):
                two.bind(("127.0.0.1", port + 1))
                return port


class Loopback:
    """Programs of a deployment, by name; `with` ends all of them."""

    def __init__(
        self,
        folder: Path,
        *,
        sites: Sequence[str] = SITES,
        rounds: int = 1,
        job: tuple[Path | None, Sequence[str]] = DIGITS,
        nginx: bool | None = None,
        program: Callable[..., Any],
        perform: Callable[..., subprocess.CompletedProcess[str]],
    ) -> None:
        self.program, self.perform = program, perform
        self.folder, self.port, self.sites = folder, free_port(), sites
        self.config = tables(folder, sites, rounds, *job)
        self.nginx = shutil.which("nginx") is not None if nginx is None else nginx
        self.there = folder / "deployment"
        self.running: dict[str, Any] = {}

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.running):
            self.end(name)

    def fedms(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A command of ours, to its end."""
        return self.perform("-m", "fedms.cli", *words, folder=self.folder, timeout=timeout)

    def start(self, name: str, *words: object) -> None:
        log = self.folder / f"{name}.log"
        self.running[name] = self.program("-m", "fedms.cli", *words, folder=self.folder, out=log)

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End one by a signal to it alone, as a person or a crash would."""
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        return process.wait(30)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait(self, name: str, text: str, timeout: float = 120) -> None:
        """Until a program says something."""
        ends = time.monotonic() + timeout
        while text not in self.said(name):
            assert self.running[name].poll() is None, self.said(name)
            assert time.monotonic() < ends, self.said(name)
            time.sleep(0.2)

    def deploy(self) -> None:
        done = self.fedms(
            *("deploy", self.config, "--sites", ",".join(self.sites), "--to", self.there),
            *("--address", f"127.0.0.1:{self.port}"),
        )
        assert done.returncode == 0, done.stderr

    def serve(self) -> None:
        proxy = "nginx" if self.nginx else "none"
        before = self.said("server").count("sites come to") if "server" in self.running else 0
        with suppress(FileNotFoundError):
            before = self.said("server").count("sites come to")
        self.start("server", "server", self.there, "--proxy", proxy)
        ends = time.monotonic() + 120
        while self.said("server").count("sites come to") == before:
            assert self.running["server"].poll() is None, self.said("server")
            assert time.monotonic() < ends, self.said("server")
            time.sleep(0.2)

    def attend(self, site: str) -> None:
        port = self.port if self.nginx else self.port + 1
        self.start(
            *(site, "site", self.there / "sites" / site),
            *(f"data.path={self.folder / site}.parquet", "--server", f"127.0.0.1:{port}"),
        )

    def everyone(self) -> None:
        """Server and sites, as they start."""
        self.deploy()
        self.serve()
        for site in self.sites:
            self.attend(site)

    def submit(self, *words: object) -> None:
        self.start("submit", "submit", self.there, *words)

    def ended(self, timeout: float = 300) -> int:
        """The exit code of what was submitted."""
        return self.running.pop("submit").wait(timeout)


@pytest.fixture
def loopback(tmp_path, program, perform_program) -> Iterator[Callable[..., Loopback]]:
    """`loopback(rounds=1)` is a deployment below `tmp_path`, ended with the test."""
    ours = {"program": program, "perform": perform_program}
    with ExitStack() as all_of_them:
        yield lambda **words: all_of_them.enter_context(Loopback(tmp_path, **words, **ours))


@pytest.fixture
def same(states) -> Callable[..., None]:
    """`same(served, simulated, kept)`: a run is the simulator's, to the bit.

    In server state, adapters, private states and scores; `kept` has every site's folder of it.
    """

    def check(served: Path, simulated: Path, kept: dict[str, Path]) -> None:
        told, expected = (
            json.loads((folder / "summary.json").read_text()) for folder in (served, simulated)
        )
        for summary in (told, expected):
            for name in (*TIMES, *OWN):
                del summary["cost"][name]
        assert told == expected
        here, there = states(served), states(simulated)
        assert here == {k: v for k, v in there.items() if "/clients/" not in k}
        for site, own in kept.items():
            its = states(own)
            del its["constants.safetensors"]
            for path, data in its.items():
                at = path.replace("clients/", "checkpoints/clients/", 1)
                assert there[path if path.startswith("adapters/") else at] == data
            assert f"adapters/clients/{site}/local/adapter_model.safetensors" in its

    return check


@pytest.fixture
def states() -> Callable[[Path], dict[str, bytes]]:
    """All tensors below a folder that a run leaves, by path."""
    return lambda folder: {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*.safetensors"))
    }
