"""Perform the runs of a comparison that are missing, and read the others.

A run is a build product: one that is complete and has the same resolved configuration, data, model
and precision is used again, and one that was cut short goes on from its last checkpoint, so that a
comparison which was interrupted goes on where it was. What is said of runs is said from their
records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from fedms.compare.records import Record, Records
from fedms.compare.search import Found, search
from fedms.compare.variants import VARIANTS, Variant
from fedms.config import Config, ConfigError, load_config, untracked
from fedms.core.errors import DivergenceError, UserError, did_you_mean
from fedms.events import Event, Started
from fedms.run import check as check_run
from fedms.run import resume, run
from fedms.store.files import write_json
from fedms.store.marks import DIVERGED

Watch = Callable[[str, Event], None]
"""Is told the name of the run and its event."""


class MissingRunError(UserError):
    """A run is not there, and was not to be performed."""


class NoScoresError(UserError):
    """A method's runs are there, and have no scores of it."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        config: the file, or None for the embedded default.
        overrides: `section.key=value`, for all.
        methods: names of `VARIANTS`.
        seeds: at least one. The search for learning rates begins on the first.
        rates: learning rates, at least one; of two or more, every method gets the one with the
            lowest validation loss: rates race over seeds until they are clearly behind. While the
            lowest or highest leads, the next is tried too (1 and 3 times powers of ten). See
            `search`.
        out: folder of the comparison; runs are in `runs/` below it, their records in `runs.jsonl`.
        perform: whether runs that are missing are performed. Otherwise records of the same
            configuration are read, whatever data, weights and device are here.
        force: whether complete runs of other settings, in the folders of these, are replaced.
    """

    config: Path | None
    overrides: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    rates: Sequence[float]
    out: Path
    perform: bool = True
    force: bool = False

    def configure(self, variant: Variant, rate: float, seed: int, choice: str = "") -> Config:
        """The configuration of one run, with one of the variant's choices on top if there is one.

        Raises:
            UserError: if the variant could not take the steps that others do.
        """
        base = load_config(self.config, self.overrides)
        one, two = base.stage1, base.stage2
        settings = [setting.format(rounds=one.rounds + two.rounds) for setting in variant.settings]
        unequal = (one.cohort, one.epochs) != (two.cohort, two.epochs)
        if unequal and any("{rounds}" in setting for setting in variant.settings):
            raise UserError(
                f"got stages of unequal cohorts or epochs, of which {variant.title} has one alone; "
                "expected equal ones, as steps must be; try leaving it out of --methods"
            )
        own = [f"training.learning_rate={rate}", f"seed={seed}"]
        if "method=flexlora" not in settings:
            own.append("lora.ranks={}")  # nobody else can have them
        own += [choice] if choice else []
        return load_config(self.config, [*self.overrides, *settings, *own])

    def choices(self, variant: Variant) -> Iterator[str]:
        """The configuration as it is (an empty string), then what else is tried."""
        yield ""
        if len(self.rates) > 1:
            first = (variant, self.rates[0], self.seeds[0])
            same = self.configure(*first)
            yield from (word for word in variant.choices if self.configure(*first, word) != same)

    def folder(self, name: str, rate: float, seed: int, choice: str = "") -> Path:
        """Where one run is kept; the folder's name is the run's."""
        tag = f"-{choice.split('.', 1)[1].replace('=', '')}" if choice else ""  # -own_pull0.01
        return self.out / "runs" / f"{name}-rate{rate:g}{tag}-seed{seed}"

    def records(self) -> Records:
        """Of all runs that were made or used so far."""
        return Records(self.out / "runs.jsonl")


@dataclass(frozen=True)
class Result:
    """One method on one seed.

    Args:
        method: name of the variant.
        seed: of the run.
        rate: the learning rate that was chosen, or None where all do the same: nothing is trained.
        edge: whether rates beyond it, which were not tried, might be better.
        folder: of the run, if it was kept.
        record: of the run.
        test, validation: scores of the variant's role, as a role's are in `summary.json`;
            validation is None without validation rows.
        unseen, unseen_adapted: scores of unseen clients before and after they adapt, or None.
        cost: as in `summary.json`.
        choice: which of the variant's choices was taken; empty: none, it is as configured.
    """

    method: str
    seed: int
    rate: float | None
    edge: bool
    folder: Path
    record: Record
    test: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    unseen: Mapping[str, Any] | None
    unseen_adapted: Mapping[str, Any] | None
    cost: Mapping[str, Any]
    choice: str = ""


def compare(plan: Plan, watch: Watch = lambda name, event: None) -> list[Result]:
    """Results of all methods and seeds, in the order of methods, then seeds.

    Raises:
        UserError: if a method is unknown, a run of one fails, rows are lacking, or complete
            runs of other settings are in the way.
        MissingRunError: if a run is missing that the plan does not perform.
        NoScoresError: if runs of a method have no such scores, as zero-shot of a linear head.
    """
    check(plan)
    records = plan.records()
    found = (_results(plan, records, name, watch) for name in plan.methods)
    return [result for results in found for result in results]


def check(plan: Plan) -> None:
    """Make sure that all can be run, if they are to be, before anything is.

    Raises:
        UserError: naming what is wrong.
    """
    records = plan.records()
    for word in plan.overrides:
        if option := _OPTIONS.get(word.split("=")[0].strip()):
            raise UserError(f"got {word}; expected {option}, for the comparison sets it itself")
    for name in plan.methods:
        if name not in VARIANTS:
            hint = did_you_mean(name, VARIANTS)
            raise UserError(f"got method {name!r}; expected one of {', '.join(VARIANTS)}{hint}")
        if not plan.perform:
            continue
        runner, variant = _runner(name)
        try:
            check_run(plan.configure(variant, plan.rates[0], plan.seeds[0]))
            for which in product(plan.rates, plan.seeds):
                config, folder = plan.configure(variant, *which), plan.folder(runner, *which)
                _refuse_other(plan, records.get(folder.name), config, folder)
        except (ConfigError, UserError) as error:
            raise UserError(f"{name}: {error}") from None


_OPTIONS = {
    "method": "--methods (in Python methods=)",
    "seed": "--seeds (seeds=)",
    "training.learning_rate": "--rates (rates=)",
}
"""What every run of a comparison is given, and by what."""


def _runner(name: str) -> tuple[str, Variant]:
    """The variant whose runs are read."""
    name = VARIANTS[name].run or name
    return name, VARIANTS[name]


def _results(plan: Plan, records: Records, name: str, watch: Watch) -> list[Result]:
    runner, variant = _runner(name)

    def record(choice: str, rate: float, seed: int) -> Record:
        config = plan.configure(variant, rate, seed, choice)
        folder = plan.folder(runner, rate, seed, choice)
        return _record(plan, records, config, folder, watch)

    choice, best = _choose(plan, variant, lambda *which: record(*which).summary)
    role, results = VARIANTS[name].role, []
    personal = role == "personal"
    for seed in plan.seeds:
        its = record(choice, best.rate, seed)
        found = its.summary
        if found["test"][role] is None:
            raise NoScoresError(
                f"its runs have no scores of it ({VARIANTS[name].title}): a head that is trained "
                "has none before, and there is no mixture without both experts"
            )
        results.append(
            Result(
                method=name,
                seed=seed,
                rate=None if best.place == "any" else best.rate,
                edge=best.place == "edge",
                folder=plan.folder(runner, best.rate, seed, choice),
                record=its,
                test=found["test"][role],
                validation=found["validation"][role],
                unseen=found["test"]["unseen"] if personal else None,
                unseen_adapted=found["test"]["unseen_adapted"] if personal else None,
                cost=found["cost"],
                choice=choice,
            )
        )
    return results


def _choose(
    plan: Plan, variant: Variant, summary: Callable[[str, float, int], Mapping[str, Any]]
) -> tuple[str, Found]:
    """The choice and the learning rate with the lowest validation loss."""
    found: dict[str, Found] = {}
    for choice in plan.choices(variant):
        try:
            found[choice] = search(plan.rates, plan.seeds, partial(summary, choice))
        except DivergenceError as error:
            failure = error
    if not found:
        raise failure
    best = min(found, key=lambda choice: found[choice].loss)
    return best, found[best]


def _record(plan: Plan, records: Records, config: Config, folder: Path, watch: Watch) -> Record:
    """Of a run, which is performed if it is not there."""
    fits = Record.fits if plan.perform else Record.is_of
    record = records.get(folder.name)
    if record is None or not fits(record, config):
        record = Record.read(folder)
    if record is None or not fits(record, config):
        if not plan.perform:
            raise MissingRunError(f"got no complete run in {folder}; expected one")
        _refuse_other(plan, records.get(folder.name), config, folder, anyway=True)
        record = _perform(plan, config, folder, watch)
    records.add(folder.name, record)
    found = record.summary
    if DIVERGED in found:
        raise DivergenceError(found[DIVERGED])
    test, val = (found[split]["personal"] is not None for split in ("test", "validation"))
    _need_rows(plan, test=test, val=val)
    return record


def _refuse_other(
    plan: Plan, record: Record | None, config: Config, folder: Path, *, anyway: bool = False
) -> None:
    """Do not replace a complete run that is not of this configuration, unless that is asked for.

    One that is, may still be of other data or weights: `anyway` says that it does not fit.
    """
    record = record or Record.read(folder)
    if plan.force or not (record or (folder / "summary.json").exists()):
        return
    differs = record.differs(config) if record else "what cannot be read"
    if differs or anyway:
        raise UserError(
            f"got {folder}, a complete run of {differs or 'other data, weights or precision'}; try "
            "another (--out; in Python out=), or to replace it (--force; force=True)"
        )


def _perform(plan: Plan, config: Config, folder: Path, watch: Watch) -> Record:
    def tell(event: Event) -> None:
        if isinstance(event, Started):
            who = event.experiment.clients
            _need_rows(plan, test=any(len(c.test) for c in who), val=any(len(c.val) for c in who))
        watch(folder.name, event)

    try:
        if not _go_on(config, folder, tell):
            run(config, folder, force=True, watch=tell)
    except DivergenceError as error:  # that it diverges is what came of it
        write_json(folder / "summary.json", {DIVERGED: str(error)})
    record = Record.read(folder)
    assert record is not None, f"{folder} was complete just now"
    return record


def _go_on(config: Config, folder: Path, watch: Callable[[Event], None]) -> bool:
    """Finish a run of this configuration that was cut short; False where there is none."""
    begun = False

    def tell(event: Event) -> None:
        nonlocal begun
        begun = True
        watch(event)

    try:
        same = untracked(load_config(folder / "config.toml")) == untracked(config)
        if not same or (folder / "summary.json").exists():
            return False
        resume(folder, watch=tell)
    except (ConfigError, UserError):  # nothing there, no checkpoint, or other data or weights
        if begun:
            raise  # it failed on the way, and can go on from its checkpoint once that is mended
        return False
    return True


def _need_rows(plan: Plan, *, test: bool, val: bool) -> None:
    """Refuse what cannot be compared, or not be decided, with the rows that there are."""
    if not test:
        raise UserError(
            "got no client with test rows; expected some to compare methods on; try "
            "partition.test_fraction=0.2"
        )
    if not val and len(plan.rates) > 1:
        raise UserError(
            f"got {len(plan.rates)} learning rates and no client with validation rows to choose "
            "by; try one of --rates, or partition.val_fraction=0.1"
        )
