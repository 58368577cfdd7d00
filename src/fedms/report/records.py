"""What a run folder has, read for a report: complete or not, new or of an earlier version."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError
from fedms.store.files import read_lines
from fedms.store.marks import CONFIG, ENVIRONMENT, expect_run, read_facts, read_summary

Facts = Mapping[str, Any]
ROLES = {
    "zero_shot": "zero-shot",
    "global": "global expert",
    "local": "local expert",
    "personal": "personal",
    "oracle": "oracle gate (bound)",
    "unseen": "unseen clients",
    "unseen_adapted": "unseen clients, adapted",
}
"""Whose scores there may be, with their names for people."""
_COUNTED = ("flops", "peak_activation_bytes", "cache_bytes", "peak_device_bytes")
"""Costs of a round."""


@dataclass(frozen=True, eq=False)
class Record:
    """One run.

    Args:
        path: its folder.
        text: the resolved configuration, TOML.
        environment: as in `environment.json`.
        rounds: lines of `rounds.jsonl`.
        scored: lines of `clients.jsonl` from the last time that clients were scored.
        partition: as in `partition.json`.
        labels: lines of `labels.jsonl` by client; empty where it is not known.
        gates: lines of `gates.jsonl` by client; likewise.
        classes: names, by index; likewise.
        summary: of a complete run, else None.
    """

    path: Path
    text: str
    environment: Facts
    rounds: list[dict[str, Any]]
    scored: list[dict[str, Any]]
    partition: list[dict[str, Any]]
    labels: Mapping[str, Facts]
    gates: Mapping[str, Facts]
    classes: list[str]
    summary: Facts | None

    @cached_property
    def config(self) -> dict[str, Any]:
        return tomllib.loads(self.text)

    @property
    def method(self) -> str:
        """The method, as people write it."""
        name = str(self.config["method"])
        return {"fedms": "FedMS", "fedavg": "FedAvg", "local": "local-only"}.get(name, name)

    @property
    def title(self) -> str:
        return f"{self.config['name']}: {self.method}, seed {self.config['seed']}"

    @cached_property
    def federation(self) -> Facts:
        """What clients and rows follow from: files by their contents, wherever they are."""
        config, known = self.config, self.environment.get("identity", {})
        data, model = dict(config["data"]), dict(config["model"])
        path, name = data.pop("path", None), model.pop("name", None)
        return {
            "seed": config["seed"],
            "partition": config["partition"],
            "data": data,
            "rows": known.get("data", path),
            "model": model,
            "weights": known.get("weights", name),
        }

    @property
    def given(self) -> bool:
        """Whether a Python program gave the rows."""
        return bool(self.config["data"]["source"] == "memory")

    @property
    def elsewhere(self) -> bool:
        """Whether clients were sites on other machines."""
        return "sites" in self.environment

    @cached_property
    def test(self) -> Facts:
        """Test scores by role: of the summary, or from the last time that there were any."""
        if self.summary is not None:
            return dict(self.summary["test"])
        return next((dict(r["test"]) for r in reversed(self.rounds) if r.get("test")), {})

    def figure(self, role: str, name: str = "mean") -> float | None:
        """One figure of a role's test scores, if it is known."""
        scores = self.test.get(role)
        return None if scores is None else scores.get(name)

    @cached_property
    def cost(self) -> Facts:
        """As in the summary; of a run that is not complete, so far, as far as is on record."""
        if self.summary is not None:
            return dict(self.summary["cost"])
        flops, peaks = (_known(self.rounds, name) for name in _COUNTED[:2])
        return {
            "upload_bytes": sum(r["upload_bytes"] for r in self.rounds),
            "download_bytes": sum(r["download_bytes"] for r in self.rounds),
            "train_flops": sum(flops) if flops else None,
            "train_seconds": sum(r["seconds"] for r in self.rounds),
            "trainable_parameters": max(
                (r["trainable_parameters"] for r in self.rounds), default=None
            ),
            "peak_activation_bytes": max(peaks, default=None),
        }


def _known(rounds: list[dict[str, Any]], name: str) -> list[float]:
    """A cost of all rounds of which it is known."""
    costs = [line["costs"][name] for line in rounds]
    return [cost for cost in costs if cost is not None]


def read(path: Path) -> Record:
    """A run's records.

    Raises:
        UserError: if it is no run folder, or what it has cannot be read.
    """
    expect_run(path)
    scored = _lines(path / "clients.jsonl")
    last = max((line["round"] for line in scored), default=0)
    try:
        classes = _json(path / "classes.json")
        return Record(
            path=path,
            text=(path / CONFIG).read_text(encoding="utf-8"),
            environment=read_facts(path / ENVIRONMENT),
            rounds=[_with_costs(line) for line in _lines(path / "rounds.jsonl")],
            scored=[line for line in scored if line["round"] == last],
            partition=_json(path / "partition.json"),
            labels=_by_client(path / "labels.jsonl") if classes else {},
            gates=_by_client(path / "gates.jsonl") if classes else {},
            classes=classes,
            summary=read_summary(path),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if isinstance(line, dict)]


def _with_costs(line: dict[str, Any]) -> dict[str, Any]:
    """With None for what an earlier version did not count."""
    return {**line, "costs": {**dict.fromkeys(_COUNTED), "seconds": {}, **line.get("costs", {})}}


def _by_client(path: Path) -> dict[str, Facts]:
    return {str(line["id"]): line for line in _lines(path)}


def _json(path: Path) -> list[Any]:
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
