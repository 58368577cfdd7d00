"""The answer first: how good the models are, beside what, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from fedms.core.units import duration, operations, size
from fedms.report.html import Html, join, number, shown, tag
from fedms.report.records import ROLES, Record

_SAME = 0.0005
"""Accuracies that differ by less are called equal: they are shown alike."""


def percent(value: float | None, key: str | None = None) -> Html:
    """An accuracy or share, in per cent."""
    return number(value, "" if value is None else f"{100 * value:.1f} %", key)


def points(difference: float) -> str:
    """A difference of accuracies, in words."""
    if abs(difference) < _SAME:
        return "as much as"
    return f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"


def alike(one: Record, other: Record) -> bool:
    """Whether two runs have the same clients with the same rows, and the same model."""
    return one.federation == other.federation


def ranked(records: Sequence[Record]) -> list[int]:
    """Numbers of runs by personal accuracy, the best first; those that are not complete last."""

    def key(i: int) -> tuple[bool, float]:
        return records[i].summary is None, -(records[i].figure("personal") or -1.0)

    return sorted(range(len(records)), key=key)


def best(records: Sequence[Record], names: Sequence[str]) -> Html:
    """Which of several runs is best, and whether that can be said."""
    first, *others = ranked(records)
    personal = records[first].figure("personal")
    if personal is None:
        return tag("p", "No test accuracy is on record.", class_="lead")
    complete = [i for i in others if records[i].summary is not None]
    some = records[first].summary is not None and len(complete) < len(others)
    rivals = complete if some else others
    even = [names[i] for i in rivals if personal - (records[i].figure("personal") or 0) < _SAME]
    lead = tag("strong", f"{records[first].method} ({names[first]}): ", percent(personal))
    rest = (
        " personal test accuracy, the mean over clients, is the highest "
        + ("of all runs that are complete" if some else "here")
        + (f", as is that of {_listed(even)}." if even else ".")
    )
    said = [tag("p", lead, rest, class_="lead")]
    if not all(alike(records[0], record) for record in records):
        said.append(
            tag(
                "p",
                "These runs are not all of the same clients, rows, seed and foundation model: what "
                "they are measured on differs, and so may accuracies for that alone.",
                class_="note",
                role="note",
            )
        )
    return join(said)


def local_only(record: Record, others: Sequence[Record]) -> Record | None:
    """Among other runs, that of the same clients alone."""
    for other in others:
        if (
            alike(record, other)
            and other.config["method"] == "local"
            and other.figure("personal") is not None
        ):
            return other
    return None


def answer(record: Record, others: Sequence[Record] = ()) -> Html:
    """A sentence and four figures."""
    return tag("div", _sentence(record, others), _tiles(record), class_="answer")


def _sentence(record: Record, others: Sequence[Record]) -> Html:
    personal = record.figure("personal")
    if personal is None:
        return tag("p", "No test accuracy is on record.", class_="lead")
    clients = f"{len(record.scored):,} clients" if len(record.scored) != 1 else "one client"
    lead = join(
        [
            tag("strong", f"{record.method} is right on ", percent(personal, _key(record))),
            f" of a client’s test rows, the mean over {clients}.",
        ]
    )
    return join([tag("p", lead, class_="lead"), tag("p", _beside(record, others, personal))])


def _beside(record: Record, others: Sequence[Record], personal: float) -> Html:
    said = []
    for role in ("zero_shot", "global"):
        value = record.figure(role)
        if value is not None and not (role == "global" and _has_one_model(record)):
            said.append(f"{points(personal - value)} {_the(role)}")
    alone = local_only(record, others)
    if alone is not None and alone is not record:
        said.append(f"{points(personal - (alone.figure('personal') or 0))} local-only training")
    text = f"That is {_listed(said)}." if said else ""
    return join([text, " ", _gains(record), *_missing(record, alone)])


def _missing(record: Record, alone: Record | None) -> list[str]:
    """What would belong to the answer, and is not known."""
    known = []
    if record.figure("zero_shot") is None and record.summary is not None:
        known.append(" Zero-shot is not known: the model’s head has to be trained.")
    if alone is None and record.config["method"] != "local":
        known.append(
            " Local-only is not known here: run method=local with the same settings, and give "
            "both folders to fedms report."
        )
    return known


def _has_one_model(record: Record) -> bool:
    """Whether the global expert is everybody's model, so that nobody can gain by their own."""
    tests = [line["test"] for line in record.scored]
    return record.figure("local") is None and all(
        test.get("personal") == test.get("global") for test in tests
    )


def _gains(record: Record) -> str:
    """How many clients gain by what is their own."""
    pairs = [
        (line["test"]["personal"], line["test"]["global"])
        for line in record.scored
        if line["test"].get("personal") is not None and line["test"].get("global") is not None
    ]
    if len(pairs) < 2 or _has_one_model(record):
        return ""
    up = sum(own > shared + _SAME for own, shared in pairs)
    down = sum(own < shared - _SAME for own, shared in pairs)
    even = len(pairs) - up - down
    return (
        f"Of {len(pairs):,} clients, the personal model is better than the global expert for "
        f"{up:,}, as good for {even:,}, and worse for {down:,}."
    )


def _the(role: str) -> str:
    return "the global expert" if role == "global" else ROLES[role]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _key(record: Record, role: str = "personal", name: str = "mean") -> str | None:
    """Where a figure is in the summary, if that is where it is from."""
    return None if record.summary is None else f"test.{role}.{name}"


def _tiles(record: Record) -> Html:
    cost, worst = record.cost, record.figure("personal", "worst_decile")
    key = (lambda name: f"cost.{name}") if record.summary else (lambda name: None)
    up, down = cost["upload_bytes"], cost["download_bytes"]
    own, every = cost.get("trainable_parameters"), cost.get("total_parameters")
    share = own / every if own is not None and every else None
    text = "" if share is None else f"{100 * share:.2f} %"
    clients = max(len(record.scored), 1)
    return tag(
        "div",
        _tile("worst tenth of clients", percent(worst, _key(record, name="worst_decile")), ""),
        _tile(
            "sent, all clients",
            tag("data", size(up + down), value=up + down),
            join(
                [
                    number(up, f"{size(up)} up", key("upload_bytes")),
                    ", ",
                    number(down, f"{size(down)} down", key("download_bytes")),
                    f"; {size((up + down) / clients)} a client",
                ]
            ),
        ),
        _tile(
            "parameters trained, at most",
            tag("data", text, value=share) if share is not None else "–",
            join(
                [
                    number(own, f"{own or 0:,}", key("trainable_parameters")),
                    " of ",
                    number(every, f"{every or 0:,}", key("total_parameters")),
                ]
                if every
                else [number(own, f"{own or 0:,}"), " so far"]
            ),
        ),
        _tile("time", *_time(record)),
        class_="tiles",
    )


def _time(record: Record) -> tuple[Html, Html]:
    cost, complete = record.cost, record.summary is not None
    wall = cost.get("wall_seconds") if complete else cost["train_seconds"]
    name = "cost.wall_seconds" if complete else None
    flops = cost["train_flops"]
    work = number(flops, shown(flops, operations), "cost.train_flops" if complete else None)
    return number(wall, shown(wall, duration), name), join([work, " of training"])


def _tile(name: str, figure: str, beside: str) -> Html:
    return tag(
        "div",
        tag("div", name, class_="name"),
        tag("div", figure, class_="figure"),
        tag("div", beside, class_="beside"),
        class_="tile",
    )
