"""MLflow: an SQLite file in the run folder, or a server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from fedms.trackers import Opened

_LONGEST = 6000
"""Characters of a parameter's value, the most that MLflow's stores take."""


class MLflow:
    """Metrics a round, parameters for the configuration."""

    def __init__(self, run: Opened) -> None:
        place = Path(run.folder).resolve()
        self._client = MlflowClient(run.mlflow_uri or f"sqlite:///{place / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(run.project)
        if found is None:
            artifacts = None if run.mlflow_uri else (place / "artifacts").as_uri()
            number = self._client.create_experiment(run.project, artifact_location=artifacts)
        else:
            number = found.experiment_id
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        config = {key: json.dumps(value)[:_LONGEST] for key, value in run.config.items()}
        self._client.log_batch(self._run, params=[Param(*item) for item in config.items()])
        self._step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step, now = step, int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, summary: Mapping[str, float], *, complete: bool) -> None:
        self.log(self._step, {f"summary.{name}": value for name, value in summary.items()})
        self._client.set_terminated(self._run, "FINISHED" if complete else "KILLED")


opened = MLflow
