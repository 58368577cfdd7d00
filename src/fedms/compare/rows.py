"""What is said of methods at equal steps, for other programs: as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedms.compare.runs import Result
from fedms.compare.scores import Spread, ahead_in, by_method, versus
from fedms.compare.variants import VARIANTS

OURS = "fedms"
_SCORES = ("mean", "weighted", "worst_decile", "std", "loss")
"""Of personal models."""
COSTS: Mapping[str, Callable[[Result], float]] = {
    "MB sent": lambda r: (r.cost["upload_bytes"] + r.cost["download_bytes"]) / 1e6,
    "TFLOPs": lambda r: r.cost["train_flops"] / 1e12,
    "train s": lambda r: r.cost["train_seconds"],
    "activations MB": lambda r: r.cost["peak_activation_bytes"] / 1e6,
    "cache MB a client": lambda r: r.cost["cache_bytes"] / len(r.test["per_client"]) / 1e6,
}
"""Of a run; activations are of the client with most, what the prefix cache keeps is a mean."""


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """All that is said at equal steps, as JSON values: of every method, and of every run.

    `methods`: means over seeds, each with half of its 95 % interval, the tests against FedMS, and
    mean costs (none of zero-shot and FedMS' single experts, which are read from FedMS' runs).
    `runs`: one object a method and seed, with the scores of every client.
    """
    methods = by_method(results)
    ours = methods.get(OURS)
    return {
        "methods": [_of_method(name, found, ours) for name, found in methods.items()],
        "runs": _runs(results),
    }


def _of_method(name: str, found: Sequence[Result], ours: Sequence[Result] | None) -> dict[str, Any]:
    variant, first = VARIANTS[name], found[0]
    beside = versus(ours, found) if ours and name != OURS else None
    worst = ahead_in("worst_decile", ours, found) if ours and name != OURS else None
    costs = {key: statistics.fmean(map(cost, found)) for key, cost in COSTS.items()}
    return {
        "method": name,
        "title": variant.title,
        "group": variant.group,
        "bound": variant.bound or None,
        "seeds": [result.seed for result in found],
        "learning_rate": first.rate,
        "learning_rate_at_edge": first.edge,
        "choice": first.choice or None,
        "test": {key: asdict(Spread.of([result.test[key] for result in found])) for key in _SCORES},
        "fedms_is_ahead_by": asdict(beside) if beside else None,
        "fedms_is_ahead_in_the_worst_decile_by": asdict(worst) if worst else None,
        "cost": None if variant.run else {key.replace(" ", "_"): c for key, c in costs.items()},
    }


def _runs(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {
            "method": result.method,
            "title": VARIANTS[result.method].title,
            "group": VARIANTS[result.method].group,
            "bound": VARIANTS[result.method].bound or None,
            "seed": result.seed,
            "learning_rate": result.rate,
            "learning_rate_at_edge": result.edge,
            "choice": result.choice or None,
            "folder": str(result.folder),
            "role": VARIANTS[result.method].role,
            "test": {
                "personal": result.test,
                "global": result.record.summary["test"].get("global"),
                "unseen": result.unseen,
                "unseen_adapted": result.unseen_adapted,
            },
            "validation": {"personal": result.validation},
            "cost": result.cost,
        }
        for result in results
    ]


def as_csv(results: Sequence[Result]) -> str:
    """The runs as CSV: without clients, and of personal models and newcomers alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = [name.replace(" ", "_") for name in COSTS]
    head = ["method", "group", "bound", "seed", "learning_rate", "learning_rate_at_edge", "choice"]
    others = ("unseen", "unseen_adapted")
    writer.writerow([*head, *_SCORES, *others, *costs])
    for result in results:
        scores = [result.test[name] for name in _SCORES]
        spent = [cost(result) for cost in COSTS.values()]
        variant = VARIANTS[result.method]
        what = (result.method, variant.group, variant.bound, result.seed)
        chosen = (result.rate, result.edge, result.choice)
        unseen = [found and found["mean"] for found in (result.unseen, result.unseen_adapted)]
        writer.writerow([*what, *chosen, *scores, *unseen, *spent])
    return text.getvalue()
