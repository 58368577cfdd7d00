"""Every source reads what stands there, and says in one line what is wrong."""

from __future__ import annotations

import csv as csv_module
import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedms.core.errors import UserError
from fedms.data import Table, decode_image, load_table
from fedms.store.files import digest

CSV = "text,label,split,who\nhello,7,train,x\nNA,10,training,y\nnull,9,TEST,x\n,10,dev,y\n"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 3), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(CSV)
    return path


def refused(message: str, *args, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_table(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("got ")
    assert "; expected " in text


def place(root, *names: str) -> None:
    """Files that say what they are called."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_csv_values_stay_text(csv):
    table = load_table("csv", csv, split="split", group="who", drop_empty=True)
    assert list(table.inputs) == ["hello", "NA", "null"]
    assert list(table.labels) == ["7", "10", "9"]
    assert table.classes == ("7", "9", "10")
    assert table.split == ["train", "train", "test"]
    assert table.groups == ["x", "y", "x"]
    assert (table.kind, table.dropped) == ("text", 1)


def test_csv_keeps_zeros_quotes_newlines_and_unicode(tmp_path):
    path = tmp_path / "data.csv.gz"
    rows = 'text,label\n"a,\n""b""",007\nÄé漢,7\nTrue,1e3\n'
    path.write_bytes(gzip.compress(("\ufeff" + rows).encode()))
    table = load_table("csv", str(path))
    assert list(table.inputs) == ['a,\n"b"', "Äé漢", "True"]
    assert list(table.labels) == ["007", "7", "1e3"]


@pytest.mark.parametrize("mark", [";", "\t", ","])
@pytest.mark.parametrize("zipped", [False, True])
def test_csv_of_spreadsheets_in_other_languages(tmp_path, mark, zipped):
    """Excel separates by semicolons where the comma is a decimal point."""
    path = tmp_path / ("data.csv.gz" if zipped else "data.csv")
    others = " ".join({",", ";"} - {mark})
    rows = f'\ufefftext{mark}label\nit costs 3{others}50{mark}x\n"a{mark} b"{mark}y\n'
    path.write_bytes(gzip.compress(rows.encode()) if zipped else rows.encode())
    table = load_table("csv", path)
    assert list(table.inputs) == [f"it costs 3{others}50", f"a{mark} b"]
    assert list(table.labels) == ["x", "y"]


def test_a_column_may_be_named_with_the_mark_of_another_file(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text;label,label\na;b,c\nd;e,f\n")
    assert list(load_table("csv", path, input="text;label").inputs) == ["a;b", "d;e"]
    refused("does not have; expected one of 'text;label', 'label'", "csv", path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (['"a,x', "b,y", "c,x", '"d,y', "e,x"], "2 to 5"),
        (["a,x", 'b,"y', 'c,"x', "d,y"], "3 to 4"),
        (['"a', '",x', '"b,y', "", 'c"x,y', "e,x"], "4 to 6"),
        (['"a"b,x', '"c,y', '"d,x', "e,y"], "3 to 4"),
        (["ä" * 200_000 + ",x", '"' + "b" * 200_000, '",y', '"c,y', '"d,x', "e,y"], "5 to 6"),
    ],
)
def test_a_stray_quote_that_swallows_lines_is_refused(tmp_path, rows, lines, end, mark, zipped):
    """pandas makes one row of them, without a word."""
    path = tmp_path / ("d.csv.gz" if zipped else "d.csv")
    text = end.join(["text,label", *rows, ""]).replace(",", mark).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    refused(rf"a stray quote in lines {lines} of d\.csv", "csv", path)
    assert csv_module.field_size_limit() == 131_072


def test_quotes_that_harm_nothing_are_read(tmp_path):
    path, long = tmp_path / "d.csv", "b\n" * 100_000
    path.write_text(
        f'text,label\n"a ""b"",\n\n""c"" d\n",x\n"a"b,y\n5" of "it",x\n"{long}",x\n"",y\n',
        encoding="utf-8-sig",
    )
    table = load_table("csv", path, drop_empty=True)
    assert list(table.inputs) == ['a "b",\n\n"c" d\n', "ab", '5" of "it"', long]
    assert table.labels == ["x", "y", "x", "x"]
    pd.DataFrame({"text": ["a\nb", "c"], "label": ["x", "y"]}).to_csv(tmp_path / "d.csv.xz")
    assert list(load_table("csv", tmp_path / "d.csv.xz").inputs) == ["a\nb", "c"]


def test_folder_of_csv_files_named_as_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nt1,a\nt2,b\n")
    (tmp_path / "test-00000.csv").write_text("text,label\nu1,a\n")
    table = load_table("csv", tmp_path)
    assert sorted(zip(table.inputs, table.split, strict=True)) == [
        ("t1", "train"),
        ("t2", "train"),
        ("u1", "test"),
    ]
    assert {table.where(i) for i in range(3)} == {
        "row 1 of train.csv",
        "row 2 of train.csv",
        "row 1 of test-00000.csv",
    }
    (tmp_path / "more.csv").write_text("text,label\nv,a\n")
    refused("of which only some name a split", "csv", tmp_path)
    (tmp_path / "train.csv").rename(tmp_path / "x.csv")
    (tmp_path / "test-00000.csv").rename(tmp_path / "y.csv")
    assert load_table("csv", tmp_path).split is None


def test_columns_are_joined_and_empty_ones_left_out(tmp_path):
    (tmp_path / "d.csv").write_text("subject,body,a+b,label\ns,t,1,a\ns,,2,b\n,t,3,b\n")
    table = load_table("csv", tmp_path / "d.csv", input="subject+body")
    assert list(table.inputs) == ["s\nt", "s", "t"]
    assert list(load_table("csv", tmp_path / "d.csv", input="a+b").inputs) == ["1", "2", "3"]


def test_empty_text_is_refused_by_row_number(csv):
    refused(r"no text \(data\.input\) at row 4 of data\.csv; expected some.*drop_empty", "csv", csv)


def test_labels_are_dropped_before_anything_else_is_checked(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label,split\n,oos,oos_val\nx,a,train\ny,b,test\n")
    table = load_table("csv", path, split="split", drop_labels=["oos"])
    assert (len(table), table.dropped, table.split) == (2, 1, ["train", "test"])
    assert table.where(0) == "row 2 of d.csv"
    refused("got split 'oos_val'", "csv", path, split="split", drop_empty=False, input="text+label")
    refused("drop_labels with 'ooz', which no row has.*try 'oos'", "csv", path, drop_labels=["ooz"])


def test_labels_of_the_federation_that_a_site_has_no_rows_of_are_dropped(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\nx,a\ny,a\n")
    options = {"drop_labels": ["-1", "b"], "classes": ["a", "c"]}
    assert load_table("csv", path, **options).labels == ["a", "a"]
    refused("drop_labels with '-1', which no row has", "csv", path, drop_labels=["-1"])
    options = {"drop_labels": ["A"], "classes": ["b", "c"]}
    refused("class 'a' at row 1 of d.csv.*none of the fed.*drop_labels", "csv", path, **options)
    options = {"drop_labels": ["a"], "classes": ["b", "c"]}
    refused("got 0 rows with 0 class.*expected a class or more", "csv", path, **options)


def test_duplicates_keep_the_first(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\nx,a\ny,b\nx,b\nz,a\n")
    table = load_table("csv", tmp_path / "d.csv", drop_duplicates=True)
    assert (list(table.inputs), list(table.labels)) == (["x", "y", "z"], ["a", "b", "a"])
    assert table.dropped == 1


def test_an_empty_split_column_is_none(tmp_path):
    (tmp_path / "d.csv").write_text("text,label,split\nx,a,\ny,b,\n")
    assert load_table("csv", tmp_path / "d.csv", split="split").split is None
    (tmp_path / "d.csv").write_text("text,label,split\nx,a,\ny,b,train\n")
    refused("got split ''", "csv", tmp_path / "d.csv", split="split")


def test_max_rows_is_seeded_ordered_and_keeps_the_splits(tmp_path):
    lines = [f"t{i},{i % 2},{'test' if i % 4 == 0 else 'train'}" for i in range(100)]
    (tmp_path / "d.csv").write_text("text,label,split\n" + "\n".join(lines))
    one, again, other = (
        load_table("csv", tmp_path / "d.csv", split="split", max_rows=20, seed=s) for s in (0, 0, 1)
    )
    assert len(one) == 20
    assert one.split.count("test") == 5
    numbers = [int(text[1:]) for text in one.inputs]
    assert numbers == sorted(set(numbers))
    assert list(one.inputs) == list(again.inputs) != list(other.inputs)
    refused("max_rows=1", "csv", tmp_path / "d.csv", max_rows=1)


def test_parquet_texts_with_class_names_and_missing_values(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", None, "c"], "label": [0, 1, 1]}, features)
    data.to_parquet(tmp_path / "d.parquet")
    table = load_table("parquet", tmp_path / "d.parquet", drop_empty=True)
    assert (table.inputs, table.labels, table.dropped) == (["a", "c"], ["no", "yes"], 1)


def test_parquet_numbers_that_are_none_are_missing(tmp_path):
    """NaN is what NumPy writes for a missing number, and no class."""
    columns = {"text": ["a", "b", "c"], "label": [0.0, float("nan"), 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    refused(r"got no label \(data\.label\) at row 2", "parquet", tmp_path / "d.parquet")


def test_blanks_around_labels_splits_and_clients_are_no_part_of_them(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(
        "text,label,split,who\n a ,x,train,me\nb,x , train, me\nc,\tx,test,me \nd,y,,u\n"
    )
    table = load_table("csv", path, group="who")
    assert (table.labels, table.groups) == (["x", "x", "x", "y"], ["me", "me", "me", "u"])
    assert table.inputs[0] == " a "
    path.write_text("text,label,split,who\na,x, , \nb,y,,me\nc, ,,me\n")
    refused(r"no label \(data\.label\) at row 3 of d\.csv", "csv", path)
    path.write_text("text,label,split,who\na,x, , \nb,y,,me\n")
    refused(r"no client \(partition\.column\) at row 1 of d\.csv", "csv", path, group="who")
    assert load_table("csv", path, split="split").split is None
    place(tmp_path / "rows", "x/1.txt", "x /2.txt", "y/3.txt")
    assert load_table("folder", tmp_path / "rows").labels == ["x", "x", "y"]


def claimed(path, features, columns) -> None:
    """A Parquet file whose metadata say so of its features."""
    said = json.dumps({"info": {"features": features}})
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": said}), path)


LABELS = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}


@pytest.mark.parametrize(
    ("features", "labels", "expected"),
    [
        (LABELS, [0, 1], ["no", "yes"]),
        ({**LABELS, "deep": {"x": {"_type": "Value"}}, "many": [{}]}, [0, 1], ["no", "yes"]),
        ([{"name": "label"}], [0, 1], ["0", "1"]),
        ([], [0, 1], ["0", "1"]),
        (None, [0, 1], ["0", "1"]),
        (LABELS, [0.0, 1.0], ["0.0", "1.0"]),
        (LABELS, ["0", "x"], ["0", "x"]),
        (LABELS, [True, False], ["True", "False"]),
        (LABELS, [0, 7], ["no", "7"]),
        ({"label": {"_type": "ClassLabel"}}, [0, 1], ["0", "1"]),
        ({"label": {"_type": "ClassLabel", "names": {"a": 1}}}, [0, 1], ["0", "1"]),
    ],
)
def test_what_parquet_metadata_claim_is_believed_of_whole_numbers(
    tmp_path, features, labels, expected
):
    claimed(tmp_path / "d.parquet", features, {"text": ["a", "b"], "label": labels})
    assert load_table("parquet", tmp_path / "d.parquet").labels == expected


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(["a", "b"]), pa.array(["x", "y"]), pa.array(["a", "b"])]
    pq.write_table(pa.table(columns, names=["text", "label", "label"]), tmp_path / "d.parquet")
    refused("2 columns 'label' in d.parquet; expected one", "parquet", tmp_path / "d.parquet")
    pq.write_table(pa.table(columns, names=["text", "label", "text"]), tmp_path / "d.parquet")
    refused("2 columns 'text' in d.parquet; expected one", "parquet", tmp_path / "d.parquet")


def test_labels_in_bytes_are_text(tmp_path):
    columns = {"text": ["a", "b", "c"], "label": ["ä".encode(), b"x", b"x"]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    assert load_table("parquet", tmp_path / "d.parquet").labels == ["ä", "x", "x"]
    columns["label"][1] = b"\xff"
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    refused("column 'label' of d.parquet that are no UTF-8", "parquet", tmp_path / "d.parquet")


@pytest.mark.parametrize("form", ["struct", "bytes", "path"])
def test_parquet_images(tmp_path, form):
    (tmp_path / "a.png").write_bytes(png(9))
    images = {
        "struct": [{"bytes": png(9), "path": None}, {"bytes": None, "path": "a.png"}],
        "bytes": [png(9), png(9)],
        "path": ["a.png", "a.png"],
    }[form]
    pq.write_table(pa.table({"image": images, "label": [1, 0]}), tmp_path / "d.parquet")
    kind = "image" if form == "path" else "auto"
    table = load_table("parquet", tmp_path / "d.parquet", input="image", kind=kind)
    assert (table.kind, table.labels) == ("image", ["1", "0"])
    for row in range(2):
        assert decode_image(table.inputs[row], table.where(row)).getpixel((0, 0)) == (9, 9, 9)
    if form != "path":
        refused(
            "kind='text'.*holds bytes",
            "parquet",
            tmp_path / "d.parquet",
            input="image",
            kind="text",
        )


@pytest.mark.parametrize(
    "name", ["texte à lire", "文本", "a+b", "נוסח\u202e", "👩🏽‍⚕️", "[x]", "a.b", "x" * 5000, " "]
)
def test_columns_of_any_name(tmp_path, name):
    pq.write_table(pa.table({name: ["one", "two"], "label": ["a", "b"]}), tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text(f'"{name}",label\none,a\ntwo,b\n', encoding="utf-8")
    for source in ("csv", "parquet"):
        table = load_table(source, tmp_path / f"d.{source}", input=name)
        assert list(table.inputs) == ["one", "two"]
    refused("which d.csv does not have", "csv", tmp_path / "d.csv", input=f"{name}?")


def test_damaged_images_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    bad = [png(2)[:40], b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", None]
    images, labels = [png(1), *bad, png(3)], ["a", *"bbbb", "b"]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "d.parquet")
    table = load_table("parquet", tmp_path / "d.parquet", input="image", drop_damaged=True)
    assert (list(table.inputs), table.dropped) == ([png(1), png(3)], 4)
    assert table.where(1) == "row 6 of d.parquet"
    assert load_table("parquet", tmp_path / "d.parquet", input="image").dropped == 0
    everything = {"input": "image", "drop_damaged": True}
    pq.write_table(pa.table({"image": [b"", b"x"], "label": ["a", "b"]}), tmp_path / "d.parquet")
    refused("got 0 rows with 0 class", "parquet", tmp_path / "d.parquet", **everything)


def test_looking_for_duplicates_holds_one_file_at_a_time(tmp_path):
    for i in range(20):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i:02}.png").write_bytes(bytes([i % 15]) * 10**6)
    tracemalloc.start()
    try:
        table = load_table("folder", tmp_path, drop_duplicates=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(table), table.dropped) == (15, 5)
    assert peak < 5e6


def test_files_of_which_no_other_has_the_length_are_not_read_for_duplicates(tmp_path, monkeypatch):
    for i, content in enumerate((b"1", b"22", b"333", b"444", b"333")):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i}.png").write_bytes(content)
    read = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or whole(path))
    table = load_table("folder", tmp_path, drop_duplicates=True)
    assert sorted(path.name for path in table.inputs) == ["0.png", "1.png", "2.png", "3.png"]
    assert sorted(read) == ["2.png", "3.png", "4.png"]


def test_a_missing_image_is_named_when_it_is_decoded(tmp_path):
    table = pa.table({"image": [png(1), None, None], "label": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "d.parquet")
    loaded = load_table("parquet", tmp_path / "d.parquet", input="image")
    with pytest.raises(UserError, match=r"row 2 of d\.parquet"):
        decode_image(loaded.inputs[1], loaded.where(1))


def test_folder_of_texts_and_its_splits(tmp_path):
    for name in ("train/a/1.txt", "train/b/deep/2.txt", "Test/a/3.txt", "Test/a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    table = load_table("folder", tmp_path)
    assert sorted(zip(table.inputs, table.labels, table.split, strict=True)) == [
        ("Test/a/3.txt", "a", "test"),
        ("train/a/1.txt", "a", "train"),
        ("train/b/deep/2.txt", "b", "train"),
    ]
    plain = load_table("folder", tmp_path / "train")
    assert (plain.labels, plain.split) == (["a", "b"], None)
    (tmp_path / "train/a/1.txt").write_text(" \n")
    refused(r"no text \(data\.input\) at .*1\.txt; expected", "folder", tmp_path)


def test_folders_of_which_only_some_name_a_split(tmp_path):
    place(tmp_path, "train/a/1.txt", "train/b/2.txt", "test/a/3.txt", "extra/4.txt")
    refused("'test', 'train', 'extra' in .* of which only some name a split", "folder", tmp_path)
    (tmp_path / "extra/4.txt").unlink()
    place(tmp_path, "__MACOSX/train/a/._1.txt", "__MACOSX/x.txt", ".git/a/x.txt")
    table = load_table("folder", tmp_path)
    assert (table.labels, table.split) == (["a", "a", "b"], ["test", "train", "train"])


def test_a_class_may_be_called_train(tmp_path):
    place(tmp_path, "bus/1.txt", "train/2.txt", "train/3.txt")
    table = load_table("folder", tmp_path)
    assert (table.labels, table.split) == (["bus", "train", "train"], None)


def test_hidden_files_and_folders_are_no_examples_and_no_part_of_the_hash(tmp_path):
    """A copy in `.ipynb_checkpoints` would be a test row that was trained on."""
    root = tmp_path / ".here" / "rows"
    place(root, "a/1.txt", "b/2.txt")
    before = digest(root)
    place(root, "a/.ipynb_checkpoints/1.txt", "b/deep/.old/deeper/2.txt", "b/.2.txt", ".c/1.txt")
    assert list(load_table("folder", root).inputs) == ["a/1.txt", "b/2.txt"]
    assert digest(root) == before


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_hidden_files_of_rows_are_left_out_and_no_part_of_the_hash(tmp_path, source):
    def write(name, texts):
        rows = {"text": texts, "label": ["a", "b"]}
        if source == "parquet":
            pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        else:
            pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)

    write(".train", ["hidden", "too"])
    refused("with nothing; expected", source, tmp_path)
    write("train", ["x", "y"])
    before = digest(tmp_path)
    write("._train", ["resource", "fork"])
    assert list(load_table(source, tmp_path).inputs) == ["x", "y"]
    assert digest(tmp_path) == before


def test_folder_of_images(tmp_path):
    for name, shade in (("cat/1.png", 5), ("dog/2.png", 6), ("dog/3.png", 6)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(shade))
    (tmp_path / "README.md").write_text("beside the classes")
    (tmp_path / "dog/Thumbs.db").write_text("litter")
    table = load_table("folder", tmp_path)
    assert (table.kind, table.labels) == ("image", ["cat", "dog", "dog"])
    assert decode_image(table.inputs[1], table.where(1)).getpixel((0, 0)) == (6, 6, 6)
    assert len(load_table("folder", tmp_path, drop_duplicates=True)) == 2
    refused("kind='text'; expected only text", "folder", tmp_path, kind="text")
    refused("group='who' for source='folder'", "folder", tmp_path, group="who")
    (tmp_path / "cat/note.txt").write_text("x")
    refused("only text files or only images", "folder", tmp_path)
    (tmp_path / "cat/note.txt").rename(tmp_path / "cat/note.doc")
    refused(r"note\.doc", "folder", tmp_path)


def test_digits():
    table = load_table("digits")
    assert (len(table), table.kind, table.split, table.groups) == (1797, "image", None, None)
    assert table.classes == tuple("0123456789")
    pixels = np.stack(table.inputs)
    assert (pixels.shape, pixels.dtype) == ((1797, 8, 8), np.uint8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels[:, :, 0].mean() < 10 < pixels[:, :, 3].mean()  # white strokes on black
    assert table.labels[:3] == ["0", "1", "2"]
    image = decode_image(table.inputs[0], table.where(0))
    assert (np.asarray(image) == table.inputs[0][:, :, None]).all()


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def test_hub_reads_a_local_folder_with_its_splits(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for name, rows in (("train", [("a", 0), ("b", 1)]), ("validation", [("c", 1)])):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (tmp_path / "set" / f"{name}.jsonl").write_text("\n".join(lines))
    table = load_table("hub", tmp_path / "set")
    assert (table.inputs, table.labels) == (["a", "b", "c"], ["0", "1", "1"])
    assert table.split == ["train", "train", "val"]
    assert os.listdir(tmp_path) == ["set"]  # no cache beside the data


def test_hub_maps_class_names_and_leaves_images_undecoded(tmp_path, cache):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    images = [{"bytes": png(3), "path": None}, {"bytes": png(4), "path": None}]
    data = datasets.Dataset.from_dict({"image": images, "label": [1, 0]}, features)
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set" / "train.parquet")
    table = load_table("hub", tmp_path / "set", input="image")
    assert (table.kind, table.labels, table.inputs[0]) == ("image", ["yes", "no"], png(3))


def test_hub_that_cannot_be_loaded(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    refused("cannot be loaded", "hub", tmp_path / "empty")
    refused("got no path", "hub")


def test_missing_files_name_what_is_there(csv, tmp_path):
    refused(r"does not exist.*no 'dta\.csv', try 'data\.csv'", "csv", tmp_path / "dta.csv")
    refused("there is no 'nowhere'", "csv", tmp_path / "nowhere" / "deep" / "d.csv")
    refused("got no path", "parquet")
    refused("got no path", "folder")
    refused("a file; expected a folder", "folder", csv)
    (tmp_path / "empty").mkdir()
    refused("with nothing; expected .csv", "csv", tmp_path / "empty")
    refused("got no rows", "folder", tmp_path / "empty")


def test_a_path_that_no_system_takes(tmp_path):
    for path in ("x" * 5000, f"{tmp_path}/{'y' * 300}.csv", "a\0b"):
        refused("got ", "csv", path)


def test_unknown_source_kind_and_columns(csv):
    refused("source='cvs'.*try 'csv'", "cvs", csv)
    refused("kind='picture'", "csv", csv, kind="picture")
    refused(r"column 'txt', which data\.csv.*'who'; did you mean text", "csv", csv, input="txt")
    refused("column 'labels'.*did you mean label", "csv", csv, label="labels")
    refused("column 'spilt'.*did you mean split", "csv", csv, split="spilt")
    refused("column 'subject'", "csv", csv, input="subject+text")
    refused("expected one column", "csv", csv, input="text+who", kind="image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"text,label\n", "no rows"),
        (b"text,label\na,b\nc,d,e\n", "cannot be read"),
        (b"text,label\na,b,c\nd,e,f\n", "more fields than the header's 2"),
        (b"text,label\n\xff\xfe,b\n", "cannot be read.*UTF-8"),
        (b"text,label\nx,a\ny,a\n", "2 rows with 1 class 'a'"),
        (
            b"text,label\nx,a\ny,\nz,\n",
            r"no label \(data\.label\) at row 2 of d\.csv \(and 1 more row\)",
        ),
    ],
)
def test_bad_csv_files(tmp_path, content, message):
    (tmp_path / "d.csv").write_bytes(content)
    refused(message, "csv", tmp_path / "d.csv")


def test_other_bad_files(tmp_path):
    (tmp_path / "d.csv.gz").write_bytes(b"text,label\nx,a\n")
    refused("cannot be read", "csv", tmp_path / "d.csv.gz")
    whole = gzip.compress(os.urandom(4000).hex().encode())
    (tmp_path / "d.csv.gz").write_bytes(whole[: len(whole) // 2])
    refused("cannot be read", "csv", tmp_path / "d.csv.gz")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    refused("a Parquet file", "parquet", tmp_path / "d.parquet")
    (tmp_path / "who.csv").write_text("text,label,who\nx,a,me\ny,b,\n")
    refused(
        r"no client \(partition\.column\) at row 2 of who\.csv",
        "csv",
        tmp_path / "who.csv",
        group="who",
    )


def test_table_columns_have_one_length_and_take_keeps_places():
    with pytest.raises(ValueError, match="got 1 labels; expected 2"):
        Table("text", ["x", "y"], ["a"])
    table = Table("text", ["x", "y", "z"], ["a", "b", "c"], ["train", "test", "train"])
    taken = table.take(np.array([2, 0]))
    assert (taken.inputs, taken.labels, taken.split) == (["z", "x"], ["c", "a"], ["train"] * 2)
    assert [taken.where(0), taken.where(1)] == ["row 3 of the table", "row 1 of the table"]
