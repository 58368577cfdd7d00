"""What is measured of a round and of a run, as flat numbers: for tables, plots and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedms.runtimes.rounds import RoundRecord

SUMMED = ("upload_bytes", "download_bytes", "train_flops", "train_seconds", "wall_seconds")
_KINDS = ("mean", "worst_decile", "weighted")


def of_round(record: RoundRecord) -> dict[str, float]:
    """By name; what was not measured is missing."""
    found = {
        "stage": record.stage,
        "depth": record.depth,
        "validation_accuracy": record.validation,
        "clients": len(record.cohort),
        "rejected": len(record.rejected),
        "upload_bytes": record.upload_bytes,
        "download_bytes": record.download_bytes,
        "train_flops": record.costs.flops,
        "train_seconds": record.seconds,
    }
    return {name: value for name, value in found.items() if value is not None}


def of_scores(test: Mapping[str, float]) -> dict[str, float]:
    """Of mean test accuracies by role."""
    return {f"test_accuracy_{role}": value for role, value in test.items()}


def of_summary(summary: Mapping[str, Any]) -> dict[str, float]:
    """Test accuracies by role, and costs."""
    scores = {
        f"test_accuracy_{role}_{kind}": found[kind]
        for role, found in summary["test"].items()
        if found
        for kind in _KINDS
    }
    costs = {name: summary["cost"][name] for name in SUMMED}
    found = {"rounds": summary["rounds"], **scores, **costs}
    return {name: value for name, value in found.items() if value is not None}
