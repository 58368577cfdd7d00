"""Tiny runs on real digits, each performed once for all tests that look at its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client

import pytest
from safetensors.torch import load_file

from fedms.config import load_config
from fedms.run import run

SMALL = (
    "data.max_rows=120",
    "model.prompt=a neatly handwritten {label}",  # which the model knows badly: room to improve
    "partition.clients=3",
    "partition.alpha=1.0",
    "partition.test_fraction=0.4",
    "stage1.rounds=2",
    "stage2.rounds=2",
    "training.learning_rate=3e-2",  # large, so that few rounds change something
    # given, so that these tests do not depend on which defaults are best
    "sal.trigger=queue",
    "sal.start=1",
    "sal.queue=3",
    "gate.mix_prior=none",
    "gate.share=adapter",
    "gate.calibration=true",
    "gate.statistics=none",
    "stage1.prior=learned",
    "stage2.checkpoint=mean",
)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def strict(text: str) -> Any:
    """JSON as its standard has it: without NaN and infinity."""
    return json.loads(text, parse_constant=_refuse)


@dataclass(frozen=True)
class Done:
    """A finished run: its folder, read with nothing of fedms, and the summary it returned."""

    path: Path
    returned: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        return strict((self.path / "summary.json").read_text())

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.path / f"{name}.jsonl").read_text()
        assert text.endswith("\n")
        return [strict(line) for line in text.splitlines()]

    def tensors(self, name: str = "adapters") -> dict[str, Any]:
        """Every tensor below a folder, by file and name."""
        files = sorted((self.path / name).rglob("*.safetensors"))
        return {
            f"{file.relative_to(self.path)}:{key}": tensor
            for file in files
            for key, tensor in load_file(file).items()
        }

    def bytes(self, name: str = "adapters") -> dict[str, bytes]:
        """Every file below a folder."""
        files = [p for p in sorted((self.path / name).rglob("*")) if p.is_file()]
        return {p.relative_to(self.path).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="session")
def small() -> Callable[..., Any]:
    """The configuration of a tiny run, with overrides."""
    return lambda *overrides: load_config(None, [*SMALL, *overrides])


@pytest.fixture(scope="session")
def done(tmp_path_factory, small) -> Callable[..., Done]:
    """`done(*overrides)` is the finished tiny run; equal configurations share one."""

    finished: dict[str, Done] = {}

    def perform(*overrides: str) -> Done:
        config = small(*overrides)
        key = config.model_dump_json()  # by whatever words
        if key not in finished:
            path = tmp_path_factory.mktemp("runs") / "run"
            finished[key] = Done(path, run(config, path))
        return finished[key]

    return perform


TIMES = ("train_seconds", "phase_seconds", "wall_seconds")
TWICE = ("train_flops", "cache_bytes", "peak_device_bytes")
"""What is computed again to fill the cache anew, and what memory that takes."""


def _ending(path: Path) -> tuple[Any, Any, Any]:
    """All that a run leaves, but for times and what was computed twice: files, lines, summary."""
    files = {
        p.relative_to(path): p.read_bytes()
        for folder in ("adapters", "checkpoints")
        for p in (path / folder).rglob("*")
        if p.is_file()
    }
    lines = {
        p.stem: [json.loads(s) for s in p.read_text().splitlines()]
        for p in sorted(path.glob("*.jsonl"))
    }
    assert {"rounds", "clients", "labels"} <= lines.keys()
    for line in lines["rounds"]:
        del line["seconds"], line["wall_seconds"], line["hash"]
        for word in ("seconds", "flops", "cache_bytes", "peak_device_bytes"):
            del line["costs"][word]
    summary = json.loads((path / "summary.json").read_text())
    for name in (*TIMES, *TWICE):
        del summary["cost"][name]
    return files, lines, summary


@pytest.fixture(scope="session")
def ending() -> Callable[[Path], tuple[Any, Any, Any]]:
    """`ending(folder)`: equal for runs that ended alike."""
    return _ending
