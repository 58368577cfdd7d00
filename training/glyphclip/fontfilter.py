"""Decide which font faces are worth training on.

Debian's font packages repeat Latin glyphs across files (weights, script-specific Noto files) and
contain faces whose letters are symbols. Three tests, none of which sees handwriting: near-copies
are dropped, faces that a nearest-neighbour vote over other faces cannot read are dropped, and
lowercase letters drawn as small capitals are dropped.
"""

import numpy as np
from captions import CHARACTERS
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

COPY_SIMILARITY = 0.97
READABLE_SHARE = 0.4
DISTINCT_CASES = "abdeghnqrt"
"""Letters whose two cases differ in shape, so that likeness betrays small capitals."""


def describe(images: Images) -> Floats:
    """Describe each glyph by its centred, unit-length 16 x 16 average; shape ``(n, 256)``."""
    small = images.reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4), dtype=np.float32)
    flat = small.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit


def keep_faces(names: list[str], images: Images, per_family: int) -> list[int]:
    """Choose faces greedily: no near-copy of one already kept, few of one family."""
    vectors = np.stack([describe(face).ravel() for face in images]) / len(CHARACTERS) ** 0.5
    kept: list[int] = []
    count: dict[str, int] = {}
    for index, name in enumerate(names):
        if count.get(name, 0) >= per_family:
            continue
        if kept and float((vectors[kept] @ vectors[index]).max()) > COPY_SIMILARITY:
            continue
        kept.append(index)
        count[name] = count.get(name, 0) + 1
    return kept


def readable(images: Images, references: int = 200, neighbours: int = 9) -> NDArray[np.bool_]:
    """Say which faces other faces can read, ignoring case, by nearest-neighbour vote."""
    chosen = np.linspace(0, len(images) - 1, min(references, len(images))).astype(int)
    folded = np.array([CHARACTERS.index(char.upper()) for char in CHARACTERS])
    library = np.concatenate([describe(images[i]) for i in chosen])
    owner = np.repeat(chosen, len(CHARACTERS))
    labels = np.tile(folded, len(chosen))
    result = np.zeros(len(images), dtype=bool)
    for index, face in enumerate(images):
        likeness = describe(face) @ library.T
        likeness[:, owner == index] = -1.0
        near = labels[np.argpartition(-likeness, neighbours, axis=1)[:, :neighbours]]
        votes = np.apply_along_axis(np.bincount, 1, near, minlength=len(CHARACTERS))
        result[index] = (votes.argmax(axis=1) == folded).mean() >= READABLE_SHARE
    return result


def same_case(face: Images) -> NDArray[np.bool_]:
    """Mark the lowercase glyphs of a small-capitals face; shape ``(62,)``."""
    vectors = describe(face)
    pairs = [(CHARACTERS.index(c), CHARACTERS.index(c.upper())) for c in DISTINCT_CASES]
    alike = sum(float(vectors[low] @ vectors[high]) > 0.85 for low, high in pairs)
    lower = np.array([char.islower() for char in CHARACTERS])
    return lower if alike >= 3 else np.zeros_like(lower)
