"""The comparison on disk: `table.json`, `table.csv`, `table.md`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.compare import rows
from fedms.compare.records import Point
from fedms.compare.rows import COSTS, OURS
from fedms.compare.runs import Result
from fedms.compare.scores import Scored, Spread, ahead_in, by_method, until, versus, within
from fedms.compare.variants import VARIANTS, trained_together
from fedms.store.files import write_text

_RIVAL = "finetune+statistics"
_FEW = 3
"""Seeds below which a word is said of luck."""
NOTHING: Mapping[str, str] = {}
_SHARES = (0.5, 1.0, 2.0)
"""Budgets, as shares of what FedMS spends."""
_BELOW = (0.10, 0.05, 0.02)
"""Accuracies to reach where none are given: so much below FedMS' best on validation rows."""
Curves = Mapping[str, Mapping[int, Sequence[Point]]]
"""Method, seed."""


def write(
    folder: Path,
    results: Sequence[Result],
    *,
    targets: Sequence[float] = (),
    diverged: Mapping[str, str] = NOTHING,
) -> None:
    """Write all three into the comparison's folder; see `markdown`."""
    write_text(folder / "table.json", json.dumps(rows.as_json(results), indent=2) + "\n")
    write_text(folder / "table.csv", rows.as_csv(results))
    text = markdown(results, targets=targets, diverged=diverged)
    write_text(folder / "table.md", text)


def markdown(
    results: Sequence[Result],
    *,
    targets: Sequence[float] = (),
    diverged: Mapping[str, str] = NOTHING,
) -> str:
    """The answer, then three views: at equal steps, under budgets of bytes and FLOPs, and costs to
    an accuracy.

    The last two need validation rows. Unseen clients, where there are any, come last.

    Args:
        results: of any number of methods.
        targets: accuracies on validation rows whose costs are told; none: some below FedMS' best.
        diverged: methods that have no results, as every learning rate diverged, and why.
    """
    methods = by_method(results)
    views = [_answer(methods), _equal_steps(methods)]
    if OURS in methods:
        views += [_margins(methods), spending(results, targets=targets)]
    views += [_unseen(methods), _left_out(diverged), origin(results)]
    return "\n\n".join(filter(None, views)) + "\n"


def spending(results: Sequence[Result], *, targets: Sequence[float] = ()) -> str:
    """The two views of costs: under budgets, and to an accuracy; see `markdown`.

    Nothing where a model has no score on validation rows.

    Args:
        results: of any number of methods, FedMS among them.
        targets: as of `markdown`.
    """
    methods = by_method(results)
    trained = _trained(methods)
    curves = {name: {r.seed: r.record.regular for r in found} for name, found in trained}
    if any(p.validation is None for p in _points(curves)):
        return ""
    reached = _targets(curves, targets, fitted=_calibrated(methods[OURS]))
    return f"{_budgets(curves)}\n\n{reached}"


def _answer(methods: Mapping[str, list[Result]]) -> str:
    """FedMS beside the best of the others, in words; nothing where one of them is missing."""
    others = [n for n in methods if VARIANTS[n].group != "ours" and not VARIANTS[n].bound]
    if OURS not in methods or not others:
        return ""
    ours = methods[OURS]

    def score(name: str, key: str = "mean") -> float:
        return statistics.fmean(r.test[key] for r in methods[name])

    best, fairest = max(others, key=score), max(others, key=lambda n: score(n, "worst_decile"))
    said = f"**FedMS has {score(OURS):.3f}, the best other method {score(best):.3f}** "
    said += f"({_title(best)})"
    if beside := versus(ours, methods[best]):
        said += f", a difference of {signed(beside.spread)} over seeds"
        p = "" if beside.p is None else f", p {_p(beside.p)}"
        who = "clients" if beside.natural else "pairs of client and seed"
        said += f": of {beside.of} {who} FedMS makes {beside.better} better off, "
        said += f"{beside.worse} worse{p}"
    said += f". In the worst decile of clients, {score(OURS, 'worst_decile'):.3f} and "
    said += f"{score(fairest, 'worst_decile'):.3f} ({_title(fairest)})"
    lead = ahead_in("worst_decile", ours, methods[fairest])
    said += f", {signed(lead)}." if lead else "."
    spent = {
        name: [sum(cost(r) for r in found) for found in (ours, methods[best])]
        for name, cost in COSTS.items()
        if name in ("MB sent", "TFLOPs") and not VARIANTS[best].run
    }
    shares = [f"{a / b:.2f} of its {name}" for name, (a, b) in spent.items() if b]
    said += f" FedMS needs {' and '.join(shares)}." if shares else ""
    if len(ours) < _FEW:
        said += f" Of {'one seed' if len(ours) == 1 else f'{len(ours)} seeds'} this is luck in "
        said += "part: run three or more (`--seeds 0,1,2`)."
    if _calibrated(ours) and _RIVAL not in methods:
        said += " Calibration and class statistics, which FedMS has and these have not, can be had "
        said += f"without its mixture: `{_RIVAL}`, to be compared too."
    return said


