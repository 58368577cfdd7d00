"""What the shell may complete: settings, run folders, clients, methods. Nothing heavy is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

_MOST = 200
"""Names that are offered."""


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Configuration files, and `section.key=` or its values."""
    from fedms.config import choices, known_keys

    given = [*(ctx.params.get("words") or ()), *ctx.args]  # bash makes three words of key=value
    if given[-1:] == ["="]:
        return _fitting(choices("".join(given[-2:-1])), incomplete)
    if incomplete in ("", "=") and (values := choices("".join(given[-1:]))):
        return list(values)
    key, equals, _ = incomplete.partition("=")
    keys = [name for name in known_keys() if name.startswith(incomplete)]
    if equals or len(keys) == 1:  # shells put a space after the only word that fits
        key = key if equals else keys[0]
        if found := _fitting((f"{key}={value}" for value in choices(key)), incomplete):
            return found
    return _fitting(_files(incomplete), incomplete) + [f"{name}=" for name in keys][:_MOST]


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
    from fedms.store.files import names_in

    given = ctx.params.get("folder"), *ctx.args  # among these, while the option has no value yet
    places = [Path(word) / "adapters" / "clients" for word in given if word]
    own = sorted(name for place in places for name in names_in(place))
    return _fitting([*own, "new"], incomplete)


def methods(incomplete: str) -> list[str]:
    """Methods, after those that stand before a comma."""
    from fedms.config import Method

    before, comma, word = incomplete.rpartition(",")
    found = _fitting(("zeroshot", *get_args(Method)), word)
    return [f"{before}{comma}{name}" for name in found]


def _fitting(names: Any, incomplete: str) -> list[str]:
    found = [name for name in names if name.startswith(incomplete)][:_MOST]
    if os.environ.get("_FEDMS_COMPLETE") != "complete_bash":
        return found
    return [name.replace(" ", r"\ ") for name in found]  # the others do that themselves
