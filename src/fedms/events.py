"""What happens in a run, as those who watch it are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.build import Experiment
from fedms.runtimes.rounds import RoundRecord


@dataclass(frozen=True)
class Started:
    """Data are dealt and the model is loaded; training begins."""

    experiment: Experiment
    folder: Path
    rounds: int


@dataclass(frozen=True)
class RoundBegins:
    """A round, from 0, is next."""

    round: int


@dataclass(frozen=True)
class RoundDone:
    """A round is complete. `seconds` are since the run began, or went on.

    `seconds_left` extrapolates what rounds took since then.
    """

    record: RoundRecord
    blocks: int
    rounds: int
    sent_bytes: int
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """Models were scored after `round` rounds: mean test accuracy over clients by role."""

    round: int
    test: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """After `round` rounds there is a checkpoint, from which the run could go on."""

    round: int


@dataclass(frozen=True)
class Warned:
    """Something failed that the run can do without."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is complete and its folder written, or it was stopped, after a checkpoint.

    `problem` says why it has no report.
    """

    summary: Mapping[str, Any]
    folder: Path
    problem: str = ""


Event = Started | RoundBegins | RoundDone | Evaluated | Saved | Warned | Finished
