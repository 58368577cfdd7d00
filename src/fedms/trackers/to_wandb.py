"""Weights & Biases: a folder that `wandb sync` sends later, or online."""

from __future__ import annotations

from collections.abc import Mapping

import wandb

from fedms.trackers import Opened


class Wandb:
    """Metrics a round, and the library's own configuration and summary."""

    def __init__(self, run: Opened) -> None:
        quiet = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            host="",  # which is part of a run's record, whatever becomes of the rest
            x_disable_meta=True,  # command line, user
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            dir=run.folder,
            mode="online" if run.wandb_mode == "online" else "offline",
            config=dict(run.config),
            settings=quiet,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], *, complete: bool) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if complete else 1)


opened = Wandb
