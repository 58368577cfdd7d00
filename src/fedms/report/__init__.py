"""`report.html`: what a run came to, or several side by side, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedms.core.errors import UserError
from fedms.report.page import page
from fedms.report.records import read
from fedms.store.files import write_text

__all__ = ["NAME", "write"]

NAME = "report.html"


def write(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a report, and say where it is.

    Args:
        folders: of runs, one or more.
        out: the file; None: `report.html` in the only run's folder, or here of several.

    Raises:
        UserError: if a folder is no run's or has records that cannot be read, or the report cannot
            be written.
    """
    path = out or (folders[0] / NAME if len(folders) == 1 else Path(NAME))
    records = [read(folder) for folder in folders]
    try:
        text = page(records)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"got records of {', '.join(map(str, folders))} that are not as fedms writes them: "
            f"{type(error).__name__} {error}"
        ) from error
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"got report {path}, which cannot be written: {error}") from None
    return path
