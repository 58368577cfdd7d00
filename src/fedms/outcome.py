"""The models that a run leaves: adapters in PEFT's layout, each folder put in place as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedms.core.algorithm import ClientState, FederatedAlgorithm, ServerState
from fedms.core.rows import ClientData, Rows
from fedms.core.tensors import part
from fedms.models import (
    FILES,
    ModelLearner,
    list_of,
    means_file,
    prior_file,
    save_expert,
    save_gate,
    statistics_file,
)
from fedms.store.files import keep_name, whole_folder, write_bytes, write_json


def _nobody() -> ClientData:
    """A client without rows."""
    none = Rows({}, np.zeros(0, np.int64))
    return ClientData("", none, none, none)


def _write(path: Path, content: bytes) -> None:
    """A file as a whole, where there is something to write."""
    if content:
        write_bytes(path, content)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Writes models.

    Args:
        algorithm, learner: of the run.
        base: name of the foundation model.
        head: what is told of its head, for later use.
    """

    algorithm: FederatedAlgorithm
    learner: ModelLearner
    base: str
    head: Mapping[str, Any]

    def save_shared(self, adapters: Path, state: ServerState) -> None:
        """What all clients have, into a folder that is made if needed."""
        write_json(adapters / "head.json", self.head)
        shared = self.algorithm.view(state, None, "global")
        if shared is not None:
            with whole_folder(adapters / "global") as folder:
                save_expert(folder, self.learner, shared.expert, self.base)
            content = statistics_file(self.learner, shared)
            _write(adapters / "statistics.safetensors", content)
        newcomer = self.algorithm.view(state, None, "personal")
        if newcomer is not None:
            _write(adapters / "prior.json", prior_file(self.learner, newcomer, _nobody()))
        gate = part("gate", state.tensors)
        if gate:
            with whole_folder(adapters / "gate") as folder:
                save_gate(folder, self.learner, gate)
        write_bytes(adapters / FILES, list_of(adapters, but="clients"))

    def save_own(
        self, path: Path, state: ServerState, own: ClientState | None, client: ClientData
    ) -> None:
        """What one client has; without a private state, what its rows say beside shared experts."""
        view = self.algorithm.view(state, own, "personal")
        said = view.statistics if view else None
        counts = view is not None and (view.calibration is not None or view.expert.prior)
        if view is None or (own is None and not counts and not (said and said.personal)):
            return
        with whole_folder(path) as folder:
            keep_name(folder, client.id)
            if own is not None:
                save_expert(folder / "local", self.learner, view.expert, self.base)
            _write(folder / "prior.json", prior_file(self.learner, view, client))
            _write(folder / "means.safetensors", means_file(self.learner, view, client))
            if view.gate is not None:
                save_gate(folder / "gate", self.learner, view.gate)
            write_bytes(folder / FILES, list_of(folder))
