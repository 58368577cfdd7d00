"""Models in a folder, from Python: predictions, and plain PEFT models."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedms.core.errors import UserError
from fedms.data import Table
from fedms.export import export
from fedms.models import peft_model
from fedms.reopened import run_config
from fedms.store.files import safe_name
from fedms.store.marks import CONFIG
from fedms.use import NEW, Models, Said


class Kept:
    """Models that a run left, or somebody who adapted to one, read when they are asked for.

    Args:
        folder: with `config.toml` and `adapters`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @property
    def _adapters(self) -> Path:
        return self.folder / "adapters"

    @cached_property
    def _models(self) -> Models:
        return Models(self.folder)

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
        return self._peft(self._adapters / "global")

    def local_expert(self, client: str) -> Any:
        """Likewise of a client's local expert."""
        return self._peft(self._adapters / "clients" / safe_name(str(client)) / "local")

    def _peft(self, adapters: Path) -> Any:
        return peft_model(run_config(self.folder / CONFIG).model.name, adapters)

    def export(self, to: str | Path, client: str = NEW, **options: Any) -> list[Path]:
        """A client's PEFT adapters with a model card, as `fedms export`; see `fedms.export`.

        Args:
            to: the folder that is made.
            client: whose; `"new"`: of somebody who took no part.
            options: of `fedms.export.export`.
        """
        return export(self.folder, Path(to), str(client), **options)
