"""Models that a run left, put to use: what they say of new rows, and how good they are.

A run folder has all clients' models; a folder of a site's run (`SITE/state/RUN`) has its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedms import build, data
from fedms.config import Config
from fedms.core.algorithm import Score
from fedms.core.errors import UserError, did_you_mean
from fedms.core.rows import Rows
from fedms.core.shelf import Shelf
from fedms.models import Common, Opinions, SavedModel, predict_together
from fedms.reopened import run_config
from fedms.store.files import names_in, safe_name
from fedms.store.marks import like_runs

NEW = "new"
"""Somebody who took no part: the global expert, and what all clients share."""
_CHUNK = 256
"""Rows that are held at a time."""
_ROOM = 1 << 30
_APIECE = 1 << 14
"""Bytes of a client's model beside its tensors."""


@dataclass(frozen=True)
class Said:
    """What a client's model says of one example.

    Args:
        label: the likeliest class.
        probability: of it.
        gate_weight: on the global expert; None where there is no gate.
        experts: label and probability of the `global` and the `local` expert alone, of a mixture.
        probabilities: of all classes, by name, in the order of the federation's classes.
    """

    label: str
    probability: float
    gate_weight: float | None
    experts: dict[str, tuple[str, float]]
    probabilities: dict[str, float]

    def likeliest(self, count: int) -> dict[str, float]:
        """So many of the probabilities, the highest first."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return dict(ranked[:count])


class Models:
    """All models of a run, over one resident foundation model.

    Args:
        folder: of the run, or of a site's run.
        device: as `runtime.device`; None: as the run's configuration says.
        room: bytes of clients' models that are kept in memory.

    Raises:
        UserError: if there is no run that left models, or no such device.
    """

    def __init__(self, folder: Path, *, device: str | None = None, room: int = _ROOM) -> None:
        self.folder, self.adapters = folder, folder / "adapters"
        if not (folder / "config.toml").is_file() or not (self.adapters / "head.json").is_file():
            raise UserError(
                f"got {folder}, in which there are no models of a run; expected a run folder, or "
                "SITE/state/RUN; a run that ended early has none: try fedms resume"
                f"{like_runs(folder)}"
            )
        self.config = _without_cache(run_config(folder / "config.toml"))
        self.classes = tuple(_read(self.adapters / "head.json")["classes"])
        device = device or self.config.runtime.device
        self.learner, _ = build.make_learner(self.config, None, self.classes, device=device)
        self.common = Common.load(self.learner, self.adapters)
        self._models = Shelf[str, SavedModel](self._load, lambda m: m.bytes + _APIECE, room)

    @property
    def takes(self) -> data.Kind:
        """`text` or `image`."""
        return self.learner.backbone.takes

    @property
    def clients(self) -> list[str]:
        """Who has a model of its own here."""
        return names_in(self.adapters / "clients")

    def only(self) -> str:
        """The one client that has a model here.

        Raises:
            UserError: if there are several, or none.
        """
        known = self.clients
        if len(known) != 1:
            raise UserError(f"got no client (--client); expected one of {self._known()}")
        return known[0]

    def model(self, client: str) -> SavedModel:
        """A client's, or for `new` that of somebody who took no part.

        Raises:
            UserError: if there is none.
        """
        if not self.has(client):
            hint = did_you_mean(client, self.clients)
            if client == NEW:
                hint = f"; with {self.config.method} clients share no expert"
            raise UserError(f"got client {client!r}; expected one of {self._known()}{hint}")
        return self._models(client if self._own(client).is_dir() else NEW)

    def _load(self, client: str) -> SavedModel:
        own = self._own(client)
        return SavedModel.load(self.common, own if own.is_dir() else None)

    def has(self, client: str) -> bool:
        """Whether there is a model for somebody; where nobody has one, all have the shared one."""
        if self._own(client).is_dir():
            return True
        return self.common.expert is not None and (client == NEW or not self.clients)

    def _known(self) -> str:
        """Some of those who have a model, for a message."""
        return f"{_some(self.clients)}{f', or {NEW}' if self.has(NEW) else ''}"

    def _own(self, client: str) -> Path:
        return self.adapters / "clients" / safe_name(client)

    def predict(self, table: data.Table, client: str) -> Iterator[Said]:
        """What a client's model says of each example, as it goes along.

        Raises:
            UserError: if there is no such client, or an example cannot be read.
        """
        model = self.model(client)
        for rows in self._rows(table):
            (said,) = predict_together([(model, rows)])
            yield from self._said(said)

    def together(self, parts: Sequence[tuple[SavedModel, Rows]]) -> list[list[Said]]:
        """What some of its models say of some rows, in one pass over the foundation model."""
        return [list(self._said(found)) for found in predict_together(parts)]

    def score(self, rows: Rows, client: str) -> dict[str, Score]:
        """Of a client's model as `personal`, and where it has both, of its experts."""
        model, total = self.model(client), dict[str, Score]()
        for start in range(0, len(rows), _CHUNK):
            part = rows.take(np.arange(start, min(start + _CHUNK, len(rows))))
            (said,), labels = predict_together([(model, part)]), torch.from_numpy(part.labels)
            for role, found in (
                ("personal", said.personal),
                ("global", said.shared),
                ("local", said.own),
            ):
                if found is not None:
                    weight = said.gate_weight if role == "personal" else None
                    total[role] = total.get(role, Score()) + _score(found, labels, weight)
        return total

    def labelled(self, table: data.Table) -> Rows:
        """All rows of a table, with labels.

        Raises:
            UserError: if one has a class that the federation has not.
        """
        if unknown := sorted(set(table.labels) - {*self.classes}):
            raise UserError(f"got class {unknown[0]!r}; expected one of {_some(self.classes)}")
        self._check(table)
        labels = build.class_indices(table, self.classes)
        return Rows(build.encode(self.learner.backbone, table), labels)

    def _rows(self, table: data.Table) -> Iterator[Rows]:
        self._check(table)
        for start in range(0, len(table), _CHUNK):
            yield self.encoded(table.take(np.arange(start, min(start + _CHUNK, len(table)))))

    def encoded(self, table: data.Table) -> Rows:
        """Examples as the foundation model takes them."""
        columns = build.encode(self.learner.backbone, table)
        return Rows(columns, np.zeros(len(table), np.int64))

    def _check(self, table: data.Table) -> None:
        if table.kind != self.takes:
            raise UserError(
                f"got {table.kind}s for {self.config.model.name}; expected {self.takes}s"
            )

    def _said(self, found: Opinions) -> Iterator[Said]:
        both = {"global": found.shared, "local": found.own}
        experts = {name: said.exp() for name, said in both.items() if said is not None}
        for i, row in enumerate(found.personal.exp()):
            yield Said(
                *self._best(row),
                None if found.gate_weight is None else float(found.gate_weight[i]),
                {name: self._best(said[i]) for name, said in experts.items()},
                dict(zip(self.classes, row.tolist(), strict=True)),
            )

    def _best(self, probabilities: torch.Tensor) -> tuple[str, float]:
        value, index = probabilities.max(0)
        return self.classes[int(index)], float(value)


def with_rows(path: Path, words: Sequence[str]) -> Config:
    """A run's configuration with other rows than its own.

    Args:
        path: of the file.
        words: settings, among them those of the rows.

    Raises:
        UserError: if they do not say what the rows are.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "data.source" not in given and (source := _source(given.get("data.path", ""))):
        words = [*words, f"data.source={source}"]
    config = run_config(path, words)
    if config.data.source in ("digits", "memory") and config.data.path is not None:
        raise UserError(
            f"got data.path={config.data.path} for a run with data.source = "
            f'"{config.data.source}"; expected both; try data.source=folder'
        )
    return config


def _source(path: str) -> str | None:
    """By how a file's name ends."""
    ends = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv"}
    return next((source for end, source in ends.items() if path.endswith(end)), None)


def _score(found: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> Score:
    chosen = found.gather(1, labels[:, None])
    return Score(
        int((found.argmax(1) == labels).sum()),
        len(labels),
        -float(chosen.sum()),
        0.0 if weight is None else float(weight.sum()),
    )


def _without_cache(config: Config) -> Config:
    """Rows are seen once: nothing of them is kept."""
    none = {"cache_bytes": "0B", "cache_disk_bytes": "0B"}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=none)})


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None
    return found


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "nobody"
