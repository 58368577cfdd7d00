"""Files that are whole or not there: written aside, flushed, renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fedms.core.errors import UserError

try:
    import fcntl
except ImportError:  # no Unix: there are no locks
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 200
_WHOSE = "client.json"
"""In a folder whose name was cut."""
_ASIDE = ".aside"
"""How names end of what is being written."""
UNWRITABLE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
)
"""Numbers of errors of a disk that is full, or may not or cannot be written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder if needed. On any error nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path)
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _beside(path: Path) -> Path:
    """A new name for what will be at `path`. What is made there has the rights of the umask."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_ASIDE}")


def flush(folder: Path) -> None:
    """Have all that is in a folder on disk, whoever wrote it."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    """A file's content, or which names are in a folder: after a power failure they are there."""
    if os.name != "posix":  # there folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are not JSON and are refused with a ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json(path: Path, value: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file, in one write; after one that was cut short, a new line."""
    line = _line(value)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Of a JSON-lines file those that are whole; none where there is no file."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file atomically, as `append_json` writes its lines."""
    write_text(path, "".join(_line(value) for value in values))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; it is free again when the process ends, however that ends.

    Raises:
        BlockingIOError: if another process holds it.
    """
    with path.open("rb") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, put in the place of `path` when it is complete.

    On an error `path` is as it was and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path)
    aside.mkdir()
    try:
        yield aside
        _put_in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def own_folder(path: Path, mark: str, made_by: str, *, force: bool) -> Iterator[Path]:
    """As `whole_folder`, of a command that replaces nothing but what it made itself.

    Args:
        path: where, as `--to` gave it.
        mark: a file that only folders of this command have.
        made_by: the command.
        force: replace what it made there before.

    Raises:
        UserError: if something else is there, before or meanwhile, or nothing can be written.
    """
    path = path.resolve()
    _expect_free(path, mark, made_by, force=force)
    begun = False
    try:
        with whole_folder(path) as folder:
            begun = True
            yield folder
            _expect_free(path, mark, made_by, force=force)
    except OSError as error:
        if begun and error.errno not in UNWRITABLE:
            raise
        raise UserError(f"got --to {path}, which cannot be written: {error}") from error


def _expect_free(path: Path, mark: str, made_by: str, *, force: bool) -> None:
    if path == Path.cwd():
        raise UserError(f"got --to {path}, the folder that this is called in; expected another")
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not free and not (force and (path / mark).is_file()):
        raise UserError(
            f"got --to {path}, which exists; expected a new folder, or with --force one that "
            f"{made_by} made"
        )


def lies_in(place: str | Path, folder: Path) -> bool:
    """Whether something that is there is this folder or in it, so that it would go with it."""
    found = Path(place).expanduser().resolve()
    return found.exists() and found.is_relative_to(folder.resolve())


def _put_in_place(new: Path, path: Path) -> None:
    """Replace a folder by another; if that fails the old one is put back."""
    if not path.exists():
        os.replace(new, path)
        return
    old = _beside(path)
    old.mkdir()
    try:
        os.replace(path, old / "it")
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old / "it", path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def sweep(path: Path) -> None:
    """Take away what killed processes were writing below a folder. Nobody may be writing there."""
    for left in list(path.rglob(f".*{_ASIDE}")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def digest(path: Path, suffixes: tuple[str, ...] = ("",)) -> str:
    """Hash of a file, or of names and contents of all files below a folder with such endings.

    Hidden files are left out. What is as it was when it was hashed last (by size and time) is not
    read again.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    facts = []
    for file in files:
        name, stat = file.relative_to(path).as_posix(), file.stat()
        if name == "." or not any(word.startswith(".") for word in name.split("/")):
            facts.append((file, name, stat.st_size, stat.st_mtime_ns))
    return _digest(tuple(facts))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, str, int, int], ...]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for file, name, size, _ in files:
        found.update(f"{name}\n{size}\n".encode())
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                found.update(part)
    return found.hexdigest()


def safe_name(name: str) -> str:
    """A file name for any client id, unable to leave its folder; other ids have other names.

    Percent-encoded; a long one is cut and ends in a hash.
    """
    encoded = quote(name, safe=" ()+,;=@") or "%"
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _LONGEST_NAME:
        digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
        encoded = f"{encoded[: _LONGEST_NAME - 32]}%~{digest}"
    return encoded


def keep_name(folder: Path, name: str) -> None:
    """Write into a client's folder whose it is, where `safe_name` does not tell."""
    if unquote(safe_name(name)) != name:
        write_json(folder / _WHOSE, {"client": name})


def names_in(place: Path) -> list[str]:
    """Clients that have a folder at a place, in order; nobody where there is no place."""
    return sorted(map(_name_of, place.iterdir())) if place.is_dir() else []


def _name_of(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / _WHOSE).read_text(encoding="utf-8"))["client"])
    return unquote(folder.name)
