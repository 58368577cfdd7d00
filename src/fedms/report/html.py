"""HTML from Python: what is no markup yet is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


_EMPTY = ("br", "meta", "input")
"""Elements without an end."""


def tag(name: str, *children: str, **attributes: str | int | float | bool | None) -> Html:
    """An element. Text in it is escaped; `Html` is not.

    Args:
        name: of the element.
        children: in order.
        attributes: `class_` is class and `data_run` is data-run; True: without a value; False and
            None: left out.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _EMPTY:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """One after the other."""
    return Html("".join(p if isinstance(p, Html) else html.escape(p, quote=False) for p in parts))


def number(value: float | None, text: str, key: str | None = None) -> Html:
    """A figure as text, with its value, and where it stands in `summary.json`; a dash for none."""
    return tag("data", text, value=repr(value), data_key=key) if value is not None else Html("–")


def signed(difference: float) -> str:
    """A difference of accuracies, in points."""
    tenths = round(1000 * difference)
    return f"{'+' if tenths > 0 else '−' if tenths < 0 else '±'}{abs(tenths) / 10:.1f}"


def shown(value: float | None, read: Callable[[float], str]) -> str:
    """A figure as people read it; a dash for none."""
    return "–" if value is None else read(value)


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], **attributes: str | bool
) -> Html:
    """A table whose first column names its rows, in a box of its own that can scroll sideways."""
    titles = join(tag("th", title, scope="col") for title in head)
    body = join(
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    )
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", titles)),
        tag("tbody", body),
        **attributes,
    )
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def details(title: str, *inside: str) -> Html:
    """What can be unfolded."""
    return tag("details", tag("summary", title), *inside)


def facts(pairs: Mapping[str, str]) -> Html:
    """Names and what they are."""
    return tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs.items()))


def script_json(value: Any) -> Html:
    """JSON that can stand in a script element: nothing in it ends that, or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)
