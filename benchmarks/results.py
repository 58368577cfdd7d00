"""Make the tables of `docs/results.md`: run what is missing, then write the tables from summaries.

    python benchmarks/results.py              # run what is missing, write the page
    python benchmarks/results.py --tables     # only write the page, from the runs that are there
    python benchmarks/results.py --tune       # the learning rates, on validation rows

A run that exists with the same configuration is used again. Each table has its block of the page
(`pages.py`); the words around it are not touched.

`--tune` writes validation losses at every learning rate of `RATES`, on seed 0 and fewer rows or
clients (`Study.tune`). Rivals of FedMS have the best of theirs (`Study.rates`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pages

from fedms.config import Config, load_config
from fedms.run import run

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"

RATES = (1e-3, 3e-3, 1e-2)
VARIANTS: Mapping[str, Sequence[str]] = {
    "fedms": ["method=fedms"],
    "local": ["method=local", "gate.mix_prior=none"],
    "local-prior": ["method=local", "gate.mix_prior=both"],
    "fedms-plain": ["method=fedms", "gate.mix_prior=none", "stage1.prior=none"],
}
"""Every run of a table: what is set on top of the recipe. The first two are needed for a table."""


@dataclass(frozen=True)
class Study:
    """One table: a recipe, what makes it small enough to tune, and its seeds.

    `rates` are learning rates of variants that do not have the recipe's.
    """

    name: str
    tune: Sequence[str] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)

    def config(self, variant: str, seed: int) -> Config:
        """The configuration of one run."""
        rate = self.rates.get(variant)
        rates = [] if rate is None else [f"training.learning_rate={rate}"]
        return load_config(self.recipe, [*VARIANTS[variant], *rates, f"seed={seed}"])

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return ROOT / "recipes" / f"{self.name}.toml"

    @property
    def variants(self) -> list[str]:
        """The variants that differ from each other: a recipe may do without a prior already."""
        configs = {variant: self.config(variant, 0) for variant in VARIANTS}
        names, known = list(configs), list(configs.values())
        return [name for i, name in enumerate(names) if known[i] not in known[:i]]

    def trial(self, variant: str, rate: float, *, perform: bool) -> dict[str, Any] | None:
        """Validation scores of a trial; where it has not been run, it is, or None."""
        words = [*VARIANTS[variant], *self.tune, "seed=0", f"training.learning_rate={rate}"]
        config = load_config(self.recipe, words)
        folder = RUNS / f"{self.name}-{variant}-rate{rate}"
        if not _is_done(folder, config):
            if not perform:
                return None
            run(config, folder, force=True)
        summary = json.loads((folder / "summary.json").read_text())
        return dict(summary["validation"]["personal"])

    def folder(self, variant: str, seed: int) -> Path:
        """Where a run is kept."""
        return RUNS / f"{self.name}-{variant}-seed{seed}"

    def is_done(self, variant: str, seed: int) -> bool:
        """Whether a complete run with exactly this configuration is there."""
        return _is_done(self.folder(variant, seed), self.config(variant, seed))

    def is_complete(self, variant: str) -> bool:
        """Whether all runs of a variant are there."""
        return all(self.is_done(variant, seed) for seed in self.seeds)

    def summaries(self, variant: str) -> list[dict[str, Any]]:
        """Summaries of the variant's runs, by seed."""
        folders = [self.folder(variant, seed) for seed in self.seeds]
        return [json.loads((folder / "summary.json").read_text()) for folder in folders]


STUDIES = (
    Study("digits"),
    Study("banking77", tune=["data.max_rows=2000"], rates={"fedms-plain": 1e-2}),
    Study("femnist", tune=["partition.max_clients=30"]),
)


def _is_done(folder: Path, config: Config) -> bool:
    """Whether a complete run with exactly this configuration is there."""
    if not (folder / "summary.json").exists():
        return False
    return load_config(folder / "config.toml") == config


def tuned(study: Study, variant: str) -> list[str]:
    """A row of the tuning table: validation loss (accuracy) at every rate.

    The least loss is bold; the rate that the study uses is marked by an arrow.
    """
    scores = {rate: study.trial(variant, rate, perform=False) for rate in RATES}
    losses = {rate: score["loss"] for rate, score in scores.items() if score}
    best = min(losses, key=losses.__getitem__) if len(losses) == len(RATES) else None
    used = study.config(variant, 0).training.learning_rate
    cells = [study.name, variant]
    for rate, score in scores.items():
        words = f"{score['loss']:.3f} ({score['mean']:.3f})" if score else "not run"
        words = f"**{words}**" if rate == best else words
        cells.append(f"→ {words}" if rate == used else words)
    return cells


def block(study: Study) -> str:
    """The study's table in markdown, with margins, and the commit and machine behind it."""
    runs = {v: study.summaries(v) for v in study.variants if study.is_complete(v)}
    ours = runs["fedms"]
    named = {
        "local": "local-only LoRA, all blocks",
        "local-prior": "local-only LoRA, all blocks, with class prior",
        "fedms-plain": "FedMS without class prior",
    }
    rows = [
        _row("zero-shot", ours, "zero_shot"),
        _row("global expert (stage 1 of FedMS)", ours, "global"),
        *(_row(name, runs[v], "personal", costs=True) for v, name in named.items() if v in runs),
        _row("FedMS: its local experts alone", ours, "local"),
        _row("**FedMS**", ours, "personal", costs=True),
    ]
    head = ["test accuracy", "mean over clients", "worst decile", "weighted", "MB sent", "train s"]
    rivals = {
        "zero-shot": _means(ours, "zero_shot"),
        "its global expert": _means(ours, "global"),
        **{name: _means(runs[v], "personal") for v, name in named.items() if v in runs},
    }
    mine = _means(ours, "personal")
    words = [f"- against {name}: {_margins(mine, theirs)}" for name, theirs in rivals.items()]
    words += [
        f"- client by client against {named[v]}: {_clients(ours, runs[v])}"
        for v in ("local", "local-prior")
        if v in runs
    ]
    said = ["", "FedMS' mean, seed by seed:", "", *words, "", _origin(study)]
    return "\n".join([pages.table(head, rows), *said])


