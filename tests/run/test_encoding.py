"""Rows as the model takes them: which are encoded, and how many pictures are held at a time."""

from __future__ import annotations

import gc
import io

import numpy as np
import pytest
from PIL import Image

from fedms import build, data
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

    def encode(self, images):
        self.given.append(len(images))
        gc.collect()
        self.alive.append(sum(type(o) is Image.Image for o in gc.get_objects()))
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
    gc.collect()
    before = sum(type(o) is Image.Image for o in gc.get_objects())
    seen = Watched()
    assert len(build.encode(seen, pictures)["pixel_values"]) == 12
    assert seen.given == expected
    assert max(seen.alive) - before <= max(expected) + 1  # the last of the ones before may linger


@pytest.mark.parametrize("kind", ["clip", "vit", "glyphclip"])
def test_how_many_at_a_time_changes_nothing(pictures, monkeypatch, model_folder, kind):
    backbone = load_backbone(kind if kind == "glyphclip" else str(model_folder(kind)))
    whole = build.encode(backbone, pictures)["pixel_values"]
    monkeypatch.setattr(build, "_PIXELS", 1)
    assert (build.encode(backbone, pictures)["pixel_values"] == whole).all()
