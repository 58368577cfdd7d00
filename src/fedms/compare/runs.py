"""Perform the runs of a comparison that are missing, and read the others.

A run is a build product: one that is complete and has the same resolved configuration, data, model
and precision is used again, so that a comparison which was interrupted goes on where it was. What
is said of runs is said from their records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedms.compare.records import Record, Records
from fedms.compare.variants import VARIANTS, Variant
from fedms.config import Config, load_config
from fedms.core.errors import DivergenceError, UserError, did_you_mean
from fedms.events import Event, Started
from fedms.run import check as check_run
from fedms.run import run
from fedms.store.files import write_json
from fedms.store.marks import DIVERGED

Watch = Callable[[str, Event], None]
"""Is told the name of the run and its event."""

_LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Learning rates to go on with where the best of a grid is at its edge."""
_WORTH = 0.99
"""The loss at the edge, as a share of its neighbour's, up to which it is worth to go on."""
_CLOSE = 1.05
"""The loss on the first seed, as a multiple of the lowest, up to which a rate runs on all seeds."""


class MissingRunError(UserError):
    """A run is not there, and was not to be performed."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        config: the file, or None for the embedded default.
        overrides: `section.key=value`, for all.
        methods: names of `VARIANTS`.
        seeds: at least one. The first is that on which learning rates are searched.
        rates: learning rates, at least one; of two or more, every method gets the one with the
            lowest validation loss on the first seed. While that is the lowest or highest tried,
            and 1 % below its neighbour's, the next is tried too (1 and 3 times powers of ten).
            Of those within 5 % of the lowest, the mean over all seeds decides.
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

    def configure(self, variant: Variant, rate: float, seed: int) -> Config:
        """The configuration of one run.

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
        return load_config(self.config, [*self.overrides, *settings, *own])

    def folder(self, name: str, rate: float, seed: int) -> Path:
        """Where one run is kept; the folder's name is the run's."""
        return self.out / "runs" / f"{name}-rate{rate:g}-seed{seed}"

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


