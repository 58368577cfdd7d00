"""Trackio: an SQLite file in the run folder, or a Hugging Face Space."""

from __future__ import annotations

from collections.abc import Mapping

import trackio

from fedms.trackers import Opened


class Trackio:
    """Metrics a round."""

    def __init__(self, run: Opened) -> None:
        self._step = 0
        self._run = trackio.init(
            project=run.project,
            name=run.name,
            space_id=run.trackio_space,
            config=dict(run.config),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], *, complete: bool) -> None:
        final = {f"summary.{name}": value for name, value in summary.items()}
        self._run.log({**final, "complete": float(complete)}, step=self._step)
        trackio.finish()


opened = Trackio
