"""What is asked of a source, and the errors all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedms.core.errors import UserError
from fedms.data.messages import nearest, reason

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""Names a split goes by, in lower case, and the name it gets."""


@dataclass(frozen=True)
class Request:
    """Which columns of a source make the table; `input` may name several joined with "+".

    Without a column of labels they are empty.
    """

    input: str = "text"
    label: str | None = "label"
    split: str | None = None
    group: str | None = None
    kind: str = "auto"


def existing(path: str | Path | None, expected: str) -> Path:
    """The path if it exists.

    Raises:
        UserError: if there is none; names the nearest things that exist beside it.
    """
    if path is None or not str(path):
        raise UserError(f"got no path; expected {expected}; try path='...'")
    found = Path(path).expanduser()
    try:
        if found.exists():
            return found
    except OSError as error:  # its name is too long, or a folder is another's
        raise unreadable(found, error, expected) from None
    parent = found.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    missing = found.relative_to(parent).parts[0]
    beside = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    raise UserError(
        f"got path {str(path)!r}, which does not exist; expected {expected}; "
        f"in {str(parent)!r} there is no {missing!r}, try {nearest(missing, beside)}"
    )


def unreadable(path: Path, error: BaseException, expected: str) -> UserError:
    """The error for a file that is there but cannot be read."""
    return UserError(
        f"got {str(path)!r}, which cannot be read ({reason(error)}); expected {expected}; "
        f"try another source or writing the file again"
    )