def compare(plan: Plan, watch: Watch = lambda name, event: None) -> list[Result]:
    """Results of all methods and seeds, in the order of methods, then seeds.

    Raises:
        UserError: if a method is unknown, a run of one fails, rows are lacking, or complete
            runs of other settings are in the way.
        MissingRunError: if a run is missing that the plan does not perform.
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
    for word in plan.overrides:
        if option := _OPTIONS.get(word.split("=")[0].strip()):
            raise UserError(f"got {word}; expected {option}, for the comparison sets it itself")
    for name in plan.methods:
        if name not in VARIANTS:
            hint = did_you_mean(name, VARIANTS)
            raise UserError(f"got method {name!r}; expected one of {', '.join(VARIANTS)}{hint}")
        if not plan.perform:
            continue
        try:
            check_run(plan.configure(_runner(name)[1], plan.rates[0], plan.seeds[0]))
        except UserError as error:
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

    def record(rate: float, seed: int) -> Record:
        config, folder = plan.configure(variant, rate, seed), plan.folder(runner, rate, seed)
        return _record(plan, records, config, folder, watch)

    rate, place = _search(plan, lambda rate, seed: record(rate, seed).summary)
    role, results = VARIANTS[name].role, []
    personal = role == "personal"
    for seed in plan.seeds:
        its = record(rate, seed)
        found = its.summary
        if found["test"][role] is None:
            continue  # e.g. zero-shot of a model that cannot score classes
        results.append(
            Result(
                method=name,
                seed=seed,
                rate=None if place == "any" else rate,
                edge=place == "edge",
                folder=plan.folder(runner, rate, seed),
                record=its,
                test=found["test"][role],
                validation=found["validation"][role],
                unseen=found["test"]["unseen"] if personal else None,
                unseen_adapted=found["test"]["unseen_adapted"] if personal else None,
                cost=found["cost"],
            )
        )
    return results


def _search(
    plan: Plan, summary: Callable[[float, int], Mapping[str, Any]]
) -> tuple[float, Literal["inside", "edge", "any"]]:
    """The learning rate with the lowest validation loss, and where it lies."""
    if len(plan.rates) == 1:
        return plan.rates[0], "inside"
    losses: dict[float, float] = {}
    errors: dict[float, DivergenceError] = {}

    untrained = math.inf

    def loss(rate: float, seed: int) -> float:
        nonlocal untrained
        try:
            validation = summary(rate, seed)["validation"]
            if seed == first and (zero_shot := validation.get("zero_shot")):
                untrained = float(zero_shot["loss"])
            return float(validation["personal"]["loss"])
        except DivergenceError as error:
            errors[rate] = error
            return math.inf

    first, *others = plan.seeds
    for rate in sorted(plan.rates):
        losses[rate] = loss(rate, first)
    if not errors and len(set(losses.values())) == 1:
        return rate, "any"
    while (below := _below(losses)) and min(losses.values()) >= untrained:
        losses[below] = loss(below, first)  # all were so high that they spoiled the model
    while True:
        while _at_edge(losses) and (beyond := _beyond(losses)):
            losses[beyond] = loss(beyond, first)
        place: Literal["inside", "edge"] = "edge" if _at_edge(losses) else "inside"
        close = [rate for rate, value in losses.items() if value <= _CLOSE * min(losses.values())]
        sums = {rate: sum((loss(rate, s) for s in others), losses[rate]) for rate in close}
        best = min(close, key=sums.__getitem__)
        if sums[best] < math.inf:
            return best, place
        if min(losses.values()) == math.inf:
            raise errors[best]
        losses |= dict.fromkeys(close, math.inf)  # each diverges on some seed


def _at_edge(losses: Mapping[float, float]) -> bool:
    """Whether the best rate is the last on its side, and clearly better than the one before."""
    best, *others = sorted(losses, key=losses.__getitem__)
    if min(losses) < best < max(losses):
        return False
    neighbour = min(others, key=lambda rate: abs(rate - best))
    return losses[best] == math.inf or losses[best] < _WORTH * losses[neighbour]


def _beyond(losses: Mapping[float, float]) -> float | None:
    """The rate next to the best one on the side where nothing was tried, if there is one."""
    best = min(losses, key=losses.__getitem__)
    if best == min(losses):
        return _below(losses)
    return min((rate for rate in _LADDER if rate > best), default=None)


def _below(losses: Mapping[float, float]) -> float | None:
    """The rate next to the lowest that was tried, if there is one."""
    return max((rate for rate in _LADDER if rate < min(losses)), default=None)


def _record(plan: Plan, records: Records, config: Config, folder: Path, watch: Watch) -> Record:
    """Of a run, which is performed if it is not there."""
    fits = Record.fits if plan.perform else Record.is_of
    record = records.get(folder.name)
    if record is None or not fits(record, config):
        record = Record.read(folder)
    if record is None or not fits(record, config):
        if not plan.perform:
            raise MissingRunError(f"got no complete run in {folder}; expected one")
        complete = records.get(folder.name) or (folder / "summary.json").exists()
        if complete and not plan.force:
            raise UserError(
                f"got {folder}, a complete run of other settings, data or weights; try another "
                "(--out; in Python out=), or to replace it (--force; force=True)"
            )
        record = _perform(plan, config, folder, watch)
    records.add(folder.name, record)
    found = record.summary
    if DIVERGED in found:
        raise DivergenceError(found[DIVERGED])
    test, val = (found[split]["personal"] is not None for split in ("test", "validation"))
    _need_rows(plan, test=test, val=val)
    return record


def _perform(plan: Plan, config: Config, folder: Path, watch: Watch) -> Record:
    def tell(event: Event) -> None:
        if isinstance(event, Started):
            who = event.experiment.clients
            _need_rows(plan, test=any(len(c.test) for c in who), val=any(len(c.val) for c in who))
        watch(folder.name, event)

    try:
        run(config, folder, force=True, watch=tell)
    except DivergenceError as error:  # that it diverges is what came of it
        write_json(folder / "summary.json", {DIVERGED: str(error)})
    record = Record.read(folder)
    assert record is not None, f"{folder} was complete just now"
    return record


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
