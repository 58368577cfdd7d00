"""What a run left, from Python: scores, tables, predictions, and plain PEFT models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedms import measures
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.data import Table
from fedms.export import export
from fedms.models import peft_model
from fedms.runtimes.rounds import read_record
from fedms.store.files import read_lines, whole_folder, write_text
from fedms.store.run_folder import FOUNDATION, RunFolder
from fedms.use import NEW, Models, Said


class Result:
    """The models and records of a run folder, read when they are asked for.

    Args:
        folder: of a run: what `FedMS.fit` made, or `fedms run`.
        summary: of the run, if it was stopped; None: as its folder has it.

    Raises:
        UserError: if there is no run folder.
    """

    def __init__(self, folder: str | Path, summary: dict[str, Any] | None = None) -> None:
        self._run, self._summary = RunFolder.open(Path(folder)), summary

    def __repr__(self) -> str:
        return f"Result({str(self.run_folder)!r})"

    @property
    def run_folder(self) -> Path:
        """Of a run without `out`, it is there as long as this object, or the FedMS that made it."""
        return self._run.path

    @property
    def complete(self) -> bool:
        """Whether all rounds were performed; else `FedMS.resume` goes on."""
        return self._run.summary() is not None

    @property
    def summary(self) -> dict[str, Any]:
        """As `summary.json`: scores by split and role, and costs.

        Raises:
            UserError: if the run ended early.
        """
        found = self._summary or self._run.summary()
        if found is None:
            raise UserError(
                f"got {self.run_folder}, a run that ended early; try FedMS.resume, or fedms resume"
            )
        return found

    @property
    def rounds(self) -> list[dict[str, float]]:
        """Measures of every round, for `pandas.DataFrame`; what was not measured is missing."""
        found = []
        for line in read_lines(self.run_folder / "rounds.jsonl"):
            test = {role: scores["mean"] for role, scores in (line["test"] or {}).items()}
            of_round = measures.of_round(read_record(line))
            found.append({"round": line["round"] + 1, **of_round, **measures.of_scores(test)})
        return found

    @property
    def clients(self) -> list[dict[str, Any]]:
        """Sizes and last scores of every client that trains, for `pandas.DataFrame`."""
        last = {line["id"]: line for line in read_lines(self.run_folder / "clients.jsonl")}
        names = ("id", "classes", "depth", "gate_weight")
        return [
            {
                **{name: line[name] for name in names},
                **{f"{split}_rows": rows for split, rows in line["rows"].items()},
                **{f"test_accuracy_{role}": score for role, score in line["test"].items()},
            }
            for line in last.values()
        ]

    @cached_property
    def _models(self) -> Models:
        return Models(self.run_folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes, in the order of `predict_proba`'s columns."""
        return self._models.classes

    def predict(self, client: str, inputs: Iterable[Any]) -> list[str]:
        """The likeliest class of every text or image, by a client's own model.

        Args:
            client: its name; `"new"` for somebody who took no part.
            inputs: texts; or images, as PIL has them, arrays, or paths.

        Raises:
            UserError: if there is no such client, or the inputs are no such list.
        """
        return [said.label for said in self.opinions(client, inputs)]

    def predict_proba(self, client: str, inputs: Iterable[Any]) -> NDArray[np.float64]:
        """Likewise the probabilities of all classes, `(inputs, classes)`."""
        rows = [[*said.probabilities.values()] for said in self.opinions(client, inputs)]
        return np.array(rows, np.float64).reshape(len(rows), len(self.classes))

    def opinions(self, client: str, inputs: Iterable[Any]) -> list[Said]:
        """Likewise with what both experts say, and how much the gate believes the global one."""
        if isinstance(inputs, str | bytes | Path) or not isinstance(inputs, Iterable):
            raise UserError(f"got {inputs!r} to predict; expected a list; try [{inputs!r}]")
        image = self._models.takes == "image"
        rows = [Path(x) if image and isinstance(x, str) else x for x in inputs]
        if not image and (odd := [x for x in rows if not isinstance(x, str)]):
            raise UserError(f"got a {type(odd[0]).__name__} to predict; expected texts")
        table = Table("image" if image else "text", rows, [""] * len(rows))
        return list(self._models.predict(table, str(client)))

    def global_expert(self) -> Any:
        """A `peft.PeftModel` of the foundation model (a copy of its own) and the global expert."""
        return self._peft(self._run.adapters / "global")

    def local_expert(self, client: str) -> Any:
        """Likewise of a client's local expert."""
        return self._peft(self._run.client_adapters(str(client)) / "local")

    def _peft(self, adapters: Path) -> Any:
        return peft_model(load_config(self._run.config).model.name, adapters)

    def export(self, to: str | Path, client: str = NEW, **options: Any) -> list[Path]:
        """A client's PEFT adapters with a model card, as `fedms export`; see `fedms.export`."""
        return export(self.run_folder, Path(to), str(client), **options)

    def save(self, to: str | Path) -> Result:
        """Copy the whole run folder to a new one, and return the result there.

        Raises:
            UserError: if something is in the way.
        """
        target = Path(to)
        RunFolder.check(target, force=False)
        with whole_folder(target) as folder:
            shutil.copytree(self.run_folder, folder, dirs_exist_ok=True)
            self._moved(folder, target.resolve())
        return Result(target, self._summary)

    def _moved(self, folder: Path, target: Path) -> None:
        """Where the foundation model is in the folder, it is found at the target now."""
        here = json.dumps(str(self.run_folder.resolve() / FOUNDATION), ensure_ascii=False)
        there = json.dumps(str(target / FOUNDATION), ensure_ascii=False)
        adapters = folder / self._run.adapters.name
        named = [adapters / "head.json", *adapters.rglob("adapter_config.json")]
        for file in (folder / self._run.config.name, *named):
            if file.is_file():
                write_text(file, file.read_text(encoding="utf-8").replace(here, there))

    def plot(self) -> Any:
        """A matplotlib figure of accuracy by round and by client; notebooks show it inline."""
        from fedms.api.plots import overview

        return overview(self.rounds, self.clients)

    def _repr_html_(self) -> str:
        """Mean test accuracy by role, as notebooks show it."""
        if self._summary is None and not self.complete:
            return escape(repr(self))
        roles = {role: found for role, found in self.summary["test"].items() if found}
        lines = [
            f"<tr><td>{escape(role.replace('_', ' '))}</td><td>{found['mean']:.3f}</td>"
            f"<td>{found['worst_decile']:.3f}</td></tr>"
            for role, found in roles.items()
        ]
        head = "<tr><th>test accuracy</th><th>mean</th><th>worst decile</th></tr>"
        return f"<table>{head}{''.join(lines)}</table>"
