"""A federation of texts for a tiny BERT, in memory and as a CSV file, fitted once."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file

from fedms import FedMS, Result

SETTINGS = {
    "stage1": {"rounds": 2},
    "stage2": {"rounds": 2},
    "training": {"learning_rate": 0.05, "batch_size": 4},
    "lora": {"rank": 2},
    "evaluate_every": 0,
}
CLASSES = ["red cat", "green dog", "blue bird"]


def _as_dataset(texts, labels) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)


@pytest.fixture(scope="session")
def rows(inputs):
    """`(client, text, class index)` of three clients, one below the other."""
    found = []
    for seed, client in enumerate(("alice", "bob", "carol")):
        labels = [(i + seed) % 3 for i in range(20 + seed)]
        texts = inputs("text", labels, seed)
        found += [(client, text, label) for text, label in zip(texts, labels, strict=True)]
    return found


@pytest.fixture(scope="session")
def datasets(rows):
    names = dict.fromkeys(client for client, _, _ in rows)
    parts = {name: [(t, y) for c, t, y in rows if c == name] for name in names}
    return {name: _as_dataset(*zip(*part, strict=True)) for name, part in parts.items()}


@pytest.fixture(scope="session")
def table(rows, tmp_path_factory):
    """The same rows as a CSV file."""
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "text", "label"])
        writer.writerows((client, text, CLASSES[label]) for client, text, label in rows)
    return path


@pytest.fixture(scope="session")
def bert(model_folder):
    """A model and its tokenizer, as people load them; with what else there is of them."""
    folder = model_folder("bert")
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model.train(), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def make(bert):
    """A FedMS of the tiny model; settings are put on small ones."""

    def of(**settings):
        settings = {"progress": False, **SETTINGS, **settings}
        return FedMS(bert.model, bert.tokenizer, **settings)

    return of


@pytest.fixture(scope="session")
def fitted(make, datasets, tmp_path_factory):
    """The result of one run, for all tests that only look at it."""
    return make().fit(datasets, out=tmp_path_factory.mktemp("fitted") / "run")


@pytest.fixture(scope="session")
def as_dataset():
    """A data set of texts and class indices."""
    return _as_dataset


@pytest.fixture(scope="session")
def settings():
    """The settings of every run here."""
    return SETTINGS


def _tensors(folder):
    files = sorted((folder / "adapters").rglob("*.safetensors"))
    assert files
    return {
        f"{file.relative_to(folder)} {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="session")
def assert_alike():
    """Whether two runs left the same models, to the bit, and scores."""

    def check(one, other):
        first, second = _tensors(one), _tensors(other)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
        assert Result(one).summary["test"] == Result(other).summary["test"]
        assert Result(one).summary["validation"] == Result(other).summary["validation"]

    return check
