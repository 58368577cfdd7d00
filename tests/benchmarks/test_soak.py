"""Runs of every method, killed at each of their events, end as undisturbed ones do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fedms.config import Method

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
@pytest.mark.parametrize("half", [0, 1])
def test_every_method_is_killed_at_every_event(half):
    methods = get_args(Method)[half::2]
    done = subprocess.run(
        [sys.executable, str(SOAK), "--events", "--methods", ",".join(methods)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"(\d+) kills in (\d+) runs of .*\n", done.stdout)
    assert found is not None
    assert int(found[2]) == len(methods)
    assert int(found[1]) > 3 * len(methods)
