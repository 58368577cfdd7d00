"""Make the tables of `docs/results.md`: compare methods on every cell, then write the page.

    python benchmarks/results.py                    # run what is missing, write the page
    python benchmarks/results.py --only digits      # one cell, or several by commas
    python benchmarks/results.py --methods fedms,local
    python benchmarks/results.py --tables           # run nothing, write what is there
    python benchmarks/results.py --forget fedms     # run these again: their code has changed

A cell is a recipe with settings that make it affordable; its comparison (docs/evaluation.md) is in
`benchmarks/results/CELL`. Of it `runs.jsonl` is kept with the code: a record of every run, so that
what was run once, on whatever machine, need not be run again, and every figure can be looked up. A
method is in a cell's table once all its runs are there, and a cell is written once FedMS and local
training are. Each has its block of the page, and a line in the tables over all of them.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pages

from fedms.build import deal, load_table
from fedms.compare import VARIANTS, MissingRunError, Plan, Result, compare, plots, table
from fedms.compare.scores import ahead_in, by_method
from fedms.compare.variants import trained_together
from fedms.store.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"

FOR_CLIP = ("promptfl", "fedclip")
CONTROLS = tuple(
    name for name, v in VARIANTS.items() if v.group == "ours" and name != "fedms" and not v.run
)
"""FedMS without one of its parts, or with another."""
METHODS = tuple(
    name for name in VARIANTS if name not in (*FOR_CLIP, *CONTROLS) and "+calibration" not in name
)
"""Those as published, the strongest rival with all that is ours, and FedMS."""
SEEDS = (0, 1, 2)
MANY = (*SEEDS, 3, 4, 5, 6, 7, 8)
"""Where three seeds did not tell FedMS from the best, in the mean or in the worst tenth."""
RATES = (3e-3, 1e-2)
COMMON = ("runtime.threads=1",)


@dataclass(frozen=True)
class Cell:
    """Data and skew: a recipe, what is set on top of it, and who is compared."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = SEEDS

    def plan(self, methods: Sequence[str], seeds: Sequence[int] = ()) -> Plan:
        """The comparison of some methods, on other seeds than the cell's if there are any."""
        recipe = ROOT / "recipes" / f"{self.recipe}.toml"
        settings = (*self.settings, *COMMON)
        return Plan(recipe, settings, methods, seeds or self.seeds, RATES, RESULTS / self.name)

    def results(self) -> list[Result]:
        """Of all methods whose runs are there."""
        found: list[Result] = []
        for method in self.methods:
            try:
                found += compare(replace(self.plan([method]), perform=False))
            except MissingRunError:
                continue
        return found


_ROUNDS = ("stage1.rounds=5", "stage2.rounds=3", "evaluate_every=4")
_HALVED = ("data.split=", "partition.test_fraction=0.5")
"""Half of a client's rows for tests: they cost little, and make small differences visible."""
_STEPS = ("training.batch_size=8", "runtime.stack=4")
"""A client has some 60 training rows: with larger batches it would take too few steps."""
_TEXT = (*_ROUNDS, *_HALVED, *_STEPS, "model.max_length=32", "runtime.precision=bfloat16")
_MANY_ROWS = (*_TEXT, "training.batch_size=16", "runtime.stack=5")
_IMAGES = (*_ROUNDS, "runtime.stack=8")
_BANKING = (*_TEXT, "data.max_rows=1500")
_CLINC = (*_TEXT, "data.max_rows=1600")
_NEWS = (*_TEXT, "data.max_rows=1500")
_SPREAD = ("partition.by=dirichlet", "partition.clients=10")
_WRITERS = ("partition.max_clients=16",)
_AUTHORS = ("partition.max_clients=40", "partition.unseen_clients=10")
CELLS = (
    Cell("digits", "digits", _IMAGES, (*METHODS, *FOR_CLIP, *CONTROLS), MANY),
    Cell("femnist", "femnist", (*_IMAGES, *_WRITERS), (*METHODS, *FOR_CLIP, *CONTROLS)),
    Cell("banking77", "banking77", _BANKING, (*METHODS, *CONTROLS)),
    Cell("banking77-even", "banking77", (*_BANKING, "partition.alpha=1.0")),
    Cell(
        "banking77-quantity",
        "banking77",
        (*_BANKING, "partition.by=quantity", "partition.alpha=1.0"),
    ),
    Cell("clinc150", "clinc150", (*_CLINC, "partition.unseen_clients=2"), seeds=MANY),
    Cell("clinc150-skewed", "clinc150", (*_CLINC, *_SPREAD, "partition.alpha=0.1")),
    Cell("clinc150-even", "clinc150", (*_CLINC, *_SPREAD, "partition.alpha=1.0")),
    Cell("newsgroups20", "newsgroups20", (*_TEXT, *_AUTHORS), seeds=MANY),
    Cell("newsgroups20-skewed", "newsgroups20", (*_NEWS, *_SPREAD, "partition.alpha=0.1")),
    Cell("amazon5", "amazon5", (*_TEXT, "data.max_rows=800"), seeds=MANY),
    Cell("amazon5-more", "amazon5", (*_MANY_ROWS, "data.max_rows=4000"), seeds=MANY),
)


