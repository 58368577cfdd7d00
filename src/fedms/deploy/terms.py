"""What must be the same at the server and at every site, so that one run is one experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from fedms.config import Config
from fedms.identity import identity
from fedms.runtimes.messages import SCHEMA

_OWN = {"name", "seed", "evaluate_every", "partition", "runtime", "data"}
_OWN |= {"rounds", "screen", "aggregation"}
"""Sections in which sites differ, or of which they are told by every message."""
_OWN_PARTITION = ("test_fraction", "val_fraction")


def terms(config: Config) -> Mapping[str, str]:
    """By names that a person can look for."""
    facts = config.model_dump(mode="json")
    shared = {name: value for name, value in facts.items() if name not in _OWN}
    shared["partition"] = {name: facts["partition"][name] for name in _OWN_PARTITION}
    return {
        "messages": f"of schema {SCHEMA}",
        "configuration": _hash(shared),
        "classes": f"{len(config.data.classes)}, {_hash(config.data.classes)}",
        "foundation model": identity(config)["weights"],
    }


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
