"""What the shell may complete: settings, run folders, clients, methods. Nothing heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import typer

_MOST = 200
"""Names that are offered."""


def settings(incomplete: str) -> list[str]:
    """Configuration files, and `section.key=` or its values."""
    from fedms.config import choices, known_keys

    key, equals, _ = incomplete.partition("=")
    if equals:
        return _fitting((f"{key}={value}" for value in choices(key)), incomplete)
    return _fitting(_files(incomplete), incomplete) + _fitting(
        (f"{name}=" for name in known_keys()), incomplete
    )


def _files(incomplete: str) -> Iterator[str]:
    """TOML files where the word leads, and recipes."""
    folder = Path(incomplete).parent if "/" in incomplete else Path()
    for place in dict.fromkeys((folder, Path("recipes"))):
        yield from (str(path) for path in sorted(place.glob("*.toml")))


def run_folders(incomplete: str) -> list[str]:
    """Run folders below `runs/`, and where the word leads."""
    place = Path(incomplete).parent if "/" in incomplete else Path()
    found = (path.parent for p in (place, Path("runs")) for path in p.glob("*/environment.json"))
    return _fitting((str(path) for path in sorted(set(found))), incomplete)


def clients(ctx: typer.Context, incomplete: str) -> list[str]:
    """Clients of the run whose folder was given, that have a model of their own."""
    given = ctx.params.get("folder"), *ctx.args  # among these, while the option has no value yet
    places = [Path(word) / "adapters" / "clients" for word in given if word]
    own = sorted(unquote(p.name) for place in places if place.is_dir() for p in place.iterdir())
    return _fitting([*own, "new"], incomplete)


def methods(incomplete: str) -> list[str]:
    """Methods, after those that stand before a comma."""
    from fedms.config import Method

    before, comma, word = incomplete.rpartition(",")
    found = _fitting(("zeroshot", *get_args(Method)), word)
    return [f"{before}{comma}{name}" for name in found]


def _fitting(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)][:_MOST]