def block(cell: Cell, results: Sequence[Result]) -> str:
    """The cell's tables, and what made them."""
    settings = " ".join([*cell.settings, *COMMON])
    said = (
        f"`python benchmarks/results.py --only {cell.name}`: "
        f"`recipes/{cell.recipe}.toml {settings}`; seeds {', '.join(map(str, cell.seeds))}; "
        f"learning rates from {' and '.join(f'{rate:g}' for rate in RATES)} on; "
        f"{where(results)}. "
        '"±" is half of a 95 % interval over seeds. Seconds were measured beside other programs.'
    )
    return f"{table.markdown(results)}\n{said}"


def where(results: Sequence[Result]) -> str:
    """Machines and versions that runs were made with."""
    facts = [result.record.facts for result in results]
    machines = sorted({_machine(f) for f in facts})
    versions = sorted({f"torch {f['packages']['torch']}, Python {f['python']}" for f in facts})
    return f"{' or '.join(machines)}, shared, one thread a run; {' or '.join(versions)}"


def _machine(facts: Mapping[str, Any]) -> str:
    device = facts.get("device_name", "cpu")
    accelerator = "" if device == "cpu" else f"one {device}, "
    return f"{accelerator}{facts['processor']}, {facts['cores']} cores"


def forget(folder: Path, methods: Sequence[str]) -> None:
    """Leave out runs of some methods: folders, and records from `runs.jsonl`."""
    records, stale = folder / "runs.jsonl", tuple(f"{method}-rate" for method in methods)
    if records.exists():
        lines = records.read_text(encoding="utf-8").split("\n")
        starts = tuple(f'{{"run": "{start}' for start in stale)
        write_text(records, "\n".join(line for line in lines if not line.startswith(starts)))
    for method in methods:
        for run in (folder / "runs").glob(f"{method}-rate*"):
            shutil.rmtree(run)


Found = Mapping[str, Mapping[str, Sequence[Result]]]
"""Cell, method."""


def mean(results: Sequence[Result], score: str = "mean") -> float:
    """Of a score of personal models, over seeds."""
    return statistics.fmean(r.test[score] for r in results)


def rivals(methods: Mapping[str, Sequence[Result]]) -> list[str]:
    """Other methods (no bounds, nothing of ours in them), the weakest by its mean first."""
    names = [n for n in methods if VARIANTS[n].group != "ours" and not VARIANTS[n].bound]
    return sorted((n for n in names if "+" not in n), key=lambda name: mean(methods[name]))


def overview(found: Found) -> str:
    """The README's table: personal test accuracy, mean over clients and seeds, a line a cell."""
    columns = {
        "zero-shot": "zeroshot",
        "local-only": "local",
        "FedAvg": "fedavg",
        "FedAvg, then fine-tuning": "finetune",
        "the same, with all that is ours": "finetune+statistics",
        "FedMS": "fedms",
    }
    rows = []
    for cell, methods in found.items():
        cells = [f"{mean(methods[m]):.3f}" if m in methods else "–" for m in columns.values()]
        best = rivals(methods)[-1]
        said = f"{VARIANTS[best].title} {mean(methods[best]):.3f}"
        rows.append([cell, *cells[:-1], said, cells[-1]])
    return pages.table(["", *list(columns)[:-1], "best as published, of those run", "FedMS"], rows)


