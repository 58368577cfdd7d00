"""Words for the errors of this package: what there is, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def listing(names: Iterable[str], most: int = 8) -> str:
    """The names, quoted and comma-separated; after `most` of them only how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"


def nearest(word: str, names: Iterable[str]) -> str:
    """What to try instead of `word`: the closest of `names`, else their listing."""
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return repr(by_lower[close[0]]) if close else f"one of {listing(names)}"


def reason(error: BaseException) -> str:
    """The error's own text on one line, at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
