"""What a run's numbers depend on beside its configuration and the code: data, weights, machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    model = look_up(config.model.name)
    facts = computes(config, model.width, workers=1)
    try:
        weights = model.commit or digest(Path(model.folder), _WEIGHTS)
    except OSError as error:
        raise UserError(f"got model files that cannot be read: {error}") from error
    return {
        "data": data_now(config, table),
        "weights": weights,
        "device": facts["device"].split(":")[0],
        "precision": facts["precision"],
    }


def expect_same(
    config: Config, facts: Mapping[str, Any], path: Path, now: Mapping[str, str]
) -> None:
    """Make sure that what a run was made of is as it was.

    Args:
        config: of the run.
        facts: from its `environment.json`.
        path: of its folder.
        now: of what is compared, as `identity` says it.

    Raises:
        UserError: naming what is another now.
    """
    for name, then in dict(facts.get("identity", {})).items():
        if name not in now or now[name] == then:
            continue
        if name == "data" and now[name] == config.data.path:
            raise UserError(
                f"got {path}, whose data were read from {config.data.path}, which is not there "
                f"from here ({Path.cwd()}); try where the run began"
            )
        if name in ("data", "weights"):
            raise UserError(
                f"got {path}, whose {name} ({_where(config, name)}) are other ones now; expected "
                "those that it was made of"
            )
        raise UserError(
            f"got {path}, whose {name} was {then} and is {now[name]} now; expected {then}"
        )


def _where(config: Config, name: str) -> str:
    return str(config.data.path or config.data.source) if name == "data" else config.model.name


def data_now(config: Config, table: Table | None = None) -> str:
    """The part of `identity` that is about rows: in files, or in memory.

    Raises:
        UserError: if they cannot be read.
    """
    if table is not None:
        return table.fingerprint()
    data = Path(config.data.path or "").expanduser()
    if config.data.path is None or not data.exists():
        return config.data.path or config.data.source
    try:
        return digest(data)
    except OSError as error:
        raise UserError(f"got data files that cannot be read: {error}") from error