def _calibrated(results: Sequence[Result]) -> bool:
    return any(result.record.config.get("gate", {}).get("calibration") for result in results)


def _trained(methods: Mapping[str, list[Result]]) -> list[tuple[str, list[Result]]]:
    """Methods that have runs of their own."""
    return [(name, found) for name, found in methods.items() if not VARIANTS[name].run]


def _points(curves: Curves) -> Iterator[Point]:
    return (point for runs in curves.values() for points in runs.values() for point in points)


def _title(name: str) -> str:
    variant = VARIANTS[name]
    return f"{variant.title} ({variant.bound})" if variant.bound else variant.title


def _equal_steps(methods: Mapping[str, list[Result]]) -> str:
    head = ["at equal local steps", "mean", "worst decile", "weighted", "std over clients"]
    head += ["FedMS is ahead by", "clients", "p", "rate", *COSTS]
    ours = methods.get(OURS)
    lines = []
    for name, found in methods.items():
        tests = [result.test for result in found]
        cells = [_title(name)]
        cells += [_spread(tests, key) for key in ("mean", "worst_decile", "weighted", "std")]
        beside = versus(ours, found) if ours and name != OURS else None
        cells += _versus_cells(beside)
        derived = bool(VARIANTS[name].run)
        edge = " (edge)" if found[0].edge else ""
        rate = "any" if found[0].rate is None else f"{found[0].rate:g}{edge}"
        chosen = ", ".join(filter(None, (rate, found[0].choice)))
        cells.append("" if derived else chosen)
        for cost in COSTS.values():
            mean = statistics.fmean(map(cost, found))
            cells.append("" if derived else f"{mean:,.1f}")
        lines.append(cells)
    return _table(head, lines)


def _versus_cells(beside: Any) -> list[str]:
    if beside is None:
        return ["", "", ""]
    p = "–" if beside.p is None else _p(beside.p)
    return [signed(beside.spread), f"{beside.better} : {beside.worse}", p]


def signed(spread: Spread) -> str:
    """A difference, with half of its interval where there is one."""
    return f"{spread.mean:+.3f}" + ("" if spread.half is None else f" ± {spread.half:.3f}")


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _spread(scores: Sequence[Mapping[str, Any]], key: str) -> str:
    spread = Spread.of([score[key] for score in scores])
    return f"{spread.mean:.3f}" + ("" if spread.half is None else f" ± {spread.half:.3f}")


