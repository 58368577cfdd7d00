"""`report.html`: what a run came to, or several side by side, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError
from fedms.report.page import document
from fedms.report.records import ROLES, read
from fedms.store.files import write_text

__all__ = ["NAME", "ROLES", "attempt", "figures", "write"]

NAME = "report.html"
_TITLE = b"fedms</title>"
"""The end of every report's title."""


def write(folders: Sequence[Path], out: Path | None = None, *, force: bool = False) -> Path:
    """Write a report, and say where it is.

    Args:
        folders: of runs, one or more.
        out: the file; None: `report.html` in the only run's folder, or here of several.
        force: whether a file that is no report of fedms' is replaced.

    Raises:
        UserError: if a folder is no run's or has records that cannot be read, or the report cannot
            be written, or stands in the place of something else.
    """
    path = out or (folders[0] / NAME if len(folders) == 1 else Path(NAME))
    if not force and path.is_file() and not _is_report(path):
        raise UserError(
            f"got report {path}, where there is a file that is no report of fedms'; it was left "
            "alone; try another (--out), or to replace it (--force)"
        )
    records = [read(folder) for folder in folders]
    try:
        text = document(records)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"got records of {', '.join(map(str, folders))} that are not as fedms writes them: "
            f"{type(error).__name__} {error}"
        ) from error
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"got report {path}, which cannot be written: {error}") from None
    return path


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _TITLE in file.read(1 << 16)
    except OSError:
        return False


def attempt(folder: Path) -> str:
    """Write a run's report, and say why there is none, if so: a run is complete without it."""
    try:
        write([folder])
    except UserError as error:
        return str(error)
    return ""


def figures(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What reports begin with: test accuracy and costs of runs, None where it is not known.

    Raises:
        UserError: as `write`.
    """
    return [
        {
            "folder": str(record.path),
            "method": record.config["method"],
            "seed": record.config["seed"],
            "complete": record.summary is not None,
            "rounds": len(record.rounds),
            "test": {role: record.test.get(role) for role in ROLES},
            "cost": record.cost,
        }
        for record in map(read, folders)
    ]
