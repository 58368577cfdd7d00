"""Flower calls nobody and installs nothing, unless the environment asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of the environment. Some are read when Flower is imported."""


def settings() -> dict[str, str]:
    """Those of this environment, and these where it says nothing."""
    return SETTINGS | {name: os.environ[name] for name in SETTINGS if name in os.environ}


@contextmanager
def quiet() -> Iterator[None]:
    """The environment has these settings, and is as before afterwards, whatever changed in it."""
    before = dict(os.environ)
    os.environ.update(settings())
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
