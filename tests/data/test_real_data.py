"""The public data sets of the experiments, where they are at hand beside the project."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

from fedms.core.errors import UserError
from fedms.data import Federation, Partitioning, Table, assign, decode_image, describe, load_table

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the data sets are not at ../shared/data beside the project"
)


def sizes(federation: Federation, table: Table) -> tuple[int, int, int]:
    columns = list(zip(*map(astuple, describe(federation, table.labels)), strict=True))
    return sum(columns[1]), sum(columns[2]), sum(columns[3])


def test_banking77_by_dirichlet():
    table = load_table("csv", FOLDER / "banking77", split="split")
    assert (len(table), len(table.classes)) == (13_083, 77)
    federation = assign(table, Partitioning("dirichlet", 10, alpha=0.1), seed=0)
    train, val, test = sizes(federation, table)
    assert (train + val, test) == (10_003, 3_080)
    assert abs(val - 1_000) <= 5
    rows = describe(federation, table.labels)
    assert len(rows) == 10
    assert sum(row.classes for row in rows) / 10 < 60  # skewed: far from all 77 on every client
    for client in federation.clients:  # tested on what it was trained on
        trained = {table.labels[i] for i in [*client.train, *client.val]}
        assert {table.labels[i] for i in client.test} <= trained


def test_clinc150_by_domain_needs_oos_dropped():
    options = {"path": FOLDER / "clinc150", "split": "split", "group": "domain"}
    with pytest.raises(UserError, match="got split 'oos_test', 'oos_train', 'oos_val'"):
        load_table("csv", **options)
    table = load_table("csv", **options, drop_labels=["oos"])
    assert (len(table), table.dropped, len(table.classes)) == (22_500, 1_200, 150)
    federation = assign(table, Partitioning("column", 0), unseen_clients=2)
    assert (len(federation.clients), len(federation.unseen)) == (8, 2)
    assert {astuple(row)[1:] for row in describe(federation, table.labels)} == {
        (1500, 300, 450, 15)
    }


def test_newsgroups20_by_author():
    options = {"path": FOLDER / "newsgroups20", "group": "author"}
    with pytest.raises(
        UserError, match=r"no text \(data\.input\) at row \d+ of data\.csv\.gz \(and 70 more"
    ):
        load_table("csv", **options)
    assert load_table("csv", **options, drop_empty=True).dropped == 71
    table = load_table("csv", **options, input="subject+text")
    assert (len(table), table.dropped, len(table.classes)) == (18_846, 0, 20)
    federation = assign(table, Partitioning("column", 0, min_rows=10))
    assert len(federation.clients) == 266
    assert sum(sizes(federation, table)) + federation.dropped_rows == 18_846
    split = load_table("csv", **options, input="subject+text", split="split")
    federation = assign(split, Partitioning("column", 0, min_rows=10))
    assert all(len(c.train) + len(c.val) + len(c.test) >= 10 for c in federation.clients)
    assert all(len(c.test) for c in federation.clients)
    assert 0 < federation.own_test < len(federation.clients)


def test_amazon5_by_domain_without_duplicates():
    table = load_table("csv", FOLDER / "amazon5", group="domain", drop_duplicates=True)
    assert (len(table), table.dropped) == (26_808, 3_192)
    assert len(set(table.inputs)) == len(table)
    federation = assign(table, Partitioning("column", 0))
    assert [c.id for c in federation.clients] == sorted(set(table.groups or ()))
    assert sum(sizes(federation, table)) == 26_808


def test_femnist_by_writer():
    options = {"input": "image", "split": "split", "group": "writer"}
    table = load_table("parquet", FOLDER / "femnist", **options)
    assert (table.kind, len(table), len(table.classes)) == ("image", 16_317, 62)
    federation = assign(table, Partitioning("column", 0, min_rows=50))
    assert len(federation.clients) + federation.dropped_clients == 105
    assert federation.dropped_clients > 0
    assert all(len(c.train) + len(c.val) >= 50 for c in federation.clients)
    image = decode_image(table.inputs[0], table.where(0))
    assert (image.mode, image.size) == ("RGB", (28, 28))


def test_pacs_by_domain():
    options = {"input": "image", "split": "split", "group": "domain"}
    table = load_table("parquet", FOLDER / "pacs", **options)
    assert (len(table), table.split, len(table.classes)) == (9_991, None, 7)
    federation = assign(table, Partitioning("column", 0))
    assert [c.id for c in federation.clients] == ["art_painting", "cartoon", "photo", "sketch"]
    assert sum(sizes(federation, table)) == 9_991
    for client in federation.clients:
        row = int(client.train[0])
        assert decode_image(table.inputs[row], table.where(row)).size == (96, 96)
