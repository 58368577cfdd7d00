"""Files and `section.key=value` to a configuration, and back to TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedms.config.errors import ConfigError, explain, hint
from fedms.config.schema import Config, known_keys
from fedms.config.task import PATHLESS


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, elsewhere: str | None = None
) -> Config:
    """Read a TOML file (None: all defaults) and apply `section.key=value` overrides.

    A value is read as TOML where it is TOML (`0.1`, `true`, `["a"]`), else as text. Nothing behind
    the sign (`data.split=`) takes the default, whatever the file says. `elsewhere` stands for
    `data.path` where one is needed and none is given.

    Raises:
        ConfigError: naming the key, what it got, what it expects and what to try.
    """
    values = _read(path) if path else {}
    for override in overrides:
        _apply(values, override)
    data = values.get("data")
    if elsewhere and isinstance(data, dict) and data.get("source", "digits") not in PATHLESS:
        data.setdefault("path", elsewhere)
    return validate(values)


def validate(values: Mapping[str, Any]) -> Config:
    """A configuration from plain values, as TOML or JSON hold them.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def dump_config(config: Config) -> str:
    """TOML with every key that has a value: re-runs the run as it is."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = hint(str(path), _files(path), 0.4)
        raise ConfigError(f"got config {path}, which does not exist{near}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"got config {path}, which is not TOML: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"got config {path}, which cannot be read: {error}") from None


def _files(path: Path) -> list[str]:
    """Recipes by that name, or if there is none, TOML files beside it."""
    recipe = (Path("recipes") / path.name).with_suffix(".toml")
    return [str(recipe)] if recipe.is_file() else [str(p) for p in path.parent.glob("*.toml")]


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"got {override!r}; expected section.key=value, e.g. stage1.rounds=5")
    text = text.lstrip().rstrip("\r\n")  # a column's name may end in a blank
    *sections, last = key.strip().split(".", 2)
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"got {override!r}, but {name} is not a section")
    if text.strip():
        values[last] = _value(text)
    else:
        _known(key.strip(), override)
        values.pop(last, None)


def _known(key: str, override: str) -> None:
    """Refuse to take the default of what has none."""
    defaults = known_keys()
    tables = tuple(f"{name}." for name, default in defaults.items() if isinstance(default, dict))
    if key not in defaults and not key.startswith(tables):
        raise ConfigError(f"got {override!r} with unknown key {key}{hint(key, defaults)}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        return text
