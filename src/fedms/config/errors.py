"""Words for what is wrong: the key, what it got, what it expects and what was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from fedms.config.schema import Config, choices, known_keys

_LONGEST = 200
"""Characters of a value that is wrong, in a message."""


class ConfigError(ValueError):
    """One line that says which key is wrong and how."""


def explain(error: ValidationError) -> str:
    """The first problem, in one line."""
    first = error.errors()[0]
    parts = 3 if first["loc"][:2] in (("sal", "caps"), ("lora", "ranks")) else 2
    key = ".".join(str(word) for word in first["loc"][:parts])
    if first["type"] == "extra_forbidden":
        return f"got unknown key {key}{hint(key, [*known_keys(), *Config.model_fields])}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    wanted = _expected(error, first["loc"])
    got = _brief(first["input"])
    near = hint(got.strip('"'), choices(key))
    return f"got {key} = {got}; expected {wanted}{near}"


def hint(word: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """What was probably meant, if something was."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def _brief(value: Any) -> str:
    try:
        return json.dumps(value, default=str)[:_LONGEST]
    except ValueError:
        return "a number of thousands of digits"


def _expected(error: ValidationError, loc: tuple[int | str, ...]) -> str:
    """What a key expects; all alternatives where it is of several types."""
    same = [e["msg"] for e in error.errors() if e["loc"][:2] == loc[:2]]
    words = [m.removeprefix("Input should be ").removeprefix("a valid ") for m in same]
    return " or ".join(dict.fromkeys(words))
