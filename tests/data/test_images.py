"""Images of every kind come out as RGB; broken and huge ones are refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedms.core.errors import UserError
from fedms.data import decode_image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def pixel(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(image)[0, 0])


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (10, 0), (255, 255, 255)),
        ("I;16", 0xAB12, (0xAB, 0xAB, 0xAB)),
    ],
)
def test_png_modes_become_rgb(mode, colour, expected):
    image = decode_image(encoded(Image.new(mode, (4, 3), colour)), "row 1")
    assert (image.mode, image.size, pixel(image)) == ("RGB", (4, 3), expected)


def test_palette_and_cmyk():
    palette = Image.new("RGB", (4, 3), (0, 153, 0)).convert("P")
    assert pixel(decode_image(encoded(palette), "row 1")) == (0, 153, 0)
    raw = io.BytesIO()
    palette.save(raw, "PNG", transparency=palette.getpixel((0, 0)))
    assert pixel(decode_image(raw.getvalue(), "row 1")) == (255, 255, 255)
    cmyk = Image.new("CMYK", (4, 3), (0, 0, 0, 255))
    for kind in ("TIFF", "JPEG"):
        assert max(pixel(decode_image(encoded(cmyk, kind), "row 1"))) < 3


MODES = ["1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]


@pytest.mark.parametrize("mode", [*MODES, "I", "I;16", "I;16B", "I;16L", "F", "La"])
def test_every_mode_is_converted_or_refused_by_name(mode):
    image, said = Image.new(mode, (4, 3)), ""
    try:
        assert decode_image(image, "row 1").mode == "RGB"
    except UserError as error:
        said = str(error)
    assert ("row 1" in said) == (mode in ("F", "La"))


def test_no_program_is_started_for_a_picture(monkeypatch):
    """As Pillow starts Ghostscript for PostScript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(UserError, match="row 1"):
        decode_image(encoded(Image.new("RGB", (4, 3)), "EPS"), "row 1")


def test_paths_pil_images_and_arrays(tmp_path):
    grey = Image.new("L", (2, 2), 7)
    grey.save(tmp_path / "a.png")
    items = [tmp_path / "a.png", str(tmp_path / "a.png"), grey, np.full((2, 2), 7, np.uint8)]
    assert [pixel(decode_image(item, "row 1")) for item in items] == [(7, 7, 7)] * 4


def test_a_pil_image_is_left_open_and_as_it_was(tmp_path):
    frames = [Image.new("L", (2, 2), shade) for shade in (7, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as image:
        one, two = decode_image(image, "row 1"), decode_image(image, "row 1")
        assert one.tobytes() == two.tobytes() == bytes([7]) * 12
        image.seek(1)  # the file is still open


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue(), "row 1").size == (2, 4)


@pytest.mark.parametrize("item", [b"", b"not an image", None, 3, "no/such/file.png"])
def test_not_an_image(item):
    with pytest.raises(UserError, match=r"row 17 of data\.parquet"):
        decode_image(item, "row 17 of data.parquet")


def test_truncated_image():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    data = encoded(Image.fromarray(noise))
    with pytest.raises(UserError, match="row 3"):
        decode_image(data[: len(data) // 2], "row 3")


def test_floating_point_pixels_are_refused():
    with pytest.raises(UserError, match="floating-point"):
        decode_image(encoded(Image.new("F", (2, 2)), "TIFF"), "row 1")


def chunks(side: int, *more: tuple[bytes, bytes]) -> bytes:
    """A grey PNG file of these parts."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), *more, (b"IEND", b""))
    )


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_bombs_beside_the_pixels_are_refused(name):
    words = b"a\0\0" + zlib.compress(bytes(50_000_000))
    with pytest.raises(UserError, match="row 5"):
        decode_image(chunks(2, (name, words), (b"IDAT", zlib.compress(bytes(6)))), "row 5")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_200, 9_999, 60_000])
def test_bombs_are_refused_before_decoding(side):
    data = chunks(side, (b"IDAT", zlib.compress(b"")))
    with pytest.raises(UserError, match=r"huge image at row 5 .* 64,000,000 pixels"):
        decode_image(data, "row 5")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_user_error(kind, data):
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    raw = bytearray(encoded(Image.fromarray(noise), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    message, image = "", None
    try:
        image = decode_image(bytes(raw), "row 1")
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert ("row 1" in message) if image is None else (image.mode == "RGB")
