"""`fedms partition`: sizes as a run deals them, divergence as scipy has it, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from fedms.build import build
from fedms.config import load_config
from fedms.holdings import divergences
from fedms.tables import picture

WORDS = ("partition.clients=5", "partition.unseen_clients=1", "data.max_rows=400")


@pytest.fixture(scope="module")
def dealt():
    """What a run with this configuration trains on."""
    return build(load_config(None, WORDS))


def test_json_is_what_a_run_deals(fedms, dealt):
    ended = fedms("partition", *WORDS, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    clients = [*dealt.clients, *dealt.unseen]
    assert [c["id"] for c in said["clients"]] == [c.id for c in clients]
    assert [c["unseen"] for c in said["clients"]] == [False] * 4 + [True]
    for told, client in zip(said["clients"], clients, strict=True):
        sizes = [len(client.train), len(client.val), len(client.test)]
        assert [told[name] for name in ("train", "val", "test")] == sizes
        counts = np.bincount(client.train.labels, minlength=10)
        assert list(told["rows_by_class"].values()) == counts.tolist()
        assert told["largest_class"] == str(counts.argmax())
        assert told["largest_share"] == pytest.approx(counts.max() / sizes[0])


def test_divergence_is_scipys(fedms):
    """`jensenshannon` is the root of the divergence."""
    said = json.loads(fedms("partition", *WORDS, "--json").out)
    rows = np.array([list(c["rows_by_class"].values()) for c in said["clients"]], dtype=float)
    pairs = [jensenshannon(rows[i], rows[j], base=2) ** 2 for i in range(4) for j in range(i)]
    assert said["divergence_between_clients"] == pytest.approx(np.mean(pairs))
    for told, mine in zip(said["clients"], rows, strict=True):
        expected = jensenshannon(mine, rows[:4].sum(0), base=2) ** 2
        assert told["divergence"] == pytest.approx(expected)


def test_divergence_at_its_ends():
    """No class in common is 1 bit, equal shares are 0."""
    found = divergences(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]]))
    assert found[0, 0] == 1.0
    assert found[1, 1] == 0.0


def test_one_client_is_not_divergent_from_others(fedms):
    said = json.loads(fedms("partition", "partition.clients=1", "data.max_rows=50", "--json").out)
    assert said["divergence_between_clients"] is None
    assert said["clients"][0]["divergence"] == 0.0


def test_table_names_unseen_clients(fedms):
    out = fedms("partition", *WORDS).out
    said = json.loads(fedms("partition", *WORDS, "--json").out)
    marked = [line.split()[0] for line in out.splitlines() if "(unseen)" in line]
    assert marked == [said["clients"][-1]["id"]] * 2  # in the table, and in the picture


def test_picture_in_characters():
    """Darker for a larger share, a dot for none; classes share columns where there are many."""
    lines = picture(["a", "b"], ["x", "y"], np.array([[1.0, 0.0], [0.05, 0.95]]), 80)
    assert lines[1] == "a  ██· "
    assert lines[2] == "b  ░░██"
    many = picture(["a"], [str(i) for i in range(100)], np.full((1, 100), 0.01), 55)
    assert "2 a column" in many[0]
    assert len(many[1]) <= 55


@pytest.mark.parametrize(("name", "begins"), [("p.svg", b"<?xml"), ("p.png", b"\x89PNG")])
def test_picture_in_a_file(fedms, tmp_path, name, begins):
    ended = fedms("partition", *WORDS, "--picture", name)
    assert ended.out.endswith(f"written: {name}\n")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["p.gif", "p", "file/p.svg"])
def test_picture_that_cannot_be(fedms, tmp_path, name):
    (tmp_path / "file").write_text("precious")
    ended = fedms("partition", *WORDS, "--picture", name)
    assert ended.code == 2
    assert ended.err.startswith(f"fedms: got --picture {name}")
    assert ended.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
