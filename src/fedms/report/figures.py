"""A run's figures, small enough to travel in a page: what its charts are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedms.core.routing import BINS
from fedms.report.records import ROLES, Facts, Record

MOST_PAIRS = 150_000
"""Of clients and classes in a page; of runs with more, classes of single clients are left out."""


def figures(record: Record, *, pairs: int = MOST_PAIRS) -> dict[str, Any]:
    """JSON values.

    Args:
        record: of the run.
        pairs: of clients and classes, at most.
    """
    names = record.config["model"].get("label_names", {})
    return {
        "name": record.path.name or str(record.path),
        "classes": [str(names.get(name, name)) for name in record.classes],
        "bins": BINS,
        "rounds": _rounds(record.rounds),
        "clients": clients(record) | _held(record, pairs) | _gates(record, pairs),
        "gateClasses": _gate_by_class(record),
        "test": {role: record.figure(role) for role in ROLES},
        "worst": record.figure("personal", "worst_decile"),
        "cost": {name: value for name, value in record.cost.items() if name != "phase_seconds"},
    }


def _rounds(rounds: Sequence[Facts]) -> dict[str, Any]:
    """Columns, one value a round."""
    costs = [line["costs"] for line in rounds]
    depths = [line["client_depths"] or [line["depth"]] for line in rounds]
    tests = [line.get("test") or {} for line in rounds]
    roles = [role for role in ROLES if any(role in test for test in tests)]
    phases = list(dict.fromkeys(name for cost in costs for name in cost["seconds"]))
    columns = ("stage", "depth", "validation", "upload_bytes", "download_bytes", "seconds")
    measured = ("flops", "peak_activation_bytes", "cache_bytes", "peak_device_bytes")
    return {
        **{name: [line[name] for line in rounds] for name in columns},
        **{name: [cost.get(name) for cost in costs] for name in measured},
        "shallow": [min(each) for each in depths],
        "deep": [max(each) for each in depths],
        "asked": [len(line["cohort"]) for line in rounds],
        "rejected": [len(line["rejected"]) for line in rounds],
        "phases": {name: [cost["seconds"].get(name) for cost in costs] for name in phases},
        "test": {r: [test.get(r, {}).get("mean") for test in tests] for r in roles},
    }


def clients(record: Record) -> dict[str, Any]:
    """Columns, one value a client; what is not known is None."""
    lines = record.scored or [_unscored(each) for each in record.partition]
    ids = [str(line["id"]) for line in lines]
    roles = list(ROLES)[:5]
    scores = {role: [_accuracy(record, line, role) for line in lines] for role in roles}
    return {
        "id": ids,
        **{
            split: [line.get("rows", line)[split] for line in lines]
            for split in ("train", "val", "test")
        },
        **{name: [line[name] for line in lines] for name in ("classes", "depth", "gate_weight")},
        "scores": {role: column for role, column in scores.items() if set(column) != {None}},
    }


def _unscored(sizes: Facts) -> dict[str, Any]:
    rows = {split: sizes[split] for split in ("train", "val", "test")}
    nothing: dict[str, Any] = {"depth": None, "gate_weight": None, "test": {}}
    return {"id": sizes["id"], "rows": rows, "classes": sizes["classes"], **nothing}


def _accuracy(record: Record, line: Facts, role: str) -> float | None:
    """As it was written with the client; of the frozen model, as the summary has it."""
    if role in line["test"]:
        value: float | None = line["test"][role]
        return value
    summarised = (record.summary or {}).get("test", {}).get(role) or {}
    return dict(summarised.get("per_client", {})).get(str(line["id"]))


def _ids(record: Record) -> list[str]:
    return [str(line["id"]) for line in record.scored or record.partition]


def _held(record: Record, pairs: int) -> dict[str, Any]:
    """(class, rows) of every client's rows of all splits."""
    if not record.labels:
        return {"labels": None}
    held = [_all_rows(record.labels.get(client, {})) for client in _ids(record)]
    return {"labels": held if sum(map(len, held)) <= pairs else None}


def _all_rows(line: Facts) -> list[tuple[int, int]]:
    counts: dict[int, int] = {}
    for split in ("train", "val", "test"):
        for label, rows in line.get(split, ()):
            counts[label] = counts.get(label, 0) + rows
    return sorted(counts.items())


def _gates(record: Record, pairs: int) -> dict[str, Any]:
    """Test rows of every client by weight; by class (class, rows, mean weight)."""
    if not record.gates:
        return {"routed": None, "routedClasses": None}
    lines = [record.gates.get(client) for client in _ids(record)]
    by_class = [_mean_weights(line) if line else [] for line in lines]
    return {
        "routed": [_binned(line) if line else None for line in lines],
        "routedClasses": by_class if sum(map(len, by_class)) <= pairs else None,
    }


def _binned(line: Facts) -> list[int]:
    bins = [0] * BINS
    for _, at, rows in line["counts"]:
        bins[at] += rows
    return bins


def _mean_weights(line: Facts) -> list[tuple[int, int, float]]:
    rows: dict[int, int] = {}
    for label, _, count in line["counts"]:
        rows[label] = rows.get(label, 0) + count
    sums = dict(map(tuple, line["weights"]))
    return [(label, n, round(sums[label] / n, 4)) for label, n in rows.items()]


def _gate_by_class(record: Record) -> list[list[int]] | None:
    """Test rows of all clients, by class and weight."""
    if not record.gates:
        return None
    found = [[0] * BINS for _ in record.classes]
    for line in record.gates.values():
        for label, at, rows in line["counts"]:
            found[label][at] += rows
    return found


def settings(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A configuration by dotted keys."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= settings(value, f"{above}{key}.")
        else:
            found[above + key] = str(value)
    return found
