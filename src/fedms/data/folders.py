"""Sources without columns: a folder per class, and the digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedms.core.errors import UserError
from fedms.data.messages import listing
from fedms.data.request import SPLITS, Request, existing, unreadable
from fedms.data.table import Kind, Table

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def read_digits(want: Request) -> Table:
    """The 1,797 handwritten digits of scikit-learn: 8x8, white on black, classes "0" to "9"."""
    from sklearn.datasets import load_digits

    _refuse_columns("digits", want)
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Table("image", list(pixels), [str(label) for label in labels])


def read_folder(path: str | Path | None, want: Request) -> Table:
    """One sub-folder per class, its .txt or image files at any depth.

    If all top folders are named as splits (train, val, test), the classes are inside of those.
    Hidden files and folders are left out.
    """
    root = existing(path, "a folder with one sub-folder per class")
    _refuse_columns("folder", want)
    splits = _splits(root)
    parents = {folder.name: folder for folder in splits} if splits else {"": root}
    rows = [
        (file, folder.name, split)
        for split, parent in parents.items()
        for folder in _subfolders(parent)
        for file in _examples(folder)
    ]
    files = [file for file, _, _ in rows]
    kind = _folder_kind(files, want.kind, root)
    return Table(
        kind=kind,
        inputs=files if kind == "image" else [_read_text(file) for file in files],
        labels=[label.strip() for _, label, _ in rows],
        split=[split for _, _, split in rows] if splits else None,
        origins=[str(file) for file in files],
        numbers=[0] * len(files),
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(
            f"got {str(folder)!r}, a file; expected a folder with one sub-folder per class; "
            f"try data.source=csv or parquet"
        )
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_litter(p.name))


def _examples(folder: Path) -> list[Path]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p for p in files if not any(map(_is_litter, p.relative_to(folder).parts))]


def _is_litter(name: str) -> bool:
    """Of a file or folder that is hidden, or that a system puts everywhere."""
    return name.startswith(".") or name.lower() in _LITTER


def _splits(root: Path) -> list[Path]:
    """The top folders if they are named as splits, but for those without examples; else none.

    Raises:
        UserError: if only some are. A class may be called train: then its files are right in it.
    """
    top = _subfolders(root)
    named = [folder for folder in top if folder.name.lower() in SPLITS]
    if not named:
        return []
    others = [folder for folder in top if folder not in named and _examples(folder)]
    if not others:
        return named
    if any(_examples(inner) for folder in named for inner in _subfolders(folder)):
        raise UserError(
            f"got folders {listing(folder.name for folder in (*named, *others))} in {str(root)!r}, "
            f"of which only some name a split; expected all or none; try moving the others away"
        )
    return []


def _folder_kind(files: Sequence[Path], asked: str, root: Path) -> Kind:
    kinds: dict[Kind, Path] = {}
    for file in files:
        suffix = file.suffix.lower()
        if suffix not in IMAGES and suffix != ".txt":
            raise UserError(
                f"got file {str(file)!r}; expected .txt or {' '.join(sorted(IMAGES))}; "
                f"try converting it or moving it away"
            )
        kinds.setdefault("text" if suffix == ".txt" else "image", file)
    if len(kinds) > 1 or (kinds and asked not in ("auto", *kinds)):
        found = listing(str(file.relative_to(root)) for file in kinds.values())
        raise UserError(
            f"got files such as {found} with kind={asked!r}; expected only text files or only "
            f"images; try moving the others away"
        )
    return next(iter(kinds), "text")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "a text file in UTF-8") from error


def _refuse_columns(source: str, want: Request) -> None:
    for option, name in (("split", want.split), ("group", want.group)):
        if name is not None:
            raise UserError(
                f"got {option}={name!r} for source={source!r}, which has no columns; expected "
                f"none; try data.source=csv or parquet, or leaving it out"
            )
