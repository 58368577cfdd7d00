"""How models fare when clients lie: attacks, shares of attackers, and rules that bear them.

    python benchmarks/robustness.py [--only femnist] [--tables]

A run of FedMS for each, all else equal; accuracy is over the test rows of honest clients, of their
personal models and of the global expert. Rules are told that up to 30 % of clients may be malicious
(`aggregation.malicious=0.3`); `screened` is the mean, with `screen.max_norm_ratio=3`. The last two
columns are the mean without class statistics, and, where labels are false, without comparing class
statistics of clients (`screen.contradictions=off`). Runs that are recorded in
`benchmarks/results/robustness.jsonl` are not made again. Writes `docs/robustness.md`, and a table
of `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pages

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.run import run
from fedms.runtimes.faults import Faults, attackers
from fedms.store.files import append_json, read_lines
from fedms.store.run_folder import environment

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "robustness.jsonl"
PAGE = ROOT / "docs" / "robustness.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
RULES = {
    "mean": (),
    "screened": ("screen.max_norm_ratio=3",),
    **{
        rule: (f"aggregation.rule={rule}", "aggregation.malicious=0.3")
        for rule in ("median", "trimmed", "geometric", "krum", "multikrum", "clip")
    },
    "mean, no statistics": ("gate.statistics=none",),
    "mean, not compared": ("screen.contradictions=off",),
}
ATTACKS = ("sign", "scale", "random", "invalid", "labels")
_COMMON: tuple[str, ...] = (
    "partition.clients=20",
    "stage1.rounds=5",
    "stage2.rounds=3",
    "evaluate_every=0",
)
_COMMON += ("runtime.threads=1", "partition.unseen_clients=0")


@dataclass(frozen=True)
class Case:
    """Data, and the shares of attackers that are tried."""

    recipe: str
    settings: tuple[str, ...]
    shares: tuple[float, ...]


CASES = {
    "femnist": Case(
        "femnist", (*_COMMON, "partition.max_clients=20", "runtime.stack=10"), (0.3, 0.1)
    ),
    "banking77": Case(
        "banking77",
        (
            *(*_COMMON, "data.max_rows=1500", "model.max_length=32", "runtime.precision=bfloat16"),
            *("training.batch_size=8", "runtime.stack=4", "data.split="),
            *("partition.test_fraction=0.5", "partition.clients=20", "partition.alpha=1.0"),
        ),
        (0.3, 0.1),
    ),
}


def jobs(name: str) -> Iterator[tuple[str, float, str]]:
    """Attack, share and rule of every run; first those without attackers."""
    pairs = [("none", 0.0), *((a, share) for share in CASES[name].shares for a in ATTACKS)]
    for attack, share in pairs:
        for rule in RULES:
            if attack == "labels" or rule != "mean, not compared":
                yield attack, share, rule


def perform(name: str, attack: str, share: float, rule: str) -> dict[str, Any]:
    """One run, as a record: accuracies of honest clients, and how many updates were rejected."""
    case = CASES[name]
    words = [*case.settings, *RULES[rule]]
    if attack != "none":
        words += [f"faults.attack={attack}", f"faults.attackers={share}"]
    config = load_config(ROOT / "recipes" / f"{case.recipe}.toml", words)
    known: dict[str, Any] = {"data": name, "attack": attack, "share": share, "rule": rule}
    facts = environment(config.seed)
    known |= {n: facts[n] for n in ("git_commit", "processor", "cores", "python")}
    with tempfile.TemporaryDirectory(prefix="fedms-") as place:
        folder = Path(place) / "run"
        try:
            test = run(config, folder)["test"]
        except UserError as error:
            return {**known, "failed": str(error)}
        rejected = sum(len(line["rejected"]) for line in read_lines(folder / "rounds.jsonl"))
    scored = test["personal"]["per_client"]
    faults = Faults(**config.faults.model_dump())
    honest = scored.keys() - attackers(faults, scored, config.seed)
    found = {
        role: statistics.fmean(test[role]["per_client"][client] for client in sorted(honest))
        for role in ("global", "personal")
    }
    return {**known, **found, "rejected": rejected, "honest": len(honest)}


def records() -> dict[tuple[str, str, float, str], dict[str, Any]]:
    """What was run."""
    lines = read_lines(RECORDS) if RECORDS.exists() else []
    return {(r["data"], r["attack"], r["share"], r["rule"]): r for r in lines}


def block(name: str, role: str) -> str:
    """A table of one data set and role: attacks by rules."""
    known = records()
    rows = []
    for share in (0.0, *CASES[name].shares):
        for attack in ("none",) if share == 0 else ATTACKS:
            found = [known.get((name, attack, share, rule)) for rule in RULES]
            if any(found):
                said = [_cell(one, role) for one in found]
                rows.append([f"{attack}, {share:.0%}" if share else "no attackers", *said])
    return pages.table(["", *RULES], rows)


def _cell(found: dict[str, Any] | None, role: str) -> str:
    if found is None:
        return "–"
    return "stopped" if "failed" in found else f"{found[role]:.3f}"


def rejections() -> str:
    """Of attackers' updates, by kind: how many were rejected, by defaults and by their length."""
    known, rows = records(), []
    for attack in ATTACKS:
        for share in (0.3, 0.1):
            said = []
            for name in CASES:
                for rule in ("mean", "screened"):
                    one = known.get((name, attack, share, rule))
                    said.append("–" if one is None else f"{one['rejected']} of {_sent(one)}")
            rows.append([f"{attack}, {share:.0%}", *said])
    head = [f"{name}{how}" for name in CASES for how in ("", ", `screen.max_norm_ratio=3`")]
    return pages.table(["", *head], rows)


def _sent(record: dict[str, Any]) -> int:
    """Updates of attackers: one in each of nine rounds, of 20 clients in all."""
    return (20 - int(record["honest"])) * 9


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CASES, help="one data set")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    words = parser.parse_args()
    for name in [words.only] if words.only else CASES:
        done = records()
        for job in jobs(name) if not words.tables else ():
            if (name, *job) not in done:
                append_json(RECORDS, perform(name, *job))
                sys.stdout.write(f"{name} {job}\n")
                sys.stdout.flush()
        found = [record for key, record in records().items() if key[0] == name]
        if not found:
            continue
        commits = sorted({str(record["git_commit"])[:12] for record in found})
        machines = sorted({f"{r['processor']}, {r['cores']} cores" for r in found})
        settings = " ".join(CASES[name].settings)
        lines = [
            "Global expert:",
            "",
            block(name, "global"),
            "",
            "Personal models:",
            "",
            block(name, "personal"),
            "",
            f"`python benchmarks/robustness.py --only {name}`: `recipes/{CASES[name].recipe}.toml "
            f"{settings}`; seed 0; commits {', '.join(commits)}; {' or '.join(machines)}, shared.",
        ]
        pages.write(PAGE, name, "\n".join(lines))
    said = "`python benchmarks/robustness.py`, whose tables are in [robustness](robustness.md)."
    pages.write(RELIABILITY, "rejections", f"{rejections()}\n\n{said}")


if __name__ == "__main__":
    main()
