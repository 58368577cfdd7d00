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


@pytest.fixture(scope="session")
def of_texts(tmp_path_factory, model_folder):
    """A run over a tiny sentence encoder."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["lost card", "pay my card", "a red cat", "the blue bird is not a dog"] * 12
    lines = "".join(f"{text} {i},{len(text) % 3}\n" for i, text in enumerate(words))
    (folder / "data.csv").write_text(f"text,label\n{lines}")
    data = ("data.source=csv", f"data.path={folder / 'data.csv'}", "runtime.threads=1")
    model = (f"model.name={model_folder('sentence')}", "partition.by=iid")
    run(load_config(None, [*WORDS, *data, *model]), folder / "run")
    return folder / "run"
