"""Rows as the model takes them: which are encoded, and how many pictures are held at a time."""

from __future__ import annotations

import io
import weakref

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedms import build, data
from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.data import decode_image
from fedms.models import load_backbone


def png(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures():
    """Twelve of two sizes, in turn."""
    inputs = [png(30 + 10 * (i % 2), 20, i) for i in range(12)]
    return data.Table("image", inputs, ["a"] * 12)


class Watched:
    """A backbone that notes how many pictures it was given, and how many there are in memory."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.alive: list[int] = []
        self.decoded: list[weakref.ref[Image.Image]] = []

    def decode(self, item, where):
        picture = decode_image(item, where)
        self.decoded.append(weakref.ref(picture))
        return picture

    def encode(self, images):
        self.given.append(len(images))
        self.alive.append(sum(picture() is not None for picture in self.decoded))
        return {"pixel_values": np.zeros((len(images), 1))}


@pytest.mark.parametrize(
    ("pixels", "chunk", "expected"),
    [
        (10**9, 1024, [12]),
        (10**9, 5, [5, 5, 2]),
        (1300, 1024, [2] * 6),  # 600 and 800 by turns
        (1, 1024, [1] * 12),
        (800, 1024, [2] * 6),
    ],
)
def test_pictures_are_decoded_as_pixels_allow(pictures, monkeypatch, pixels, chunk, expected):
    monkeypatch.setattr(build, "_PIXELS", pixels)
    monkeypatch.setattr(build, "_CHUNK", chunk)
    seen = Watched()
    monkeypatch.setattr(data, "decode_image", seen.decode)
    assert len(build.encode(seen, pictures)["pixel_values"]) == 12
    assert seen.given == expected
    assert max(expected) <= max(seen.alive) <= max(expected) + 1  # the last before may linger


@pytest.mark.parametrize("kind", ["clip", "vit", "glyphclip"])
def test_how_many_at_a_time_changes_nothing(pictures, monkeypatch, model_folder, kind):
    backbone = load_backbone(kind if kind == "glyphclip" else str(model_folder(kind)))
    whole = build.encode(backbone, pictures)["pixel_values"]
    monkeypatch.setattr(build, "_PIXELS", 1)
    assert (build.encode(backbone, pictures)["pixel_values"] == whole).all()


@pytest.fixture
def letters(tmp_path):
    """Pictures of two classes, of eleven writers: of the last a single row, which is damaged."""
    rows = [(png(24, 24, 10 * k + i), "ab"[i % 2], f"w{k}") for k in range(10) for i in range(12)]
    rows.insert(50, (png(24, 24, 0)[:60], "a", "few"))
    pd.DataFrame(rows, columns=["image", "label", "who"]).to_parquet(tmp_path / "d.parquet")
    return (
        *("data.source=parquet", f"data.path={tmp_path / 'd.parquet'}", "data.input=image"),
        *("partition.by=column", "partition.column=who", "runtime.device=cpu"),
    )


def test_rows_that_no_client_holds_are_not_encoded(letters):
    few = ("partition.max_clients=4", "partition.min_rows=5", "partition.unseen_clients=1")
    config = load_config(None, [*letters, *few])
    made, table = build.build(config), build.load_table(config)
    held = [row for row in range(len(table)) if table.groups[row] != "few"]
    backbone = made.learner.backbone
    whole = build.encode(backbone, table.take(np.array(held)))
    pixels = {row: whole["pixel_values"][at] for at, row in enumerate(held)}
    federation = made.federation
    assert len(made.unseen) == 1
    dealt = zip(
        (*federation.clients, *federation.unseen), (*made.clients, *made.unseen), strict=True
    )
    for index, client in dealt:
        assert index.id == client.id
        for split in ("train", "val", "test"):
            rows, found = getattr(index, split), client.split(split)
            assert len(rows) == len(found) > 0
            assert found.labels.tolist() == ["ab".index(table.labels[i]) for i in rows]
            assert all(
                (found.columns["pixel_values"][at] == pixels[i]).all() for at, i in enumerate(rows)
            )


def test_a_damaged_picture_of_a_client_is_named_by_its_own_row(letters):
    with pytest.raises(UserError, match=r"row 51 of d\.parquet"):
        build.build(load_config(None, letters))


def test_texts_that_no_client_holds_are_not_encoded(tmp_path, model_folder):
    words = ["cat", "my red card", "pay", "is it lost", "where", "not a dog of the blue"]
    rows = [
        (f"{words[(i * k) % 6]} {words[i % 5]}", "ab"[i % 2], f"w{k}")
        for i in range(12)
        for k in range(9)
    ]
    pd.DataFrame(rows, columns=["text", "label", "who"]).to_csv(tmp_path / "d.csv", index=False)
    config = load_config(
        None,
        [
            *("data.source=csv", f"data.path={tmp_path / 'd.csv'}", "partition.by=column"),
            *("partition.column=who", "partition.max_clients=4", "runtime.device=cpu"),
            f"model.name={model_folder('sentence')}",
        ],
    )
    made, table = build.build(config), build.load_table(config)
    whole = build.encode(made.learner.backbone, table)["input_ids"]
    for index, client in zip(made.federation.clients, made.clients, strict=True):
        for split in ("train", "val", "test"):
            found = client.split(split).columns["input_ids"]
            expected = [whole[i] for i in getattr(index, split)]
            assert [list(ids) for ids in found] == [list(ids) for ids in expected]
