"""Clients' splits are disjoint, complete, of each client's own distribution, and pure."""

from __future__ import annotations

import tracemalloc
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.errors import UserError
from fedms.data import Partitioning, Table, assign, describe, summary
from fedms.data.splits import alone
from fedms.data.table import coded


def table_of(labels, split=None, groups=None) -> Table:
    return Table("text", [f"words {i}" for i in range(len(labels))], list(labels), split, groups)


def all_rows(federation) -> list[int]:
    clients = (*federation.clients, *federation.unseen)
    return [int(i) for c in clients for part in (c.train, c.val, c.test) for i in part]


def as_lists(federation):
    return [
        (c.id, c.train.tolist(), c.val.tolist(), c.test.tolist())
        for c in (*federation.clients, *federation.unseen)
    ]


tables = st.builds(
    lambda rows, marked: table_of(
        [row[0] for row in rows],
        [row[1] for row in rows] if marked else None,
        [row[2] for row in rows],
    ),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(["train", "train", "val", "test"]),
            st.sampled_from("xyz"),
        ),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
)


@settings(deadline=None, max_examples=120)
@given(
    table=tables,
    by=st.sampled_from(["iid", "dirichlet", "shards", "quantity", "column"]),
    clients=st.integers(1, 5),
    fractions=st.sampled_from([(0.2, 0.1), (0, 0), (0.5, 0.49), (0.9, 0)]),
    unseen=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_disjoint_complete_and_pure(table, by, clients, fractions, unseen, seed):
    def make():
        return assign(
            table,
            Partitioning(by, clients, alpha=1.0),
            test_fraction=fractions[0],
            val_fraction=fractions[1],
            unseen_clients=unseen,
            seed=seed,
        )

    message = ""
    try:
        federation = make()
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    if message:
        return
    rows = all_rows(federation)
    assert len(set(rows)) == len(rows)
    assert len(rows) + federation.dropped_rows == len(table)
    assert by == "column" or federation.dropped_rows == federation.dropped_clients == 0
    everyone = (*federation.clients, *federation.unseen)
    assert len(federation.unseen) == unseen
    assert all(len(c.train) for c in everyone)
    assert federation.classes == tuple(sorted({table.labels[i] for i in rows}))
    assert {table.labels[i] for c in everyone for i in c.train} == set(federation.classes)
    for part in (part for c in everyone for part in (c.train, c.val, c.test)):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    if table.split is not None:
        marked = {
            name: {i for i, s in enumerate(table.split) if s == name}
            for name in ("train", "val", "test")
        }
        assert all(set(c.train.tolist()) <= marked["train"] for c in everyone)
        assert not any(set(c.test.tolist()) & marked["val"] for c in everyone)
        assert not any(set(c.val.tolist()) & marked["test"] for c in everyone)
        if by != "column" and marked["test"]:
            assert {i for c in everyone for i in c.test.tolist()} == marked["test"]
    assert as_lists(federation) == as_lists(make())


def test_without_a_split_each_client_is_split_by_class():
    table = table_of(["a"] * 600 + ["b"] * 400)
    federation = assign(table, Partitioning("iid", 5), test_fraction=0.2, val_fraction=0.1)
    for client in federation.clients:
        assert (len(client.train), len(client.val), len(client.test)) == (140, 20, 40)
        whole = np.concatenate([client.train, client.val, client.test])
        share = np.mean(whole < 600)
        assert abs(np.sum(client.test < 600) - share * 40) <= 1
        assert abs(np.sum(client.val < 600) - share * 20) <= 1


def test_a_class_of_one_row_has_the_same_chance_of_validation_and_test():
    """So that rows of a class which the client never trained on are found there, as in life."""
    writers, often, rare = 30, 40, 20
    labels = (["often"] * often + [f"rare {i}" for i in range(rare)]) * writers
    groups = [f"writer {i}" for i in range(writers) for _ in range(often + rare)]
    table = table_of(labels, groups=groups)
    drawn = {"val": 0, "test": 0}
    for seed in range(20):
        for client in assign(table, Partitioning("column", 0), seed=seed).clients:
            assert (len(client.test), len(client.val)) == (12, 6)
            for name in drawn:
                drawn[name] += sum(labels[i] != "often" for i in getattr(client, name))
    chances = {name: n / (20 * writers * rare) for name, n in drawn.items()}
    assert chances == pytest.approx({"val": 0.1, "test": 0.2}, rel=0.1)


def test_every_class_keeps_a_training_row():
    labels = ["rare", *["a"] * 30, *["b"] * 30]
    for seed in range(20):
        federation = assign(
            table_of(labels), Partitioning("iid", 3), test_fraction=0.6, val_fraction=0.3, seed=seed
        )
        assert any(0 in c.train for c in federation.clients)


def test_given_test_rows_follow_the_training_rows_of_their_class():
    labels = ["a", "b"] * 500
    table = table_of(labels, ["train"] * 700 + ["test"] * 300)
    federation = assign(table, Partitioning("dirichlet", 4, alpha=0.3), val_fraction=0.0)
    trained = {label: sum(labels[i] == label for i in range(700)) for label in "ab"}
    for client in federation.clients:
        for label in "ab":
            train, test = (
                sum(labels[i] == label for i in part) for part in (client.train, client.test)
            )
            assert abs(test - 150 * train / trained[label]) <= 1
    assert sorted(i for c in federation.clients for i in c.test) == list(range(700, 1000))


def test_given_validation_rows_are_dealt_and_absent_ones_split_off():
    labels = ["a", "b"] * 50
    given_val = table_of(labels, ["train"] * 60 + ["val"] * 20 + ["test"] * 20)
    federation = assign(given_val, Partitioning("iid", 2), val_fraction=0.5)
    assert sorted(i for c in federation.clients for i in c.val) == list(range(60, 80))
    only_train = table_of(labels, ["train"] * 100)
    federation = assign(only_train, Partitioning("iid", 2), test_fraction=0.2, val_fraction=0.1)
    assert [astuple(s)[1:4] for s in describe(federation, labels)] == [(35, 5, 10)] * 2
    assert federation.own_test == 0


def test_nobody_is_called_new():
    """Its models would stand for those of somebody who took no part."""
    table = table_of("abab", groups=["new", "new", "old", "old"])
    with pytest.raises(UserError, match=r"client called 'new'.*expected another name"):
        assign(table, Partitioning(by="column", clients=0), seed=0)
    with pytest.raises(UserError, match="client called 'new'"):
        alone(table, "new", seed=0)


def test_natural_clients_keep_their_own_rows_and_those_without_test_rows_are_counted():
    labels = ["a", "b"] * 10
    split = ["train"] * 10 + ["test"] * 4 + ["train"] * 6
    groups = ["x"] * 14 + ["y"] * 5 + ["z"]
    table = table_of(labels, split, groups)
    federation = assign(
        table,
        Partitioning("column", 0, min_rows=2),
        test_fraction=0.2,
        val_fraction=0.0,
    )
    x, y = federation.clients
    assert (x.id, x.test.tolist()) == ("x", [10, 11, 12, 13])
    assert (y.id, len(y.train), len(y.test)) == ("y", 4, 1)
    assert federation.own_test == 1
    assert (federation.dropped_clients, federation.dropped_rows) == (1, 1)
    assert "1 clients tested on rows split off" in summary(federation, table)


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=3), min_size=1))
def test_values_are_coded_as_numpy_does(values):
    names, codes = coded(values)
    expected = np.unique(np.array(values, dtype=object), return_inverse=True)
    assert (names, codes.tolist()) == (expected[0].tolist(), expected[1].tolist())
    assert codes.dtype == np.int64


