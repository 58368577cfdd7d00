"""A small run whose models are served."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client

import pytest

from fedms.config import load_config
from fedms.run import run

WORDS = ("stage1.rounds=1", "stage2.rounds=1", "runtime.threads=1")
DEALT = ("partition.clients=3", "data.max_rows=150")


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "run"
    run(load_config(None, [*WORDS, *DEALT]), path)
    return path


@pytest.fixture(scope="session")
def hospital():
    """A client whose name is too long for a folder's."""
    return "Городская клиническая больница номер один"


@pytest.fixture(scope="session")
def of_texts(tmp_path_factory, model_folder, hospital):
    """A run over a tiny sentence encoder, of clients with names."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["lost card", "pay my card", "a red cat", "the blue bird is not a dog"] * 12
    names = ["1", "2", hospital]
    lines = "".join(f"{x} {i},{len(x) % 3},{names[i % 3]}\n" for i, x in enumerate(words))
    (folder / "data.csv").write_text(f"text,label,who\n{lines}", encoding="utf-8")
    data = ("data.source=csv", f"data.path={folder / 'data.csv'}")
    dealt = ("partition.by=column", "partition.column=who")
    model = f"model.name={model_folder('sentence')}"
    run(load_config(None, [*WORDS, *data, *dealt, model]), folder / "run")
    return folder / "run"