Summaries = Sequence[Mapping[str, Any]]


def _row(name: str, runs: Summaries, role: str, *, costs: bool = False) -> list[str]:
    scores = [run["test"][role] for run in runs]
    cells = [_spread([s[key] for s in scores]) for key in ("mean", "worst_decile", "weighted")]
    spent = [run["cost"] for run in runs]
    sent = statistics.mean(c["upload_bytes"] + c["download_bytes"] for c in spent) / 1e6
    seconds = statistics.mean(c["train_seconds"] for c in spent)
    return [name, *cells, *([f"{sent:.1f}", f"{seconds:.0f}"] if costs else ["", ""])]


def _spread(values: Sequence[float]) -> str:
    """Mean over seeds, and the range."""
    mean = statistics.mean(values)
    return f"{mean:.3f} ({min(values):.3f}–{max(values):.3f})"


def _means(runs: Summaries, role: str) -> list[float]:
    return [run["test"][role]["mean"] for run in runs]


def _margins(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return ", ".join(f"{a - b:+.3f}" for a, b in zip(ours, theirs, strict=True))


def _clients(ours: Summaries, theirs: Summaries) -> str:
    pairs = [
        (a["test"]["personal"]["per_client"][client], accuracy)
        for a, b in zip(ours, theirs, strict=True)
        for client, accuracy in b["test"]["personal"]["per_client"].items()
    ]
    better, worse = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return f"{better} of {len(pairs)} (clients times seeds) better, {worse} worse"


def _origin(study: Study) -> str:
    variants = [v for v in study.variants if study.is_complete(v)]
    folders = [study.folder(v, s) for v in variants for s in study.seeds]
    all_facts = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    commits = sorted({str(facts["git_commit"])[:12] for facts in all_facts})
    facts = all_facts[0]
    return (
        f"`python benchmarks/results.py --only {study.name}` on `recipes/{study.name}.toml`; seeds "
        f"{', '.join(map(str, study.seeds))}, range in brackets; runs at commits "
        f"{', '.join(commits)}; {facts['processor']}, {facts['cores']} cores, shared, "
        f"one thread a run; torch {facts['packages']['torch']}, Python {facts['python']}."
    )


def overview(studies: Sequence[Study]) -> str:
    """The README's table: means over clients and seeds, a line a study."""
    columns = {
        "zero-shot": ("fedms", "zero_shot"),
        "global expert": ("fedms", "global"),
        "local-only": ("local", "personal"),
        "local-only + class prior": ("local-prior", "personal"),
        "FedMS": ("fedms", "personal"),
    }
    rows = []
    for study in studies:
        cells = [study.name]
        for variant, role in columns.values():
            done = study.is_complete(variant)
            means = _means(study.summaries(variant), role) if done else []
            cells.append(f"{statistics.mean(means):.3f}" if done else "not run")
        rows.append(cells)
    return pages.table(["", *columns], rows)


def tune(studies: Sequence[Study]) -> str:
    """The table of all trials."""
    head = ["", "variant", *(f"{rate:g}" for rate in RATES)]
    rows = [tuned(study, variant) for study in studies for variant in study.variants]
    words = [f"{study.name} with `{' '.join(study.tune)}`" for study in studies if study.tune]
    said = f"`python benchmarks/results.py --tune`; seed 0; {', '.join(words)}. Arrow: used."
    return "\n".join([pages.table(head, rows), "", said])


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one study")
    parser.add_argument("--seed", type=int, help="only run this seed, write no table")
    parser.add_argument("--variant", choices=VARIANTS, help="only run this one, write no table")
    parser.add_argument("--tune", action="store_true", help="learning rates, by validation")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    words = parser.parse_args()
    studies = [study for study in STUDIES if words.only in (None, study.name)]

    def wanted_of(study: Study) -> list[str]:
        return [variant for variant in study.variants if words.variant in (None, variant)]

    whole = words.seed is None and words.variant is None
    if words.tune:
        for study in studies:
            for variant, rate in itertools.product(wanted_of(study), RATES):
                study.trial(variant, rate, perform=not words.tables)
        if whole and not words.only:
            pages.write(PAGE, "rates", tune(studies))
        return
    for study in studies:
        for variant, seed in itertools.product(wanted_of(study), study.seeds):
            wanted = words.seed in (None, seed) and not words.tables
            if wanted and not study.is_done(variant, seed):
                run(study.config(variant, seed), study.folder(variant, seed), force=True)
        if whole:
            pages.write(PAGE, study.name, block(study))
    if whole:
        done = [study for study in STUDIES if study.is_complete("fedms")]
        pages.write(README, "results", overview(done))


if __name__ == "__main__":
    main()
