"""A run's tables: all that its figures show can be read without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedms.core.units import duration, operations, size
from fedms.report.answer import percent, ranked
from fedms.report.html import Html, join, number, shown, signed, table, tag
from fedms.report.records import ROLES, Record

_MOST_REASONS = 500
"""Updates without use that are listed one by one."""


def scores(record: Record, alone: Record | None) -> Html:
    """Test accuracy of every role, on one scale."""
    roles = [role for role in ROLES if record.figure(role) is not None]
    known = [(role, ROLES[role], record) for role in roles]
    known = [(role, record.method if role == "personal" else n, r) for role, n, r in known]
    if alone is not None and alone is not record:
        known.append(("personal", f"local-only ({alone.path.name})", alone))
    least = min((r.figure(role, "worst_decile") or 0 for role, _, r in known), default=0)
    rows = [_score(name, role, r, record, least) for role, name, r in known]
    if not rows:
        return Html("")
    head = (
        "test accuracy",
        "worst tenth to mean",
        "mean",
        "worst tenth",
        "by rows",
        "spread",
        "difference",
    )
    return table("Test accuracy over clients", head, rows, class_="scores")


def _score(name: str, role: str, of: Record, record: Record, least: float) -> list[Html]:
    own = record.figure("personal") or 0.0
    mean = of.figure(role) or 0.0
    key = f"test.{role}." if of is record and record.summary is not None else None
    columns = ("mean", "worst_decile", "weighted", "std")
    return [
        tag("span", name, class_=f"role {role if of is record else 'alone'}"),
        _scale(mean, of.figure(role, "worst_decile"), least, role if of is record else "alone"),
        *(percent(of.figure(role, c), key and key + c) for c in columns),
        Html("" if of is record and role == "personal" else signed(mean - own)),
    ]


def _scale(mean: float, worst: float | None, least: float, role: str) -> Html:
    """A dot at the mean, and a line from it to the worst tenth."""
    floor = max(0.0, least - 0.02)
    at = place(mean, floor)
    low = place(worst if worst is not None else mean, floor)
    line = tag("i", style=f"left:{low}%;width:{round(at - low, 1)}%")
    return tag("span", line, tag("b", style=f"left:{at}%"), class_=f"scale {role}")


def place(value: float, floor: float) -> float:
    """Where an accuracy is on a scale from `floor` to 1, in per cent of it."""
    return round(100 * (value - floor) / (1 - floor), 1) if floor < 1 else 100.0


_CLIENT = {
    "gain": "gain",
    "train": "rows",
    "test": "test rows",
    "classes": "classes",
    "depth": "depth",
    "gate_weight": "gate",
}


def clients(columns: Mapping[str, Any]) -> Html:
    """One line a client, with a strip from its global to its personal accuracy."""
    known = columns["scores"]
    accuracies = [value for column in known.values() for value in column if value is not None]
    floor = max(0.0, min(accuracies, default=0.0) - 0.02)
    roles = [role for role in ("personal", "global", "local", "zero_shot") if role in known]
    both = "personal" in known and "global" in known
    has = [name for name in _CLIENT if both or name != "gain"]
    has = [n for n in has if n == "gain" or set(columns[n]) != {None}]
    titles = ["client", *(["global → personal"] if both else [])]
    names = ["id", *(["strip"] if both else [])]
    titles += [*(ROLES[role] for role in roles), *(_CLIENT[name] for name in has)]
    head = tag(
        "tr",
        *(
            tag("th", title, scope="col", data_column=name)
            for title, name in zip(titles, [*names, *roles, *has], strict=True)
        ),
    )
    rows = []
    for i, client in enumerate(columns["id"]):
        cells: list[str] = [_strip(known, i, floor)] if both else []
        cells += [percent_of(known[role][i]) for role in roles]
        cells += [_cell(columns, name, i) for name in has]
        rows.append(tag("tr", tag("th", client, scope="row"), *(tag("td", c) for c in cells)))
    whole = tag("table", tag("thead", head), tag("tbody", join(rows)), class_="clients")
    label = "Clients"
    return tag("div", whole, class_="scroll tall", tabindex=0, role="region", aria_label=label)


def percent_of(value: float | None) -> str:
    """An accuracy in per cent, as plain text."""
    return "–" if value is None else f"{100 * value:.1f}"


def _cell(columns: Mapping[str, Any], name: str, i: int) -> str:
    if name == "gain":
        own, shared = (columns["scores"][role][i] for role in ("personal", "global"))
        return "–" if own is None or shared is None else signed(own - shared)
    value = columns[name][i]
    if value is None:
        return "–"
    return f"{value:.2f}" if name == "gate_weight" else f"{value:,}"


def _strip(known: Mapping[str, Any], i: int, floor: float) -> Html:
    shared, own = known["global"][i], known["personal"][i]
    if shared is None or own is None:
        return Html("")
    a, b = place(shared, floor), place(own, floor)
    kind = "up" if own > shared else "down" if own < shared else ""
    line = tag("i", class_=kind, style=f"left:{min(a, b)}%;width:{round(abs(a - b), 1)}%")
    return tag("span", line, tag("u", style=f"left:{a}%"), tag("b", style=f"left:{b}%"), class_="s")


def rounds(record: Record) -> Html:
    """One line a round: scores, and what it cost."""
    roles = [r for r in ROLES if any(r in (line.get("test") or {}) for line in record.rounds)]
    head = ["round", "stage", "depth", "validation", *(f"test, {ROLES[r]}" for r in roles)]
    head += ["asked", "not used", "up", "down", "work", "seconds", "activations", "cache"]
    return table("Rounds", head, [_round(line, roles) for line in record.rounds])


def _round(line: Mapping[str, Any], roles: Sequence[str]) -> list[str]:
    depths, costs = sorted(set(line["client_depths"])) or [line["depth"]], line["costs"]
    test = line.get("test") or {}
    return [
        str(line["round"] + 1),
        str(line["stage"]),
        str(depths[0]) if len(depths) == 1 else f"{depths[0]}–{depths[-1]}",
        percent_of(line["validation"]),
        *(percent_of(test.get(role, {}).get("mean")) for role in roles),
        str(len(line["cohort"])),
        str(len(line["rejected"])),
        size(line["upload_bytes"]),
        size(line["download_bytes"]),
        shown(costs["flops"], operations),
        f"{line['seconds']:.2f}",
        shown(costs["peak_activation_bytes"], size),
        shown(costs["cache_bytes"], size),
    ]


def rejected(record: Record) -> Html:
    """Which updates were not used, which are odd, and which came late."""
    kinds = {"rejected": "not used", "warned": "used, though odd"}
    rows = [
        (str(line["round"] + 1), str(client), what, str(reason))
        for line in record.rounds
        for kind, what in kinds.items()
        for client, reason in line.get(kind, {}).items()
    ]
    rows += [
        (str(line["round"] + 1), str(client), "late", "answered when it was not waited for")
        for line in record.rounds
        for client in line.get("late", ())
    ]
    if not rows:
        return tag("p", "Every update that clients sent was used.")
    asked = sum(len(line["cohort"]) for line in record.rounds)
    unused = sum(len(line["rejected"]) for line in record.rounds)
    said = f"{unused:,} of {asked:,} updates that were asked for were not used."
    if len(rows) > _MOST_REASONS:
        said += f" The first {_MOST_REASONS} entries are here; rounds.jsonl has all {len(rows):,}."
    head = ("round", "client", "what became of it", "why")
    rows.sort(key=lambda row: int(row[0]))
    box = table("Updates", head, rows[:_MOST_REASONS], class_="words")
    return join([tag("p", said), box])


def side_by_side(records: Sequence[Record], names: Sequence[str]) -> Html:
    """All runs, the best personal accuracy first."""
    head = (
        *("run", "method", "seed", "personal", "worst tenth", "global", "zero-shot"),
        *("sent", "trained", "work", "time", "activations", "rounds"),
    )
    return table(
        "Runs side by side", head, [_beside(records[i], names[i]) for i in ranked(records)]
    )


def _beside(record: Record, name: str) -> list[str]:
    cost = record.cost
    own, every = cost.get("trainable_parameters"), cost.get("total_parameters")
    sent, peak = cost["upload_bytes"] + cost["download_bytes"], cost["peak_activation_bytes"]
    wall = cost.get("wall_seconds", cost["train_seconds"])
    complete = "" if record.summary is not None else ", not complete"
    return [
        name,
        record.method,
        str(record.config["seed"]),
        percent(record.figure("personal")),
        percent(record.figure("personal", "worst_decile")),
        percent(record.figure("global")),
        percent(record.figure("zero_shot")),
        number(sent, size(sent)),
        "–" if own is None or not every else f"{100 * own / every:.2f} %",
        shown(cost["train_flops"], operations),
        number(wall, shown(wall, duration)),
        shown(peak, size),
        f"{len(record.rounds)}{complete}",
    ]
