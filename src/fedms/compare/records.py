"""What a comparison keeps of a run: all that its tables need, one line each in `runs.jsonl`.

A record stands for its run: with the same configuration and identity the run is not performed
again, also where its folder, with states and adapters, is gone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fedms.config import Config, ConfigError, Sal, load_config, untracked, validate
from fedms.core.errors import UserError
from fedms.identity import identity
from fedms.store.files import append_json

_FACTS = (
    *("started", "python", "packages", "git_commit"),
    *("processor", "cores", "device_name", "identity"),
)
"""Of `environment.json`."""


@dataclass(frozen=True)
class Point:
    """A run after some rounds: what it had cost, and mean accuracies of its personal models."""

    round: int
    bytes: int
    flops: int
    seconds: float
    validation: float | None
    test: float


@dataclass(frozen=True)
class Record:
    """A complete run.

    Args:
        config: resolved, as JSON values.
        facts: from its `environment.json`.
        summary: its `summary.json`, without validation scores of single clients; or why it has
            none, `{"diverged": …}`.
        points: at every round after which its models were scored.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    summary: Mapping[str, Any]
    points: tuple[Point, ...]

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Of a run folder; None where the run is not complete, or what it left cannot be read."""
        try:
            facts = _json(folder / "environment.json")
            return cls(
                config=load_config(folder / "config.toml").model_dump(mode="json"),
                facts={name: facts[name] for name in _FACTS if name in facts},
                summary=_brief(_json(folder / "summary.json")),
                points=tuple(curve(folder)),
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Record:
        """From what `asdict` made of it."""
        points = tuple(Point(**point) for point in line["points"])
        return cls(line["config"], line["facts"], line["summary"], points)

    @property
    def regular(self) -> tuple[Point, ...]:
        """Points of rounds after which a run of any method is scored, and the last.

        A stage's end is scored too, and a round that only gathers statistics counts as one: methods
        with these would have more to be chosen from. So nothing nearer to the end than that counts.
        """
        every, last = self.config["evaluate_every"], self.points[-1:]
        most = last[0].round - every if last and every else 0
        early = (p for p in self.points if p.round <= most and p.round % every == 0)
        return (*early, *last)

    def is_of(self, config: Config) -> bool:
        """Whether it is of this configuration in all that its method reads, wherever it is tracked.

        An option that came later than the record counts as its default.
        """
        return not self.differs(config)

    def differs(self, config: Config) -> str:
        """What of its configuration is other, the first in words; empty: nothing that is read."""
        try:
            own, other = _read(validate(self.config)), _read(config)
        except ConfigError:
            return "settings that there are no longer"
        if own == other:
            return ""
        ours, theirs = dict(_leaves(own.model_dump())), dict(_leaves(other.model_dump()))
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        first = f"{names[0]} = {ours.get(names[0])}, not {theirs.get(names[0])}{more}"
        return f"other settings ({first})"

    def fits(self, config: Config) -> bool:
        """Whether it is of this configuration, here and now: see `identity`."""
        return self.is_of(config) and self.facts.get("identity") == identity(config)


class Records:
    """Those of a comparison, by the names of its runs; `path` need not be there yet.

    Lines are only ever added, each in one write, so that several processes can compare in one
    folder. The last line of a name counts; what is no JSON was cut short, and is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Record] = {}
        for line in _lines(path) if path.exists() else ():
            try:
                self._known[line["run"]] = Record.of(line)
            except (KeyError, TypeError):
                raise UserError(
                    f"got {path} with a line that is no record of a run; expected what a "
                    "comparison wrote; try --out OTHER"
                ) from None

    def get(self, name: str) -> Record | None:
        """The last of a run."""
        return self._known.get(name)

    def add(self, name: str, record: Record) -> None:
        """Keep it, in place of an earlier one."""
        if self._known.get(name) != record:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_json(self._path, {"run": name, **asdict(record)})
            self._known[name] = record


def _read(config: Config) -> Config:
    """What makes a run what it is.

    Of SAL, methods that train all blocks read the caps alone. By how often a run can be gone on
    with its models are the same, and by how many processes it is shared among they are so but for
    rounding (to the bit under conditions: see `runtimes.workers`).
    """
    sal = config.sal if config.method == "fedms" else Sal(caps=config.sal.caps)
    runtime = config.runtime.model_copy(update={"workers": 1})
    same = {"sal": sal, "runtime": runtime, "checkpoint_every": 1}
    return untracked(config).model_copy(update=same)


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` and value."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def curve(folder: Path) -> list[Point]:
    """A run's points, from its folder."""
    costs: list[tuple[int, int, float]] = []
    for line in _lines(folder / "rounds.jsonl"):
        up, flops, seconds = costs[-1] if costs else (0, 0, 0.0)
        up += line["upload_bytes"] + line["download_bytes"]
        costs.append((up, flops + line["costs"]["flops"], seconds + line["seconds"]))
    points = []
    for done, clients in groupby(_lines(folder / "clients.jsonl"), key=lambda c: int(c["round"])):
        scores = list(clients)
        means = {name: _mean([c[name].get("personal") for c in scores]) for name in _SPLITS}
        if means["test"] is not None:
            points.append(Point(done, *costs[done - 1], means["validation"], means["test"]))
    return points


_SPLITS = ("validation", "test")


def _brief(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Without what nothing is said of: validation scores of single clients."""
    scores = summary.get("validation", {}).items()
    short = {r: s and {k: v for k, v in s.items() if k != "per_client"} for r, s in scores}
    return {**summary, "validation": short} if short else dict(summary)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Those that are whole."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            yield json.loads(line)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
