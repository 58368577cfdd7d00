"""The 62 characters and the captions that describe them.

A class is one of ``0-9A-Za-z``. Its caption is composed at random from a frame ("a photo of"),
a noun ("the handwritten character", "the digit") and a name, which is either the raw character
("7", "q") or words ("seven", "lowercase letter q"). Composition, rather than a fixed list, is
what lets the text tower accept templates it has not met.
"""

import random
import string

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

FRAMES = (
    ("", 4),
    ("a photo of ", 6),
    ("a picture of ", 1),
    ("an image of ", 2),
    ("a scan of ", 1),
    ("a drawing of ", 1),
    ("a blurry photo of ", 1),
    ("a close-up photo of ", 1),
    ("a low resolution photo of ", 1),
    ("a black and white photo of ", 1),
    ("this is ", 1),
    ("this is a photo of ", 1),
)
ARTICLES = ("the", "the", "a", "a", "")
ADJECTIVES = ("", "", "", "", "handwritten", "handwritten", "printed", "written", "typed", "single")
NOUNS = ("character", "character", "character", "symbol", "glyph", "sign", "class", "")

RECOMMENDED = ("a photo of the character {label}", "a photo of the digit {label}", "{label}")
"""Templates over raw labels; the middle one is meant for the ten digits only."""

# Evaluated but never composed during training: the frames or adjectives below are held out.
UNSEEN = ("a snapshot of the character {label}", "a neatly handwritten {label}")


def words(char: str) -> str:
    """Name a class in words: ``7`` -> "digit seven", ``A`` -> "capital letter A"."""
    if char.isdigit():
        return f"digit {DIGIT_WORDS[int(char)]}"
    return f"{'capital' if char.isupper() else 'lowercase'} letter {char}"


def caption(char: str, rng: random.Random) -> str:
    """Compose one random caption of ``char`` that never contradicts its case or kind."""
    name = _plain_name(char, rng) if rng.random() < 0.6 else _worded_name(char, rng)
    adjective = rng.choice(ADJECTIVES)
    frame = rng.choices([text for text, _ in FRAMES], [weight for _, weight in FRAMES])[0]
    body = " ".join(part for part in (rng.choice(ARTICLES), adjective, name) if part)
    if rng.random() < 0.25:
        body = name
    return frame + body + ("." if rng.random() < 0.1 else "")


def _plain_name(char: str, rng: random.Random) -> str:
    """Return the raw character, perhaps quoted, perhaps after a noun such as "character"."""
    kinds = ("digit", "number", "numeral") if char.isdigit() else ("letter", "letter")
    noun = rng.choice(NOUNS) if rng.random() < 0.65 else rng.choice(kinds)
    label = rng.choice(('"{}"', "'{}'")).format(char) if rng.random() < 0.1 else char
    return f"{noun} {label}".strip()


def _worded_name(char: str, rng: random.Random) -> str:
    """Return words: "seven", "number seven", "uppercase letter A", "small q"."""
    if char.isdigit():
        noun = rng.choice(("", "digit", "digit", "number", "numeral", "character"))
        return f"{noun} {DIGIT_WORDS[int(char)]}".strip()
    kind = rng.choice(("capital", "uppercase") if char.isupper() else ("lowercase", "small"))
    shown = char.upper() if rng.random() < 0.15 else char
    return f"{kind} {rng.choice(('letter ', 'letter ', 'character ', ''))}{shown}"
