"""What a run will cost, before it is performed: bytes, FLOPs, memory, disk, time.

The run is rehearsed: its own code plans rounds, draws cohorts, sends, stores, looks up the cache
and writes a folder (a temporary one), while passes through the model are charged at prices measured
on a few rows (`models.rehearsal`). What validation will decide is not known: where it decides when
depth grows, the run is rehearsed twice, never growing and growing as soon as it may.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedms.build import Experiment, build, make_algorithm
from fedms.config import Config, untracked
from fedms.core.algorithm import Expert, Fit, View
from fedms.core.rows import ClientData, Rows
from fedms.core.tensors import wire_bytes
from fedms.models import Rehearsal, Room, Tariff, Trainee
from fedms.run import rehearse
from fedms.runtimes.workers import on_threads
from fedms.store.files import read_lines

FIGURES = (
    "upload_bytes",
    "download_bytes",
    "train_flops",
    "peak_activation_bytes",
    "cache_bytes",
    "trainable_parameters",
)
"""Of `summary.json`, that a rehearsal tells."""


@dataclass(frozen=True)
class _Rehearsed:
    """One rehearsal: figures by name, the greatest depth of its rounds, whether that was another
    than the first, and whether the prefix cache had no room for something.
    """

    figures: Mapping[str, float]
    deepest: int
    grew: bool
    cache_full: bool


def estimate(config: Config, seconds: float = 10.0) -> dict[str, Any]:
    """What a run of this configuration will cost, as JSON values.

    Workers and stacks are left out of account: figures are those of one process that trains one
    client after another. No tracker is told of a rehearsal.

    Args:
        config: of the run.
        seconds: for measuring time; other passes are measured by few rows, whatever that takes.

    Returns:
        `least` and `most`: figures of the run, equal (`exact`) where validation decides nothing;
        `depths`: an expert's costs at each depth; and what is known of clients and model.

    Raises:
        UserError: if data, model and configuration do not fit together.
    """
    runtime = config.runtime.model_copy(update={"name": "simulator", "workers": 1, "stack": 1})
    config = untracked(config).model_copy(update={"runtime": runtime})
    with on_threads(runtime.threads), tempfile.TemporaryDirectory(prefix="fedms-") as folder:
        experiment = build(config, Path(folder))
        tariff = Tariff(experiment.learner, _longest(experiment), seconds)
        found = list(_rehearsals(config, experiment, tariff, Path(folder)))
        depths = list(_depths(experiment, tariff))
    ends = [one.figures for one in found]
    exact = all(end[name] == ends[0][name] for end in ends for name in FIGURES)
    ends = ends[:1] if exact else ends
    least, most = ({name: f(e[name] for e in ends) for name in ends[0]} for f in (min, max))
    model = experiment.learner.backbone.model
    return {
        "method": config.method,
        "clients": len(experiment.trained),
        "rounds": experiment.algorithm.rounds,
        "exact": exact,
        "least": least,
        "most": most,
        "cache_full": any(one.cache_full for one in found),
        "deepest": [min(one.deepest for one in found), max(one.deepest for one in found)],
        "depths": depths,
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        **{name: experiment.computes[name] for name in ("device", "precision", "threads")},
        "workers": config.runtime.workers,
    }


def _longest(experiment: Experiment) -> Rows:
    """Training rows with the longest one among them."""
    lengths = experiment.learner.backbone.lengths

    def longest(client: ClientData) -> int:
        known = lengths(client.train)
        return 0 if known is None else int(known.max())

    return max(experiment.trained, key=longest).train


def _rehearsals(
    config: Config, experiment: Experiment, tariff: Tariff, folder: Path
) -> Iterator[_Rehearsed]:
    """With depth that grows as soon as it may; if it did by scores, with depth that never does.

    All scores of a rehearsal are alike, so that no gain is below 0, and every gain below 1.
    """
    fastest = _rehearsed(_growing(config, 1.0), experiment, tariff, folder / "most")
    yield fastest
    if config.sal.trigger == "queue" and fastest.grew:
        yield _rehearsed(_growing(config, 0.0), experiment, tariff, folder / "least")


def _growing(config: Config, epsilon: float) -> Config:
    return config.model_copy(update={"sal": config.sal.model_copy(update={"epsilon": epsilon})})


def _rehearsed(config: Config, experiment: Experiment, tariff: Tariff, path: Path) -> _Rehearsed:
    learner = Rehearsal(experiment.learner, _room(experiment), tariff)
    algorithm = make_algorithm(config, learner.layout)
    experiment = replace(experiment, learner=learner, algorithm=algorithm)
    began, measured = time.perf_counter(), tariff.measuring
    summary = rehearse(config, experiment, path)
    around = time.perf_counter() - began - (tariff.measuring - measured)
    phases = tariff.seconds()
    rounds = read_lines(path / "rounds.jsonl")
    depths = [depth for line in rounds for depth in line["client_depths"] if line["stage"]]
    figures = {name: summary["cost"][name] for name in FIGURES}
    for name in ("upload_bytes", "download_bytes"):
        figures[f"{name}_per_client"] = figures[name] / len(experiment.trained)
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    figures["run_folder_bytes"] = written
    figures["cache_disk_bytes"] = learner.prefixes.disk_bytes
    figures["seconds"] = sum(phases.values()) + around
    grew = len(set(depths)) > 1
    return _Rehearsed(figures, max(depths, default=0), grew, learner.prefixes.full)


def _room(experiment: Experiment) -> Room:
    return experiment.learner.prefixes.room


def _depths(experiment: Experiment, tariff: Tariff) -> Iterator[dict[str, int]]:
    """An expert's costs when its last blocks are trained, at each depth.

    Bytes are those of its adapters, sent once; a step has a whole batch of the longest rows.
    """
    layout, clients = experiment.learner.layout, experiment.trained
    largest = max(clients, key=lambda client: len(client.train))
    rows = min(experiment.learner.training.batch_size, len(largest.train))
    lengths = experiment.learner.backbone.lengths(_longest(experiment))
    tokens = 1 if lengths is None else int(lengths.max())
    for depth in range(1, len(layout.blocks) + 1):
        names = layout.expert(depth)
        expert = Expert(experiment.learner.initial_expert(names, 0))
        learner = Rehearsal(experiment.learner, _room(experiment), tariff)
        for client in (*(c for c in clients if c is not largest), largest):
            one = Trainee(learner, Fit(View(expert), names, client, 1, 0))  # fills the cache
        step = learner.step(one, rows, tokens)
        yield {
            "depth": depth,
            "parameters": layout.size(names),
            "upload_bytes": wire_bytes(expert.tensors),
            "step_flops": step.flops,
            "activation_bytes": step.peak_activation_bytes,
            "cache_bytes": learner.prefixes.bytes,
        }
