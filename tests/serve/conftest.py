"""A small run whose models are served."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client

import pytest

from fedms.config import load_config
from fedms.run import run

WORDS = ("stage1.rounds=1", "stage2.rounds=1", "partition.clients=3", "data.max_rows=150")


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "run"
    run(load_config(None, [*WORDS, "runtime.threads=1"]), path)
    return path
