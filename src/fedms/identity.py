"""What a run's numbers depend on beside its configuration and the code: data, weights, machine."""

from __future__ import annotations

from pathlib import Path

from fedms.config import Config
from fedms.core.errors import UserError
from fedms.data import Table
from fedms.machine import computes
from fedms.models import look_up
from fedms.store.files import digest

_WEIGHTS = (".safetensors", ".json", ".txt", ".model")
"""Endings of the files by which a model is loaded."""


def identity(config: Config, table: Table | None = None) -> dict[str, str]:
    """Of the run of a configuration, here and now, as JSON values.

    Settings of `[tracking]` are no part of it. Rows that are given in memory are known by `table`.

    Data and weights in files are known by their contents; a model of the hub by its commit, and a
    data set of the hub, and the digits, by name alone.

    Raises:
        UserError: if a file cannot be read, or the model cannot be found.
    """
    model, data = look_up(config.model.name), Path(config.data.path or "").expanduser()
    facts = computes(config, model.width, workers=1)
    commit = getattr(model.config, "_commit_hash", None)
    by_name = config.data.path is None or not data.exists()
    try:
        return {
            "data": _data(config, table) if by_name else digest(data),
            "weights": str(commit) if commit else digest(Path(model.folder), _WEIGHTS),
            "device": facts["device"].split(":")[0],
            "precision": facts["precision"],
        }
    except OSError as error:
        raise UserError(f"got data or model files that cannot be read: {error}") from error


def _data(config: Config, table: Table | None) -> str:
    return table.fingerprint() if table is not None else config.data.path or config.data.source
