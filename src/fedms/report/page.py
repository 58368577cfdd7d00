"""The page: one file with all that it needs."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from fedms.report import again, answer, tables
from fedms.report.figures import MOST_PAIRS, figures
from fedms.report.html import Html, details, join, script_json, tag
from fedms.report.records import Record

_SCRIPTS = ("base.js", "charts.js", "heat.js", "clients.js", "sections.js")
"""Parts of the page's script, in order."""


def document(records: Sequence[Record]) -> str:
    """One HTML document of one run or several."""
    names = labels(records)
    data = [figures(record, pairs=MOST_PAIRS // len(records)) for record in records]
    for one, name in zip(data, names, strict=True):
        one["name"] = name
    several = len(records) > 1
    runs = [
        _run(record, one, i, records if several else ())
        for i, (record, one) in enumerate(zip(records, data, strict=True))
    ]
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    code = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = records[0].title if not several else f"{len(records)} runs side by side"
    parts = {
        "TITLE": tag("title", f"{title} – fedms"),
        "POLICY": tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{code}'; "
            "base-uri 'none'; form-action 'none'",
        ),
        "STYLE": tag("style", Html(_asset("report.css"))),
        "BODY": join([_side_by_side(records, names) if several else Html(""), *runs]),
        "DATA": tag("script", script_json(data), type="application/json", id="data"),
        "SCRIPT": tag("script", Html(script)),
    }
    return _filled(_asset("template.html"), parts)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with its parts, none of which is looked at for others."""
    pieces = template.split("%%")
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def _asset(name: str) -> str:
    return (files("fedms.report") / "assets" / name).read_text(encoding="utf-8")


def labels(records: Sequence[Record]) -> list[str]:
    """Short names of runs, each its own: of folders, or as much of their paths as it takes."""
    paths = [record.path.absolute().parts for record in records]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(parts)} ({i + 1})" for i, parts in enumerate(paths)]


def _side_by_side(records: Sequence[Record], names: Sequence[str]) -> Html:
    return tag(
        "section",
        tag("h1", f"{len(records)} runs side by side"),
        answer.best(records, names),
        tables.side_by_side(records, names),
        _chart("cost", "Cost against accuracy", "Up and to the left is better."),
        _chart("overlay", "Personal test accuracy over rounds", ""),
        details("What differs between the runs", again.differences(records, names)),
        id="runs",
    )


def _run(record: Record, data: Mapping[str, Any], index: int, others: Sequence[Record]) -> Html:
    alone = answer.local_only(record, others)
    sections = (
        _section("Rounds", _rounds(record)),
        _section("Clients", _clients(record, data)),
        _section("Who holds what", _labels(record, data)),
        _section("Where the gate sends rows", _gate(record, data)),
        _section("Updates that were not used", tables.rejected(record)),
        _section("What rounds cost", _costs(record)),
        _section("Run it again", again.again(record)),
    )
    heading = "h2" if others else "h1"
    return tag(
        "article",
        tag(heading, data["name"] if others else record.title),
        tag("p", _about(record), class_="about"),
        *_incomplete(record),
        answer.answer(record, others),
        tables.scores(record, alone),
        *sections,
        class_="run",
        data_run=index,
    )


def _about(record: Record) -> str:
    config, rows = record.config, [*record.scored] or [*record.partition]
    stages = sorted({line["stage"] for line in record.rounds} - {0})
    return "  ·  ".join(
        [
            f"foundation model {config['model']['name']}",
            f"data {config['data'].get('path') or config['data']['source']}",
            f"{len(rows):,} clients" if len(rows) != 1 else "1 client",
            f"{len(record.rounds)} rounds"
            + (f" in stages {' and '.join(map(str, stages))}" if len(stages) > 1 else ""),
            f"started {record.environment.get('started', 'at a time not on record')}",
        ]
    )


def _incomplete(record: Record) -> list[Html]:
    if record.summary is not None:
        return []
    done = len(record.rounds)
    rounds = "no round is" if not done else "1 round is" if done == 1 else f"{done} rounds are"
    path = shlex.quote(str(record.path))
    way = f"fedms resume {path}"
    if record.elsewhere:
        way = f"fedms submit DEPLOYMENT --resume {path}"
    elif record.given:
        way = f"FedMS.resume({str(record.path)!r}, datasets)"
    text = f"This run is not complete: {rounds} on record. To go on: "
    return [tag("p", text, tag("code", way), class_="note", role="note")]


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content)


def _chart(kind: str, title: str, text: str) -> Html:
    """A place for a figure, which the script draws."""
    caption = tag("figcaption", tag("strong", title), *([" ", text] if text else []))
    plot = tag("div", class_="plot")
    return tag("figure", caption, plot, class_="chart", data_chart=kind)


def _absent(text: str) -> Html:
    return tag("p", text, class_="absent")


def _rounds(record: Record) -> Html:
    if not record.rounds:
        return _absent("No round is on record.")
    return join(
        [
            _chart(
                "accuracy",
                "Accuracy and depth over rounds",
                "Validation rows choose; test rows are only looked at. Below: how many blocks are "
                "active (SAL), the server’s and the clients’.",
            ),
            details("All rounds in a table", tables.rounds(record)),
        ]
    )


def _clients(record: Record, data: Mapping[str, Any]) -> Html:
    if not data["clients"]["id"]:
        return _absent("No client is on record.")
    return join(
        [
            _chart(
                "strips",
                "From the global expert to the personal model, client by client",
                "Test accuracy. Choose a client here, or in the table, to see it in all figures.",
            ),
            tables.clients(data["clients"]),
        ]
    )


_OLD = "is not on record: the run was made by an earlier version, or ended before it was written."


def _labels(record: Record, data: Mapping[str, Any]) -> Html:
    if data["clients"]["labels"]:
        return _chart("labels", "Rows of each class, client by client", "All splits together.")
    if record.elsewhere:
        return _absent(
            "Clients are sites on other machines, of whose classes the server keeps no record."
        )
    if record.labels:
        return _absent("There are too many clients and classes for this page; see labels.jsonl.")
    return _absent(f"Which classes clients hold {_OLD}")


def _gate(record: Record, data: Mapping[str, Any]) -> Html:
    if data["gateClasses"] is not None:
        text = "Weight on the global expert, of test rows. 0: only the local expert; 1: only the "
        return join(
            [
                _chart("gate", "All test rows by weight", f"{text}global one."),
                _chart("gateClients", "Client by client", "Share of each client’s test rows."),
                _chart("gateClasses", "Class by class", "Share of each class’s test rows."),
            ]
        )
    if record.elsewhere:
        return _absent(
            "Clients are sites on other machines. They tell mean weights (in the table of "
            "clients), and not which rows get which: that would tell the server their classes."
        )
    if record.summary is not None and record.figure("personal") is None:
        return _absent("No client has test rows.")
    if record.summary is not None and record.figure("oracle") is None:
        return _absent("Personal models of this method have no gate.")
    return _absent(f"Where the gate sends rows {_OLD}")


def _costs(record: Record) -> Html:
    if not record.rounds:
        return _absent("No round is on record.")
    charts = [
        _chart("bytes", "Bytes sent", "All clients of the round together."),
        _chart("flops", "Work of training", "Floating point operations."),
        _chart("seconds", "Seconds", "By phase, summed over workers."),
        _chart("memory", "Memory", "The most that was held at a time."),
    ]
    return tag("div", *charts, class_="grid")
