"""fedms' round loop over Flower's grid, with clients that train nothing."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from echo import Nothing, echo

from fedms.core.algorithm import Learner
from fedms.runtimes.flower.sites import Sites, serving
from fedms.runtimes.rounds import run_rounds

if TYPE_CHECKING:
    from flwr.serverapp import Grid


def main(grid: Grid, words: Mapping[str, str | int | float | bool]) -> None:
    """Rounds with two sites, and what each took."""
    algorithm = echo(float(words["size"]), int(words["rounds"]))
    sites = Sites(grid, str(words["run"]), {})
    sites.meet(2)
    state, seconds = algorithm.init(cast("Learner", Nothing()), 0), []
    began = time.monotonic()
    for _, record in run_rounds(algorithm, sites, state, held=sites.held):
        assert not record.rejected, record.rejected
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(str(words["out"])).write_text(json.dumps({"seconds": seconds, "peak": peak}))


app = serving(main)
