"""What a run left, from Python: scores, tables, models, and models for newcomers."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from html import escape
from pathlib import Path
from typing import Any

from fedms import measures
from fedms.api.clients import parts_of
from fedms.api.kept import Kept
from fedms.core.errors import UserError
from fedms.newcomers import adapt, expect_name
from fedms.runtimes.rounds import read_record
from fedms.store.files import read_lines, whole_folder, write_text
from fedms.store.marks import ADAPTED, read_facts
from fedms.store.run_folder import FOUNDATION, RunFolder


class Result(Kept):
    """The models and records of a run folder, read when they are asked for.

    Args:
        folder: of a run: what `FedMS.fit` made, or `fedms run`.
        summary: of the run, if it was stopped; None: as its folder has it.

    Raises:
        UserError: if there is no run folder.
    """

    def __init__(self, folder: str | Path, summary: dict[str, Any] | None = None) -> None:
        super().__init__(Path(folder))
        self._run, self._summary = RunFolder.open(self.folder), summary

    @property
    def run_folder(self) -> Path:
        """Of a run without `out`, it is there as long as this object, or the FedMS that made it."""
        return self.folder

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

    def adapt(
        self,
        client: str,
        dataset: Any,
        *,
        input: str | None = None,
        label: str | None = None,
        rounds: int | None = None,
        to: str | Path | None = None,
        force: bool = False,
    ) -> Newcomer:
        """A model for somebody who took no part, of its own rows, as `fedms adapt` makes it.

        Args:
            client: its name.
            dataset: a `Dataset`, or a `DatasetDict` of splits, which are kept; without test or
                validation rows some are split off its training rows.
            input: column with the text or image; None: as in the run.
            label: column with the class; None: likewise.
            rounds: how many it trains for; None: `partition.unseen_rounds`; 0: it trains nothing.
            to: the folder that is made; None: a temporary one, as long as the result is there.
            force: replace what was adapted there before.

        Raises:
            UserError: if the run is not complete, or rows or method do not fit.
        """
        parts, _ = parts_of({expect_name(str(client)): dataset}, None, dealt=False)
        named = {"input": input, "label": label}
        words = ["data.source=memory", "data.path="]
        words += [f"data.{n}={json.dumps(name)}" for n, name in named.items() if name is not None]
        wanted: dict[str, Any] = {"client": str(client), "rounds": rounds, "parts": parts}
        if to is not None:
            adapt(self.folder, Path(to), words, force=force, **wanted)
            return Newcomer(to)
        temporary = Path(tempfile.mkdtemp(prefix="fedms-"))
        try:
            adapt(self.folder, temporary / "newcomer", words, **wanted)
            found = Newcomer(temporary / "newcomer")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        weakref.finalize(found, shutil.rmtree, temporary, ignore_errors=True)
        return found

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


class Newcomer(Kept):
    """The models of somebody who took no part in a run, and adapted: of `Result.adapt`.

    Args:
        folder: that `fedms adapt` made.

    Raises:
        UserError: if it is none.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(Path(folder))
        self.adapted = read_facts(self.folder / ADAPTED)
        """Rows, rounds, and scores by split and role `before` and `after`, as `adapted.json`."""

    @property
    def client(self) -> str:
        """Its name, by which it is asked."""
        return str(self.adapted["client"])

    def export(self, to: str | Path, client: str | None = None, **options: Any) -> list[Path]:
        """As `Result.export`, of its own model."""
        return super().export(to, self.client if client is None else client, **options)
