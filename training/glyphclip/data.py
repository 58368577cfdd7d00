"""Which glyphs train, which validate, and how often each is drawn.

The split is by font family, so validation letters come from designers the model has not met.
Sampling is even over families, not over files, with more weight on faces that imitate a hand.
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from captions import CHARACTERS
from numpy.typing import NDArray
from render import SOURCES, Bank
from torch import Tensor

SOURCE_SHARE = {"solid": 0.35, "line": 0.3, "stroke": 0.35}
DIGIT_WEIGHT = 3.0
"""Digits are drawn this much more often than letters, as on forms, which are mostly digits.
It settles what to answer for shapes that a tight crop makes identical (0/O/o, 1/I/l)."""

HAND = re.compile(
    r"because we|dkg|domestic|humor|rufscript|kiloji|seto|yoz|yusei|klee|nanum (pen|brush)|barunpen"
    r"|purisa|comic|tomson|scrawl|chilanka|karumbi|kaushan|dancing|abogado|hand me|abecedario|jara"
    r"|punk nova|casual|magicmarker|fetamont script|aoyagi|yeonsung|kirang|augie|frc|breip|femke"
    r"|kristi|delphine|stevehand|isabella|joscelyn|days ago|because|aurical|calligra|lobster|scribb"
    r"|ecolier|jsmath|manuscript|lemonada|leckerli|script|eunjin|uroob|pauklay|kouzan|foek",
    re.IGNORECASE,
)
HAND_WEIGHT = 4.0

HEIGHT = torch.tensor(
    [0.7 if c in "acemnorsuvwxz" else 0.85 if c in "it" else 1.0 for c in CHARACTERS]
)
"""Usual size of each class against a capital letter, used where the frame keeps size."""


@dataclass(frozen=True)
class Split:
    """Row numbers of a bank: training rows and two held-out groups."""

    train: NDArray[np.int64]
    held: NDArray[np.int64]
    held_hand: NDArray[np.int64]


def family_key(name: str) -> str:
    """Reduce a family name so that relatives share it: "Noto Sans" and "Noto Serif" -> "noto"."""
    return re.split(r"[\s\d_-]", name.lower().strip("?. "))[0][:5] or name


def split(bank: Bank) -> Split:
    """Hold out about a tenth of the families, a fifth of those that imitate a hand."""
    names = np.unique(bank.families)
    hand = {name: bool(HAND.search(name)) for name in names}
    code = {name: zlib.crc32(family_key(name).encode()) for name in names}
    held = {n for n in names if n != "strokes" and code[n] % (5 if hand[n] else 10) == 0}
    is_held = np.array([name in held for name in bank.families])
    is_hand = np.array([hand[name] for name in bank.families])
    return Split(
        np.flatnonzero(~is_held), np.flatnonzero(is_held), np.flatnonzero(is_held & is_hand)
    )


class Sampler:
    """Draws random training batches from a bank, seeded."""

    def __init__(self, bank: Bank, rows: NDArray[np.int64], seed: int) -> None:
        self.bank = bank
        self.rows = rows
        self.rng = np.random.default_rng(seed)
        self.edges = np.cumsum(_weights(bank, rows))

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return uint8 glyphs ``(count, 64, 64)``, their classes and the skeleton mark."""
        points = self.rng.random(count) * self.edges[-1]
        return take(self.bank, self.rows[np.searchsorted(self.edges, points, side="right")])


def take(bank: Bank, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Return glyphs, classes and skeleton marks of the given rows."""
    images = torch.from_numpy(bank.images[rows])
    classes = torch.from_numpy(bank.classes[rows])
    return images, classes, torch.from_numpy(bank.sources[rows] != SOURCES.index("solid"))


def _weights(bank: Bank, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight rows: the share of each source, even over classes and families within it."""
    hand = {name: HAND_WEIGHT if HAND.search(name) else 1.0 for name in np.unique(bank.families)}
    keys = [family_key(name) for name in bank.families[rows]]
    _, key = np.unique(keys, return_inverse=True)
    source, classes = bank.sources[rows], bank.classes[rows]
    cell = (key * len(SOURCES) + source) * len(CHARACTERS) + classes
    weight: NDArray[np.float64] = np.array([hand[name] for name in bank.families[rows]])
    # A family's faces share its weight; the square root leaves large families a little more.
    weight /= np.sqrt(np.bincount(cell)[cell])
    digit = np.array([DIGIT_WEIGHT if char.isdigit() else 1.0 for char in CHARACTERS])
    group = source * len(CHARACTERS) + classes
    share = np.array([SOURCE_SHARE[name] for name in SOURCES])
    weight /= np.bincount(group, weight)[group]
    weight *= digit[classes] * share[source]
    return weight
