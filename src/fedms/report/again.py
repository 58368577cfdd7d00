"""How a run was made, and how it is made again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from fedms.report.figures import settings
from fedms.report.html import Html, details, facts, join, table, tag
from fedms.report.records import Record

_LONGEST = 80
"""Characters of a setting that are shown where runs are compared."""


def again(record: Record) -> Html:
    """Commands, environment and configuration."""
    environment = record.environment
    plain = {k: _said(v) for k, v in environment.items() if not isinstance(v, dict)}
    packages = {k: _said(v) for k, v in environment.get("packages", {}).items()}
    known = {k: _said(v) for k, v in environment.get("identity", {}).items()}
    return join(
        [
            tag("p", _how(record)),
            tag("pre", tag("code", _commands(record)), class_="command", tabindex=0),
            facts(plain),
            details("Versions", facts(packages)) if packages else "",
            details("Data, weights and machine, by which it is known", facts(known))
            if known
            else "",
            details("The resolved configuration", tag("pre", tag("code", record.text), tabindex=0)),
        ]
    )


def _how(record: Record) -> str:
    if record.elsewhere:
        return (
            "This run was performed with sites on other machines. Write the settings below into "
            "the deployment’s configuration, and submit it again from the server’s folder:"
        )
    if record.given:
        return (
            "A Python program gave the rows. With the same data sets, on the same code and kind "
            "of machine, this gives the same numbers, to the bit:"
        )
    return (
        "On the same code, data and kind of machine this gives the same numbers, to the bit. "
        "Call it from where the run was started: paths in the configuration are relative to that."
    )


def _commands(record: Record) -> str:
    folder = record.path.as_posix()
    paths = f"{folder}-again", f"{folder}/config.toml"
    out, config = map(repr if record.given else shlex.quote, paths)
    commit = record.environment.get("git_commit")
    lines = []
    if commit:
        clean = str(commit).removesuffix("-dirty")
        changed = "  # with changes that were not committed" if clean != commit else ""
        lines.append(f"git checkout {shlex.quote(clean)}{changed}")
    if record.elsewhere:
        lines.append(f"fedms submit DEPLOYMENT --out {out}")
    elif record.given:
        lines.append(f"FedMS(config={config}).fit(datasets, out={out})")
    else:
        lines.append(f"fedms run {config} --out {out}")
    return "\n".join(lines)


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differences(records: Sequence[Record], names: Sequence[str]) -> Html:
    """Settings in which runs differ, and what else they were made with that does."""
    found = [_all(record) for record in records]
    keys = list(dict.fromkeys(key for one in found for key in one))
    unlike = [key for key in keys if len({one.get(key) for one in found}) > 1]
    if not unlike:
        return tag("p", "All runs have the same settings, code and machine.")
    rows = [[key, *(_short(one.get(key, "–")) for one in found)] for key in unlike]
    return table("What differs between the runs", ("setting", *names), rows, class_="words")


def _all(record: Record) -> dict[str, str]:
    environment = record.environment
    known = {k: _said(v) for k, v in environment.get("identity", {}).items()}
    known |= {k: _said(environment.get(k)) for k in ("git_commit", "processor", "threads")}
    return settings(record.config) | {f"({name})": value for name, value in known.items()}


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