@pytest.mark.parametrize("by", ["iid", "dirichlet", "shards", "quantity", "column"])
def test_one_long_name_does_not_make_all_others_as_long(by):
    """In an array of NumPy's texts all are as long as the longest: here 400 MB."""
    labels, groups = ["a", "b"] * 1000, ["x", "y", "y", "x"] * 500
    labels[-1] = groups[-1] = "z" * 50_000
    table = table_of(labels, ["train", "train", "test", "train"] * 500, groups)
    assign(table_of("ab", groups=list("ab")), Partitioning(by, 1))  # imports
    tracemalloc.start()
    try:
        federation = assign(table, Partitioning(by, 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(federation.clients) == 3
    assert peak < 40e6


def test_unseen_clients_are_drawn_by_the_seed():
    table = table_of(["a", "b"] * 50)
    chosen = set()
    for seed in range(12):
        federation = assign(table, Partitioning("iid", 5), unseen_clients=2, seed=seed)
        ids = [c.id for c in federation.unseen]
        assert len(ids) == 2
        assert sorted([*ids, *(c.id for c in federation.clients)]) == list("01234")
        chosen.update(ids)
    assert chosen == set("01234")


def test_describe_and_summary():
    table = table_of(["a"] * 10 + ["b"] * 10, groups=["x"] * 10 + ["y"] * 10)
    federation = assign(table, Partitioning("column", 0), test_fraction=0.2, val_fraction=0.1)
    sizes = [astuple(one) for one in describe(federation, table.labels)]
    assert sizes == [("x", 7, 1, 2, 1), ("y", 7, 1, 2, 1)]
    said = (
        "2 clients, 0 unseen; 14 train, 2 val, 4 test rows; 10/10/10 rows and 1/1/1 of 2 classes "
        "per client (min/median/max)"
    )
    assert summary(federation, table) == said
    assert summary(federation, replace(table, dropped=1234)) == (
        f"{said}; 1,234 rows left out, as data.drop_ says"
    )


def test_the_summary_asks_about_names_that_differ_in_case_or_spaces_alone():
    """Letters may be classes, of both cases."""
    groups = ["North", "north", "South", "NORTH", "a", "A"] * 4
    table = Table("text", [str(i) for i in range(24)], ["x y", "X  Y", "b", "B"] * 6, None, groups)
    said = summary(assign(table, Partitioning("column")), table)
    assert "; client 'North' beside 'NORTH' (and 1 more): one and the same?" in said
    assert "; class 'x y' beside 'X  Y': one and the same?" in said
    assert "'b'" not in said
    assert "'a'" not in said


@pytest.mark.parametrize("form", ["text", "bytes", "files", "pixels"])
def test_the_summary_counts_rows_that_were_trained_on(tmp_path, form):
    """Inputs are compared as `data.drop_duplicates` does; a client's copy may be another's row."""
    contents = [1, 2, 3, 1, 4, 2, 2, 5, 3]
    split = ["train"] * 3 + ["test", "test", "test", "val", "val", "train"]
    makers = {"text": str, "bytes": lambda i: bytes([i]), "pixels": lambda i: np.full((2, 2), i)}
    inputs = list(map(makers.get(form, str), contents))
    if form == "files":
        inputs = [tmp_path / f"{i}.png" for i in range(9)]
        for path, content in zip(inputs, contents, strict=True):
            path.write_bytes(bytes([content]) * 9)
    kind = "text" if form == "text" else "image"
    table = Table(kind, inputs, list("abababaab"), split)
    said = summary(assign(table, Partitioning("iid", 2)), table)
    assert said.endswith(
        "(min/median/max); 2 of 3 test rows are also training rows; "
        "1 of 2 validation rows are also training rows; try data.drop_duplicates=true"
    )
    once = table.take(np.array([0, 1, 2, 4, 7]))
    assert "also" not in summary(assign(once, Partitioning("iid", 1)), once)
    val = table.take(np.array([0, 1, 2, 4, 6]))
    assert summary(assign(val, Partitioning("iid", 1)), val).endswith(
        "; 1 of 1 validation rows are also training rows; try data.drop_duplicates=true"
    )


def test_a_file_that_cannot_be_read_is_not_the_summarys_to_name(tmp_path):
    table = Table("image", [tmp_path / f"{i}.png" for i in range(4)], list("abab"))
    assert "also" not in summary(assign(table, Partitioning("iid", 1), test_fraction=0.5), table)


def test_the_summary_counts_clients_that_have_no_test_rows():
    table = table_of(["a"] * 10 + ["b"] * 3, groups=["x"] * 10 + ["y", "z", "z"])
    said = summary(assign(table, Partitioning("column", 0)), table)
    assert said.endswith("; 2 clients have no test rows, and count in no average")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.0}, "test_fraction=1.0; expected 0 to below 1"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"test_fraction": float("nan")}, "test_fraction=nan"),
        ({"test_fraction": 0.6, "val_fraction": 0.4}, "sum below 1"),
        ({"unseen_clients": 2}, "unseen_clients=2 of 2 clients; expected 0 to 1"),
        ({"unseen_clients": -1}, "unseen_clients=-1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        assign(table_of(["a", "b"] * 10), Partitioning("iid", 2), **options)


@pytest.mark.parametrize("how", [Partitioning("iid", 2), Partitioning("column", 0)])
def test_a_class_without_training_rows(how):
    table = table_of(list("aabbc"), ["train"] * 4 + ["test"], list("xyxyx"))
    with pytest.raises(UserError, match="class 'c' in validation or test rows alone"):
        assign(table, how)


def test_a_client_without_training_rows():
    table = table_of(list("abab"), ["train", "train", "test", "test"], list("xxyy"))
    with pytest.raises(UserError, match=r"client 'y' without training rows.*min_rows=1"):
        assign(table, Partitioning("column", 0, min_rows=0))
    federation = assign(
        table, Partitioning("column", 0, min_rows=1), val_fraction=0, test_fraction=0
    )
    assert (federation.dropped_clients, federation.dropped_rows) == (1, 2)
    with pytest.raises(UserError, match=r"client '.*' without training rows"):
        assign(table_of(["a"] * 30), Partitioning("dirichlet", 20, 0.01, min_rows=0))


def test_no_row_marked_train():
    with pytest.raises(UserError, match="got rows marked 'test'; expected some marked train"):
        assign(table_of(["a", "b"], ["test", "test"]), Partitioning("iid", 1))
