"""One door from whatever a source holds for an image to an RGB picture.

Tables keep images as they lie on disk (encoded bytes or a path): light, and decoded only when an
example is needed.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedms.core.errors import UserError
from fedms.data.messages import reason

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim to be huge."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""As Pillow names them: of these it runs no other program, as it does of EPS."""

_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_CORRUPT = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def decode_image(item: Any, where: str, most: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB, upright as its EXIF orientation says.

    Grey, palette, CMYK and two-level pictures are converted, 16-bit grey keeps its upper 8 bits,
    transparent pixels are laid over white. Of an animation the first frame is taken.

    Args:
        item: encoded bytes, a path, a PIL image, or a uint8 array `(height, width)` or
            `(height, width, 3)`.
        where: names the row in errors, e.g. "row 17 of data.parquet".
        most: pixels.

    Raises:
        UserError: if the picture is corrupt, of an unsupported mode, or has more pixels.
    """
    try:
        with _open(item) as image:
            _check_size(image.size, where, most)
            return _to_rgb(ImageOps.exif_transpose(image), where)
    except _BOMB as error:
        raise _too_large(reason(error), where, most) from error
    except _CORRUPT as error:
        unknown = isinstance(error, UnidentifiedImageError) and isinstance(item, bytes)
        why = "of no known format" if unknown else reason(error)
        raise UserError(
            f"got an image that cannot be decoded at {where} ({why}); expected a "
            f"complete PNG, JPEG, WebP or other common picture; try replacing or removing it"
        ) from error


def _open(item: Any) -> Any:
    if isinstance(item, Image.Image):
        return nullcontext(item)  # the caller's: left open
    if isinstance(item, bytes):
        return Image.open(io.BytesIO(item), formats=FORMATS)
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    if isinstance(item, str | Path):
        return Image.open(item, formats=FORMATS)
    raise TypeError(f"a {type(item).__name__} is no image")


def _check_size(size: tuple[int, int], where: str, most: int) -> None:
    if size[0] * size[1] > most:
        raise _too_large(f"{size[0]}x{size[1]} pixels", where, most)


def _too_large(got: str, where: str, most: int) -> UserError:
    return UserError(
        f"got a huge image at {where} ({got}); expected at most {most:,} pixels; "
        f"try scaling it down or removing it"
    )


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise UserError(
            f"got an image of floating-point pixels at {where}; expected 8- or 16-bit pixels; "
            f"try saving it as PNG"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
