"""What must be the same at the server and at every site, so that one run is one experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedms.config import Config
from fedms.identity import identity
from fedms.runtimes.messages import SCHEMA

_OWN = {"name", "seed", "evaluate_every", "partition", "runtime", "data"}
_OWN |= {"rounds", "screen", "aggregation", "tracking"}
"""Sections in which sites differ, or of which they are told by every message."""
_OF_SITES = (("sal", "caps"), ("lora", "ranks"))
_OWN_PARTITION = ("test_fraction", "val_fraction")


def terms(config: Config) -> Mapping[str, str]:
    """By names that a person can look for."""
    return {
        "messages": f"of schema {SCHEMA}",
        "configuration": _hash(_shared(config)),
        "classes": f"{len(config.data.classes)}, {_hash(config.data.classes)}",
        "foundation model": identity(config)["weights"],
    }


def differences(one: Config, other: Config) -> list[str]:
    """Keys in which two configurations of one run may not differ, and do."""
    first, second = (_flat({**_shared(c), **_limits(c)}) for c in (one, other))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _shared(config: Config) -> dict[str, Any]:
    facts = config.model_dump(mode="json")
    shared = {name: value for name, value in facts.items() if name not in _OWN}
    shared["partition"] = {name: facts["partition"][name] for name in _OWN_PARTITION}
    shared["data"] = {"classes": facts["data"]["classes"]}
    for section, name in _OF_SITES:
        del shared[section][name]
    return shared


def _limits(config: Config) -> dict[str, Any]:
    """What is said of single sites, each of which has its own part and tells it."""
    return {f"{s}.{name}": getattr(getattr(config, s), name) for s, name in _OF_SITES}


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{start}{key}.") if isinstance(value, dict) else {start + key: value}
    return flat


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
