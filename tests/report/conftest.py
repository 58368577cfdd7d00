"""Run folders of any size as runs write them, made of drawn numbers in an instant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedms.config import dump_config, load_config
from fedms.core.algorithm import Score
from fedms.core.metrics import summarise

PER_ROLE = {"zero_shot": 0.55, "global": 0.72, "local": 0.75, "personal": 0.8, "oracle": 0.86}
STRANGE = [
    "<script>window.struck = 1</script>",
    "</script><img src=x onerror='window.struck = 1'>",
    "<!--",
    "\"quoted\" & 'quoted'",
    "北京 клиент 🏥",
    "back\\slash\u2028line",
    "a/b%20c",
    "x" * 120,
]


class Synthetic:
    """Writes a run's folder: scores are drawn, and all else follows from them."""

    def __init__(self, path: Path, clients: int, classes: int, rounds: int, method: str, seed: int):
        self.path, self.rng, self.rounds = path, np.random.default_rng(seed), rounds
        self.ids = [str(i) for i in range(clients)]
        self.classes = [f"class {k}" for k in range(classes)]
        words = [f"method={method}", f"seed={seed}", f"partition.clients={clients}"]
        self.config = load_config(None, words)
        self.method, self.seed = method, seed
        self.roles = PER_ROLE if method == "fedms" else {"zero_shot": 0.55, "personal": 0.74}
        self.rejects: dict[int, dict[str, str]] = {}

    def draw(self) -> None:
        n, k = len(self.ids), len(self.classes)
        shares = self.rng.dirichlet(np.full(k, 0.3), n)
        sizes = self.rng.lognormal(4.2, 0.7, n).astype(int) + 5
        self.held = {
            split: np.stack(
                [
                    self.rng.multinomial(int(s * part) + 2, p)
                    for s, p in zip(sizes, shares, strict=True)
                ]
            )
            for split, part in {"train": 0.7, "val": 0.1, "test": 0.3}.items()
        }
        skill = self.rng.normal(0, 0.08, n)
        rows = self.held["test"].sum(1)
        self.scores = {
            role: {
                client: self._score(mean + skill[i], int(rows[i]))
                for i, client in enumerate(self.ids)
            }
            for role, mean in self.roles.items()
        }

    def _score(self, mean: float, rows: int) -> Score:
        right = int(self.rng.binomial(rows, min(max(mean + self.rng.normal(0, 0.05), 0.02), 0.99)))
        return Score(right, rows, loss=0.3 * rows)

    def summaries(self) -> dict[str, Any]:
        from dataclasses import asdict

        found = {role: asdict(summarise(scores)) for role, scores in self.scores.items()}
        every = ("zero_shot", "global", "local", "personal", "oracle", "unseen", "unseen_adapted")
        return {role: found.get(role) for role in every}

    def lines(self, test: dict[str, Any]) -> list[dict[str, Any]]:
        brief = {r: {k: v for k, v in s.items() if k != "per_client"} for r, s in test.items() if s}
        brief.pop("zero_shot", None)
        return [self._round(i, brief) for i in range(self.rounds)]

    def _round(self, i: int, test: dict[str, Any]) -> dict[str, Any]:
        first, last = i < self.rounds // 2, i == self.rounds - 1
        depth = 1 + 5 * i // max(self.rounds - 1, 1)
        cohort = sorted(self.ids[: max(1, len(self.ids) // 2)])
        noise = 1 + 0.2 * float(self.rng.random())
        return {
            "round": i,
            "stage": 0 if i == 0 and self.rounds > 2 else 1 if first else 2,
            "depth": depth,
            "client_depths": [max(1, depth - k % 3) for k in range(len(cohort))],
            "cohort": cohort,
            "rejected": self.rejects.get(i, {}),
            "validation": 0.8 - 0.3 / (i + 1),
            "upload_bytes": int(1.2e5 * depth * len(cohort) * noise),
            "download_bytes": int(1.1e5 * depth * len(cohort)),
            "trainable_parameters": 4096 * depth,
            "seconds": 1.5 * depth * noise,
            "costs": {
                "flops": int(3e11 * depth * noise),
                "peak_activation_bytes": 3_000_000 * depth,
                "cache_bytes": 12_000_000,
                "peak_device_bytes": None,
                "seconds": {
                    "evaluate": 0.1,
                    "cache": 0.2 * depth,
                    "train": depth,
                    "aggregate": 0.02,
                },
            },
            "warned": {},
            "late": [],
            "test": test if last or i % 5 == 4 else None,
        }

    def write(self, *, complete: bool = True, details: bool = True) -> Path:
        self.path.mkdir(parents=True)
        test, sizes = self.summaries(), {s: t.sum(1).tolist() for s, t in self.held.items()}
        kinds = (self.held["train"] > 0).sum(1).tolist()
        gated = self.method == "fedms"
        (self.path / "config.toml").write_text(dump_config(self.config), encoding="utf-8")
        self._json("environment.json", {"seed": self.seed, "started": "2026-01-01T00:00:00+00:00",
            "command": "fedms run", "python": "3.11", "packages": {"torch": "2"}, "cores": 2,
            "git_commit": "0123abc", "identity": {"data": "digits"}})  # fmt: skip
        partition = [
            {"id": c, **{s: sizes[s][i] for s in sizes}, "classes": kinds[i]}
            for i, c in enumerate(self.ids)
        ]
        self._json("partition.json", partition)
        self._lines("rounds", rounds := self.lines(test))
        weights = self.rng.beta(2, 3, len(self.ids))
        self._lines("clients", [
            {"round": self.rounds, "stage": 2, "id": c,
             "rows": {s: sizes[s][i] for s in sizes}, "classes": kinds[i],
             "depth": 4 if gated else None, "gate_weight": float(weights[i]) if gated else None,
             "validation": {}, "test": {r: s[c].accuracy for r, s in self.scores.items()
                                        if r != "zero_shot"}}
            for i, c in enumerate(self.ids)])  # fmt: skip
        if details:
            self._details(gated)
        if complete:
            self._json("summary.json", {"method": self.method, "seed": self.seed,
                "clients": len(self.ids), "rounds": self.rounds,
                "validation": test, "test": test, "cost": self._cost(rounds)})  # fmt: skip
        return self.path

    def _details(self, gated: bool) -> None:
        self._json("classes.json", self.classes)
        pairs = lambda row: [[k, int(n)] for k, n in enumerate(row) if n]  # noqa: E731
        self._lines("labels", [
            {"id": c, **{s: pairs(t[i]) for s, t in self.held.items()}}
            for i, c in enumerate(self.ids)])  # fmt: skip
        if not gated:
            return
        lines = []
        for held, client in zip(self.held["test"], self.ids, strict=True):
            labels = np.repeat(np.arange(len(held)), held)
            weights = self.rng.beta(1, 1.5, len(labels))
            bins, rows = np.unique(labels * 10 + (weights * 10).astype(int), return_counts=True)
            counts = [[int(b) // 10, int(b) % 10, int(n)] for b, n in zip(bins, rows, strict=True)]
            sums = np.bincount(labels, weights)
            own = [[k, float(sums[k])] for k in np.flatnonzero(held).tolist()]
            lines.append({"id": client, "counts": counts, "weights": own})
        self._lines("gates", lines)

    def _cost(self, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "upload_bytes": sum(r["upload_bytes"] for r in rounds),
            "download_bytes": sum(r["download_bytes"] for r in rounds),
            "train_flops": sum(r["costs"]["flops"] for r in rounds),
            "train_seconds": sum(r["seconds"] for r in rounds),
            "phase_seconds": {"train": 3.0},
            "wall_seconds": sum(r["seconds"] for r in rounds) + 7.25,
            "peak_activation_bytes": max(r["costs"]["peak_activation_bytes"] for r in rounds),
            "peak_device_bytes": None,
            "cache_bytes": 12_000_000,
            "trainable_parameters": max(r["trainable_parameters"] for r in rounds),
            "total_parameters": 1_580_289,
        }

    def _json(self, name: str, value: Any) -> None:
        (self.path / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def _lines(self, name: str, values: list[Any]) -> None:
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (self.path / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def made() -> Callable[..., Path]:
    """`made(path, clients=…)` writes a run's folder; `change` is called with it before."""

    def make(
        path: Path,
        *,
        clients: int = 10,
        classes: int = 10,
        rounds: int = 12,
        method: str = "fedms",
        seed: int = 0,
        change: Callable[[Synthetic], None] = lambda run: None,
        **how: bool,
    ) -> Path:
        run = Synthetic(path, clients, classes, rounds, method, seed)
        change(run)
        run.draw()
        return run.write(**how)

    return make


@pytest.fixture(scope="session")
def strange() -> Callable[[Any], None]:
    """Gives clients and classes names that a careless page would take for markup."""

    def change(run: Any) -> None:
        run.ids[: len(STRANGE)] = STRANGE[: len(run.ids)]
        run.classes[: len(STRANGE)] = STRANGE[: len(run.classes)]
        run.rejects[3] = {STRANGE[1]: STRANGE[0]}

    return change
