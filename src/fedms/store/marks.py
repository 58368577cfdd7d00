"""What tells a run folder from others, and its facts; without what states need."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError

CONFIG, ENVIRONMENT, SUMMARY = "config.toml", "environment.json", "summary.json"
DIVERGED = "diverged"
"""In a summary of `fedms compare`, in place of scores: why there are none."""
ADAPTED, FEDERATION = "adapted.json", "federation"
"""Only a newcomer's folder has the one; an exported model of nobody's has the other, with which
newcomers adapt (`fedms.newcomers`)."""


def is_run(path: Path) -> bool:
    """Whether a folder was made for a run."""
    return all((path / name).is_file() for name in (CONFIG, ENVIRONMENT))


def expect_run(path: Path) -> None:
    """Make sure that a folder was made for a run.

    Raises:
        UserError: if it was not.
    """
    if not is_run(path):
        made = ", but fedms adapt's" if (path / ADAPTED).is_file() else ""
        raise UserError(
            f"got {path}, which is no run folder{made}; expected one that fedms run made"
            f"{like_runs(path)}"
        )


def like_runs(path: Path) -> str:
    """Which run folder was probably meant, for the end of a message: beside it, or in `runs`."""
    places = dict.fromkeys((path.parent, Path("runs")))
    found = (mark.parent for place in places for mark in place.glob(f"*/{ENVIRONMENT}"))
    runs = {run.name: str(run) for run in found if run != path and is_run(run)}
    near = get_close_matches(path.name, runs, n=1, cutoff=0.7)
    return f"; did you mean {runs[near[0]]}?" if near else ""


def read_facts(path: Path) -> dict[str, Any]:
    """A file of facts by name.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Of a complete run, else None, as of one of a comparison that diverged.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / SUMMARY
    found = read_facts(path) if path.exists() else None
    return None if found is not None and DIVERGED in found else found
