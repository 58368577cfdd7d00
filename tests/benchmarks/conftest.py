"""The programs of `benchmarks` are no package: imported by name, as they import each other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def module() -> Any:
    """Imports a module of `benchmarks` or `benchmarks/peers`."""
    known = list(sys.path)
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]
    yield importlib.import_module
    sys.path[:] = known
