"""Prompts of classes: what stands in a template in place of a label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def class_prompts(
    template: str | Sequence[str], classes: Sequence[str], names: Mapping[str, str] | None = None
) -> list[list[str]]:
    """For every template, the prompt of every class.

    A class stands as `names` gives it; else as its label, with `_`, `.` and `-` between letters
    read as spaces.
    """
    templates = [template] if isinstance(template, str) else list(template)
    words = [(names or {}).get(label) or readable(label) for label in classes]
    return [[t.replace("{label}", word) for word in words] for t in templates]


def readable(label: str) -> str:
    """`card_arrival` and `talk.politics.misc` as words; labels of one character as they are."""
    return re.sub(r"(?<=\w)[_.\-]+(?=\w)", " ", label) if len(label) > 1 else label
