"""A run is a guest: threads, random states and settings of its host program are left as found."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedms.core.errors import UserError
from fedms.run import RoundDone, resume, run

ONE = "runtime.threads=1"
"""The host has two, with which products may be rounded in another way."""


def surroundings():
    """All that is of the process and that others may depend on."""
    numpy = np.random.get_state()  # noqa: NPY002
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    umask = os.umask(0)
    os.umask(umask)
    return {
        "random": (random.getstate(), numpy[1].tobytes(), numpy[2], bytes(torch.get_rng_state())),
        "threads": torch.get_num_threads(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "dtype": torch.get_default_dtype(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_deterministic_debug_mode(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.enabled,
        ),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "umask": umask,
        "signals": [signal.getsignal(s) for s in signals],
        "log": (logging.getLogger().level, list(logging.getLogger().handlers)),
    }


IMPORTS = """
import random
before = random.getstate()
import fedms.progress, fedms.run
from fedms import FedMS
assert random.getstate() == before
import numpy
before = numpy.random.get_state()[1].tolist()
import fedms.api.plots, fedms.compare
assert numpy.random.get_state()[1].tolist() == before
"""


@pytest.mark.slow
def test_importing_draws_no_numbers():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


@pytest.fixture
def host(done):
    """Unlike any default, after everything is imported; put back afterwards."""
    done(ONE)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    random.seed(5), np.random.seed(6), torch.manual_seed(7)  # noqa: NPY002
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ["SOMEBODYS"] = "own"
    yield surroundings()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    del os.environ["SOMEBODYS"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_host_is_left_as_found(host, small, tmp_path, workers):
    run(small(ONE, f"runtime.workers={workers}"), tmp_path / "run")
    assert surroundings() == host


@pytest.mark.slow
def test_by_a_run_that_fails_and_one_that_goes_on_too(host, small, tmp_path):
    def end(event):
        if isinstance(event, RoundDone):
            raise UserError("enough")

    words = (ONE, "partition.by=dirichlet", "partition.alpha=0.5")
    with pytest.raises(UserError, match="enough"):
        run(small(*words), tmp_path / "run", watch=end)
    assert surroundings() == host
    resume(tmp_path / "run")
    assert surroundings() == host


@pytest.mark.slow
def test_a_host_that_draws_numbers_changes_nothing(host, small, done, tmp_path):
    """Nor does what it drew before: a seed of the run's decides alone."""
    run(small(ONE), tmp_path / "run", watch=lambda event: (random.random(), torch.rand(3)))
    assert type(done(ONE))(tmp_path / "run", {}).bytes() == done(ONE).bytes()