def standing(found: Found) -> str:
    """Where FedMS stands among others, in every cell: is it best, by how much, beyond chance?

    The weakest and the median are of federated methods that train: no training, and training alone,
    are often far behind, and headlines are not to be made of that.
    """
    head = ["", "methods", "mean", "of them best", "lead"]
    head += ["worst decile", "of them best", "lead"]
    head += ["ahead of the weakest federated", "of the median federated", "of the strongest"]
    head += ["of fine-tuning with all that is ours", "its worst decile", "lead"]
    head += ["bytes", "FLOPs", "for the strongest's"]
    rows = []
    for cell, methods in found.items():
        others, ours = rivals(methods), methods["fedms"]
        cells = [cell, str(len(others))]
        for score in ("mean", "worst_decile"):
            best = max(others, key=lambda name: mean(methods[name], score))
            cells += [
                f"{mean(ours, score):.3f}",
                f"{mean(methods[best], score):.3f}: {_title(best)}",
                _lead(score, ours, methods[best]),
            ]
        federated = [n for n in others if trained_together(n)]
        for one in (federated[0], federated[len(federated) // 2], others[-1]):
            cells.append(f"{mean(ours) / mean(methods[one]) - 1:+.1%}: {_title(one)}")
        rival = methods.get("finetune+statistics")
        if rival:
            cells.append(f"{mean(ours) / mean(rival) - 1:+.1%}")
            cells.append(f"{mean(rival, 'worst_decile'):.3f}")
            cells.append(_lead("worst_decile", ours, rival))
        else:
            cells += ["–"] * 3
        strongest = () if VARIANTS[others[-1]].run else methods[others[-1]]
        cells += [_ratio(ours, strongest, spent) for spent in (_bytes, _flops)]
        rows.append([*cells, _title(others[-1])])
    return pages.table(head, rows)


def _lead(score: str, ours: Sequence[Result], theirs: Sequence[Result]) -> str:
    """With half of a 95 % interval over seeds."""
    lead = ahead_in(score, ours, theirs)
    return table.signed(lead) if lead else "–"


def sizes(cells: Sequence[Cell]) -> str:
    """Who has how many rows, on the first seed; needs the data."""
    head = ["first seed", "clients", "their training rows: mean (fewest to most)"]
    head += ["validation rows", "test rows: mean (fewest to most)", "batch", "unseen clients"]
    head += ["their rows to learn from"]
    rows = []
    for cell in cells:
        config = cell.plan(["fedms"]).configure(VARIANTS["fedms"], RATES[0], cell.seeds[0])
        dealt = deal(config, load_table(config))
        parts = {p: [len(getattr(c, p)) for c in dealt.clients] for p in ("train", "val", "test")}
        said = {p: f"{statistics.fmean(n):.0f} ({min(n)} to {max(n)})" for p, n in parts.items()}
        limit = config.partition.unseen_rows
        unseen = [min(len(client.train), limit) for client in dealt.unseen]
        line = [cell.name, str(len(dealt.clients)), said["train"]]
        line += [f"{statistics.fmean(parts['val']):.0f}", said["test"]]
        line += [str(config.training.batch_size), str(len(unseen) or "–")]
        rows.append([*line, f"{min(unseen)} to {max(unseen)}" if unseen else "–"])
    return pages.table(head, rows)


def earlier(found: Found) -> str:
    """What methods of one global model would have if validation rows chose their last round.

    Of rounds after which every method is scored. Such a method keeps what its last round made.
    """
    head = ["", "runs", "with an earlier round ahead", "change of the mean accuracy"]
    head += ["the best of them", "if chosen", "FedMS"]
    rows = []
    for cell, methods in found.items():
        names = [n for n in rivals(methods) if VARIANTS[n].group == "one global model"]
        gains = {name: [_gain(result) for result in methods[name]] for name in names}
        every = [gain for of_method in gains.values() for gain in of_method]
        now = {name: mean(methods[name]) for name in names}
        then = {n: now[n] + statistics.fmean(gain or 0 for gain in gains[n]) for n in names}
        best = [max(means, key=means.__getitem__) for means in (now, then)]
        cells = [cell, str(len(every)), str(sum(gain is not None for gain in every))]
        cells.append(f"{statistics.fmean(gain or 0 for gain in every):+.4f}")
        cells += [
            f"{means[n]:.3f}: {_title(n)}" for n, means in zip(best, (now, then), strict=True)
        ]
        rows.append([*cells, f"{mean(methods['fedms']):.3f}"])
    return pages.table(head, rows)


def _gain(result: Result) -> float | None:
    """In test accuracy, by the round that validation rows would choose; None: it is the last."""
    scored = [point for point in result.record.regular if point.validation is not None]
    best = max(scored, key=lambda point: (point.validation, point.round))
    return None if best is scored[-1] else best.test - scored[-1].test


def parts(found: Found) -> str:
    """What becomes of FedMS without each of its parts, in cells where that was run."""
    names = [n for n, v in VARIANTS.items() if v.group == "ours" and n != "fedms" and not v.bound]
    cells = {c: m for c, m in found.items() if any(n in m for n in names if not VARIANTS[n].run)}
    rows = [["**FedMS**", *(f"{mean(m['fedms']):.3f}" for m in cells.values())]]
    for name in names:
        rows.append([_title(name), *(_change(m, name) for m in cells.values())])
    return pages.table(["", *cells], rows)


def _change(methods: Mapping[str, Sequence[Result]], name: str) -> str:
    """A control's mean accuracy beside FedMS', and the ratio of their FLOPs and bytes."""
    if name not in methods:
        return "–"
    theirs, ours = methods[name], methods["fedms"]
    said = f"{mean(theirs) - mean(ours):+.3f}"
    if VARIANTS[name].run:
        return said
    return f"{said} ({_ratio(theirs, ours, _flops)}, {_ratio(theirs, ours, _bytes)})"


def _title(name: str) -> str:
    return VARIANTS[name].title


def _bytes(result: Result) -> float:
    return float(result.cost["upload_bytes"] + result.cost["download_bytes"])


def _flops(result: Result) -> float:
    return float(result.cost["train_flops"])


def _ratio(
    ours: Sequence[Result], theirs: Sequence[Result], spent: Callable[[Result], float]
) -> str:
    """What ours spend for what theirs do; a dash where theirs spend nothing."""
    other = sum(map(spent, theirs))
    return f"{sum(map(spent, ours)) / other:.2f}" if other else "–"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cells by commas; all otherwise")
    parser.add_argument("--methods", help="names by commas; all of the cell's otherwise")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    parser.add_argument("--sizes", action="store_true", help="write who has how many rows alone")
    parser.add_argument("--forget", help="names by commas, whose records are left out from now on")
    words = parser.parse_args()
    named = {cell.name: cell for cell in CELLS}
    if unknown := {*(words.only or "").split(",")} - {*named, ""}:
        parser.error(f"got cell {min(unknown)!r}; expected one of {', '.join(named)}")
    if words.sizes:
        pages.write(PAGE, "sizes", sizes(CELLS))
        return
    cells = [named[name] for name in words.only.split(",")] if words.only else CELLS
    for cell in cells if words.forget else ():
        forget(RESULTS / cell.name, words.forget.split(","))
    for cell in cells if not words.tables else ():
        compare(cell.plan(words.methods.split(",") if words.methods else cell.methods))
    found = {cell.name: by_method(cell.results()) for cell in CELLS}
    found = {name: methods for name, methods in found.items() if {"fedms", "local"} <= {*methods}}
    for name, methods in found.items():
        results = [result for of_method in methods.values() for result in of_method]
        table.write(RESULTS / name, results)
        plots.write(RESULTS / name, results)
        pages.write(PAGE, name, block(named[name], results))
    pages.write(PAGE, "standing", standing(found))
    pages.write(PAGE, "parts", parts(found))
    pages.write(PAGE, "earlier", earlier(found))
    pages.write(README, "results", overview(found))


if __name__ == "__main__":
    main()
