"""Write `docs/options.md`, every option of the schema: `python docs/options.py`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from fedms.config import Config, Section
from fedms.store.files import write_text

PAGE = Path(__file__).with_name("options.md")
LOG = Path(__file__).with_name("research-log.md")
HEAD = """# Every option

Options stand in a TOML file, by section, and on the command line as `section.key=value`, which
wins:

    fedms run recipes/banking77.toml stage1.rounds=5 sal.trigger=all

Lists and tables, and names with a star, stand in single quotes there, or the shell takes them for
its own: `'tracking.to=["tensorboard", "mlflow"]'`, `'sal.caps.*=2'`.

Whatever is unknown, of the wrong type or out of range is an error that names the key. Which
settings to begin with is on [a page of its own](settings.md). This page is made from the schema by
`python docs/options.py`.

A date beside a default leads to the entry of the [research log](research-log.md) by which it was
chosen, or kept. Where there is none, no entry decided it.
"""


def page() -> str:
    """The page as the schema has it now."""
    schema = Config.model_json_schema()
    fields = Config.model_fields.items()
    nested: dict[str, type[Section]] = {
        n: f.annotation
        for n, f in fields
        if isinstance(f.annotation, type) and issubclass(f.annotation, Section)
    }
    own = [n for n in Config.model_fields if n not in nested]
    parts = [HEAD, "## At the top of the file\n", _table(Config, own, schema, "")]
    for name, section in nested.items():
        said = " ".join(str(section.__doc__).split())
        inside = schema["$defs"][section.__name__]
        parts += [f"\n## {name}\n\n{said}\n", _table(section, section.model_fields, inside, name)]
    return "\n".join(parts) + "\n"


def _table(
    section: type[Section], names: Iterable[str], schema: Mapping[str, Any], prefix: str
) -> str:
    rows = ["| option | default | may be | what it is |", "|---|---|---|---|"]
    for name in names:
        field = section.model_fields[name]
        key = f"{prefix}.{name}" if prefix else name
        values = ", ".join(_values(schema["properties"][name]))
        default = _default(field) + _evidence(schema["properties"][name])
        cells = (f"`{key}`", default, values, str(field.description))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _evidence(found: Mapping[str, Any]) -> str:
    """A link to the entry by which the default was chosen, where there is one."""
    if "evidence" not in found:
        return ""
    heading = entry(found["evidence"])
    return f" ([{heading.split()[0]}](research-log.md#{anchor(heading)}))"


def entry(start: str) -> str:
    """The one heading of the research log that begins so."""
    headings: list[str] = re.findall(r"^## (.+)$", LOG.read_text(encoding="utf-8"), re.MULTILINE)
    found = [heading for heading in headings if heading.startswith(start)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} entries of {LOG.name} begin with {start!r}; expected 1")
    return found[0]


def anchor(heading: str) -> str:
    """What the built page calls a heading (as Python-Markdown does)."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def _values(found: Mapping[str, Any]) -> Iterator[str]:
    """What a value may be, as a schema of JSON says it."""
    for one in found.get("anyOf", ()):
        yield from _values(one)
    if "enum" in found:
        yield from (f"`{value}`" for value in found["enum"])
        return
    kind = found.get("type")
    if kind == "string" and "pattern" in found:
        yield "a size as `500MB`" if "KMG" in found["pattern"] else "a word"
    elif kind == "array":
        yield "a list of words"
    elif kind == "object":
        yield "a table by name"
    elif kind not in (None, "null"):
        yield _NAMES[str(kind)] + _range(found)


_NAMES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
}


def _range(found: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {found[key]:g}" for key, sign in signs.items() if key in found]
    return f" {', '.join(said)}" if said else ""


if __name__ == "__main__":
    write_text(PAGE, page())
