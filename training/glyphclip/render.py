"""Render fonts and stroke templates once into a bank of 64 x 64 glyphs.

``Bank.images`` holds white-on-black glyphs fitted to a 52-pixel box. Fonts appear twice: as drawn
("solid") and thinned to a one-pixel skeleton ("line"), because a skeleton redrawn with a random
pen resembles a pen more than a printed serif does. Stroke templates are lines as well.
"""

import argparse
import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import CHARACTERS
from fontfilter import keep_faces, readable, same_case
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from strokes import draw

SIZE, BOX, POINT = 64, 52, 72
SOURCES = ("solid", "line", "stroke")
FACES_PER_FAMILY = 4
SUFFIXES = (".ttf", ".otf", ".pfb")
Images = NDArray[np.uint8]
log = logging.getLogger("glyphclip.render")


@dataclass(frozen=True)
class Bank:
    """Glyphs with, for each, its class, source (index of ``SOURCES``) and family name."""

    images: Images
    classes: NDArray[np.int64]
    sources: NDArray[np.int64]
    families: NDArray[np.str_]

    def save(self, path: Path) -> None:
        """Write the bank as a compressed archive without pickles."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Bank":
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            return cls(**{name: archive[name] for name in archive.files})


def fit(glyph: Image.Image) -> Images | None:
    """Crop ink and scale its longer side to ``BOX``; None if there is no ink."""
    bounds = glyph.getbbox()
    if bounds is None:
        return None
    ink = glyph.crop(bounds)
    scale = BOX / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))),
        Image.Resampling.BILINEAR,
    )
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return np.asarray(canvas)


def render_face(path: Path) -> tuple[str, Images] | None:
    """Render all characters of one font file, or None if any is missing or unusable."""
    try:
        font = ImageFont.truetype(str(path), POINT)
        # A character no font has shows what this font draws for a missing glyph.
        missing = _mask(font, "\U000f1234")
        glyphs = [_mask(font, char) for char in CHARACTERS]
    except (OSError, ValueError):
        return None
    if any(g.size == missing.size and g.tobytes() == missing.tobytes() for g in glyphs):
        return None
    fitted = [fit(glyph) for glyph in glyphs]
    if any(glyph is None for glyph in fitted):
        return None
    family = str(font.getname()[0] or path.stem)
    return family, np.stack([glyph for glyph in fitted if glyph is not None])


def _mask(font: ImageFont.FreeTypeFont, char: str) -> Image.Image:
    """Draw one character in white on black with room for swashes."""
    canvas = Image.new("L", (4 * POINT, 4 * POINT))
    ImageDraw.Draw(canvas).text((1.5 * POINT, 1.2 * POINT), char, fill=255, font=font)
    return canvas


def render_fonts(roots: list[Path], workers: int) -> tuple[list[str], Images]:
    """Render every usable, distinct face under ``roots``; shape ``(faces, 62, 64, 64)``."""
    paths = sorted(p for root in roots for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    log.info("%d font files", len(paths))
    with ProcessPoolExecutor(workers) as pool:
        faces = [face for face in pool.map(render_face, paths, chunksize=16) if face is not None]
    names, images = [name for name, _ in faces], np.stack([glyphs for _, glyphs in faces])
    kept = keep_faces(names, images, FACES_PER_FAMILY)
    log.info("%d complete faces, %d after removing near-copies", len(names), len(kept))
    names, images = [names[i] for i in kept], images[kept]
    good = np.flatnonzero(readable(images))
    log.info("%d readable faces of %d families", len(good), len({names[i] for i in good}))
    return [names[i] for i in good], images[good]


def thin(images: Images, threshold: int = 100) -> Images:
    """Reduce glyphs to one-pixel skeletons by Zhang-Suen thinning, all at once.

    A pixel is peeled off when it has 2-6 ink neighbours, exactly one background-to-ink change
    around it, and lies on the side that this half-pass peels.
    """
    ink = np.pad(images > threshold, ((0, 0), (1, 1), (1, 1)))
    for _ in range(SIZE):
        before = int(ink.sum())
        for half in (0, 1):
            ink &= ~_peel(ink, half)
        if int(ink.sum()) == before:
            break
    return (ink[:, 1:-1, 1:-1] * 255).astype(np.uint8)


def _peel(ink: NDArray[np.bool_], half: int) -> NDArray[np.bool_]:
    """Mark the pixels that one half-pass of Zhang-Suen removes."""
    turns = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    around = [np.roll(ink, (-dy, -dx), axis=(1, 2)) for dy, dx in turns]
    count = np.sum(around, axis=0, dtype=np.uint8)
    pairs = zip(around, around[1:] + around[:1], strict=True)
    changes = np.sum([~here & after for here, after in pairs], axis=0, dtype=np.uint8)
    north, east, south, west = around[0], around[2], around[4], around[6]
    if half == 0:
        side = ~(north & east & south) & ~(east & south & west)
    else:
        side = ~(north & east & west) & ~(north & south & west)
    marked: NDArray[np.bool_] = ink & (count >= 2) & (count <= 6) & (changes == 1) & side
    return marked


def build(roots: list[Path], drawings: int, seed: int, workers: int) -> Bank:
    """Render fonts (solid and thinned) and ``drawings`` stroke pictures of every class."""
    names, images = render_fonts(roots, workers)
    labels = np.tile(np.arange(len(CHARACTERS)), len(names))
    families = np.repeat(np.array(names), len(CHARACTERS))
    # Small-capital faces would teach that "a" looks like "A": keep their other characters only.
    usable = ~np.concatenate([same_case(face) for face in images])
    solid = images.reshape(-1, SIZE, SIZE)[usable]
    labels, families = labels[usable], families[usable]
    rng = np.random.default_rng(seed)
    drawn = np.stack([draw(char, rng, SIZE, BOX) for _ in range(drawings) for char in CHARACTERS])
    lines = np.concatenate([thin(chunk) for chunk in np.array_split(solid, len(solid) // 1000 + 1)])
    return Bank(
        np.concatenate([solid, lines, drawn]),
        np.concatenate([labels, labels, np.tile(np.arange(len(CHARACTERS)), drawings)]),
        np.repeat(np.arange(3), [len(solid), len(solid), len(drawn)]),
        np.concatenate([families, families, np.full(len(drawn), "strokes")]),
    )


def main() -> None:
    """Command line: render a bank to disk."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("roots", nargs="+", type=Path, help="folders that hold font files")
    parser.add_argument("--out", type=Path, default=Path("glyphs.npz"))
    parser.add_argument("--drawings", type=int, default=400, help="stroke pictures per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bank = build(args.roots, args.drawings, args.seed, args.workers)
    bank.save(args.out)
    log.info("%s: %d glyphs", args.out, len(bank.images))


if __name__ == "__main__":
    main()
