"""The service's description as a page of its own: no scripts, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for it."""
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#f4f4f4;padding:.75rem;overflow:auto}summary{cursor:pointer}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}pre{background:#222}"
    "a{color:#9cf}}"
)


def page(described: Mapping[str, Any]) -> str:
    """A page from an OpenAPI description."""
    info, parts = described["info"], []
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            parts.append(_operation(path, method.upper(), about))
    schemas = described["components"]["schemas"].items()
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info['description'])}</p>",
            '<p>For programs: <a href="openapi.json">openapi.json</a></p>',
            *parts,
            "<h2>Schemas</h2>",
            *(_folded(name, about) for name, about in schemas),
            "</body></html>",
        ]
    )


def _operation(path: str, method: str, about: Mapping[str, Any]) -> str:
    answers = ", ".join(
        f"{code}: {escape(answer['description'])}" for code, answer in about["responses"].items()
    )
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
    asks = f'<p>Body: <a href="#{escape(name)}">{escape(name)}</a></p>' if name else ""
    said = escape(about.get("description", about.get("summary", "")))
    return f"<h2>{escape(method)} {escape(path)}</h2><p>{said}</p>{asks}<p>{answers}</p>"


def _folded(name: str, about: Any) -> str:
    text = escape(json.dumps(about, indent=2, ensure_ascii=False))
    return (
        f'<details id="{escape(name)}" open><summary>{escape(name)}</summary>'
        f"<pre>{text}</pre></details>"
    )