def _margins(methods: Mapping[str, list[Result]]) -> str:
    """FedMS against the weakest and the median federated method, and the strongest of all others.

    By their means. What trains nothing, or alone, may be the strongest.
    """
    means = {n: statistics.fmean(r.test["mean"] for r in found) for n, found in methods.items()}
    ranked = sorted(means, key=means.__getitem__)
    others = [n for n in ranked if VARIANTS[n].group != "ours" and not VARIANTS[n].bound]
    federated = [n for n in others if trained_together(n)]
    chosen = []
    if federated:
        chosen.append(("weakest federated", federated[0]))
        chosen.append(("median federated", federated[len(federated) // 2]))
    if others:
        chosen.append(("strongest of all", others[-1]))
    if not chosen:
        return ""
    head = ["baseline", "which", "its mean", "FedMS", "ahead by", "relative"]
    mine = means[OURS]
    lines = []
    for which, n in chosen:
        relative = f"{mine / means[n] - 1:+.1%}" if means[n] else "–"
        cells = [which, _title(n), f"{means[n]:.3f}", f"{mine:.3f}", f"{mine - means[n]:+.3f}"]
        lines.append([*cells, relative])
    return _table(head, lines)


def _budgets(curves: Curves) -> str:
    """Test accuracy of the best round by validation that was within a share of FedMS' costs.

    Every seed has FedMS' costs on that seed; the head has their means.
    """
    parts = []
    for resource, unit, scale in (("bytes", "MB", 1e6), ("flops", "TFLOP", 1e12)):
        ours = {seed: getattr(points[-1], resource) for seed, points in curves[OURS].items()}
        mean = statistics.fmean(ours.values()) / scale
        head = [f"test accuracy within {resource} of FedMS'"]
        head += [f"{share:.0%}: {share * mean:,.1f} {unit}" for share in _SHARES]
        lines = []
        for name, runs in curves.items():
            cells = [_title(name)]
            for share in _SHARES:
                best = [within(p, resource, share * ours.get(seed, 0)) for seed, p in runs.items()]
                found = [point.test for point in best if point]
                whole = len(found) == len(runs)
                cells.append(f"{statistics.fmean(found):.3f}" if whole else "–")
            lines.append(cells)
        parts.append(_table(head, lines))
    return "\n\n".join(parts)


def _targets(curves: Curves, given: Sequence[float], *, fitted: bool) -> str:
    """What it costs until an accuracy on validation rows is first seen, mean over seeds."""
    best = statistics.fmean(
        max(p.validation or 0.0 for p in points) for points in curves[OURS].values()
    )
    targets = given or [best - below for below in _BELOW]
    head = ["until validation accuracy"]
    head += [f"{t:.3f}: {what}" for t in targets for what in ("MB", "TFLOP", "s")]
    lines = []
    for name, runs in curves.items():
        cells = [_title(name)]
        for target in targets:
            found = [point for points in runs.values() if (point := until(points, target))]
            if len(found) < len(runs):
                cells += ["–"] * 3
                continue
            for key, scale in (("bytes", 1e6), ("flops", 1e12), ("seconds", 1)):
                cells.append(f"{statistics.fmean(getattr(p, key) for p in found) / scale:,.1f}")
        lines.append(cells)
    if not fitted:
        return _table(head, lines)
    note = "FedMS' calibration is fitted on these validation rows, which flatters it here a little."
    return f"{_table(head, lines)}\n\n{note}"


def _unseen(methods: Mapping[str, list[Result]]) -> str:
    """Clients that took no part in training; nothing where there are none."""
    views: dict[Scored, str] = {"unseen": "", "unseen_adapted": "adapted: "}
    scored = [n for n in methods if all(_scores(methods[n], of) for of in views)]
    columns = ("mean", "worst decile", "weighted", "FedMS is ahead by", "clients", "p")
    head = ["unseen clients", *(f"{when}{what}" for when in views.values() for what in columns)]
    lines = []
    for name in scored:
        cells = [_title(name)]
        for of in views:
            scores = _scores(methods[name], of)
            cells += [_spread(scores, key) for key in ("mean", "worst_decile", "weighted")]
            other = OURS in scored and name != OURS
            cells += _versus_cells(versus(methods[OURS], methods[name], of) if other else None)
        lines.append(cells)
    return _table(head, lines) if lines else ""


def _scores(results: Sequence[Result], of: Scored) -> list[Mapping[str, Any]]:
    """Of the results that have them."""
    return [scores for result in results if (scores := getattr(result, of))]


def _left_out(diverged: Mapping[str, str]) -> str:
    said = [f"{_title(name)} is left out: {reason}" for name, reason in diverged.items()]
    return "\n\n".join(said)


def origin(results: Sequence[Result]) -> str:
    """The commits that the runs were made at, and when."""
    facts = [result.record.facts for result in results]
    commits = sorted({_commit(each["git_commit"] or "unknown") for each in facts})
    differ = ": the code differed between them" if len(commits) > 1 else ""
    days = sorted({each["started"][:10] for each in facts if "started" in each})
    when = f", {' to '.join(dict.fromkeys([days[0], days[-1]]))} (UTC)" if days else ""
    return f"Runs at commit{'s' if differ else ''} {', '.join(commits)}{differ}{when}."


def _commit(known: str) -> str:
    """In short."""
    commit, *changed = known.split("-")
    return "-".join([commit[:12], *changed])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
