"""What a program gives a run beside its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedms.data import Table


@dataclass(frozen=True, eq=False)
class Given:
    """Everything may be left out.

    Args:
        table: the rows, in place of those that `[data]` describes.
        foundation: a folder with the foundation model, by which the configuration names it; it is
            moved into the run folder.
        stop: is asked after every round whether to end now, with scores, models and a checkpoint.
    """

    table: Table | None = None
    foundation: Path | None = None
    stop: Callable[[], bool] = lambda: False


NOTHING = Given()
