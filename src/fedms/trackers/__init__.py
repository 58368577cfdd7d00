"""Trackers by their own libraries, each in a process of its own that reads what to log.

`python -m fedms.trackers NAME` reads one JSON object a line from standard input: `Opened`, then
`{"step": …, "values": …}` after every round, then `{"summary": …}`. Input that ends before is a
run that did. Libraries that set environment variables, hooks and threads do so here, far from the
program that runs fedms. Nothing here imports anything of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Opened:
    """A run that is to be tracked.

    Args:
        name: of the run.
        project: experiment, or project, to which it belongs.
        folder: where the tracker keeps its files; it is there.
        config: settings by `section.key`, JSON values.
        mlflow_uri, wandb_mode, trackio_space: as in `[tracking]`.
    """

    name: str
    project: str
    folder: str
    config: Mapping[str, Any]
    mlflow_uri: str | None
    wandb_mode: str
    trackio_space: str | None


class Tracker(Protocol):
    """What a library is used for."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Measures of a round, from 1."""
        ...

    def finish(self, summary: Mapping[str, float], *, complete: bool) -> None:
        """The end, with the final numbers; everything is written when this returns."""
        ...
