"""A comparison: what is run, what is used again, and what is said of it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from fedms.cli import app
from fedms.compare import (
    VARIANTS,
    MissingRunError,
    Plan,
    Result,
    compare,
    plots,
    records,
    runs,
    table,
)
from fedms.compare.records import Point, Record, Records
from fedms.compare.scores import Spread, by_method, until, versus, within
from fedms.config import dump_config, load_config, validate
from fedms.core.errors import DivergenceError, UserError
from fedms.events import RoundDone
from fedms.identity import identity
from fedms.report import write
from fedms.run import resume

SETTINGS = (
    "data.max_rows=120",
    "partition.clients=4",
    "partition.unseen_clients=1",
    "partition.unseen_rounds=1",
    "partition.alpha=1.0",
    "partition.test_fraction=0.4",
    "stage1.rounds=1",
    "stage2.rounds=1",
    "evaluate_every=1",
    "sal.start=1",
    "model.prompt=a neatly handwritten {label}",  # known badly: there is a best rate to be found
)
METHODS = ("zeroshot", "local", "fedavg", "fedms", "fedms:global")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return Plan(None, SETTINGS, METHODS, (0, 1), (1e-3,), out)


@pytest.fixture(scope="module")
def results(plan):
    return compare(plan)


def test_one_result_a_method_and_seed(results):
    found = [(r.method, r.seed) for r in results]
    assert found == [(method, seed) for method in METHODS for seed in (0, 1)]
    for result in results:
        assert 0 <= result.test["mean"] <= 1
        assert len(result.test["per_client"]) == 3


@pytest.mark.slow
def test_the_rate_is_that_of_the_lowest_validation_loss(plan, tmp_path):
    losses = {}
    searched = replace(plan, methods=("local",), rates=(1e-2, 3e-2), out=tmp_path)
    results = compare(searched)
    for folder in (tmp_path / "runs").glob("local-rate*"):
        config = load_config(folder / "config.toml")
        summary = json.loads((folder / "summary.json").read_text())
        of_rate = losses.setdefault(config.training.learning_rate, {})
        of_rate[config.seed] = summary["validation"]["personal"]["loss"]
    assert set(losses) >= set(searched.rates)
    (chosen,) = {r.rate for r in results}
    lowest = min(found[0] for found in losses.values())
    close = {rate for rate, found in losses.items() if found[0] <= 1.1 * lowest}
    assert chosen == min(close, key=lambda rate: sum(losses[rate].values()))
    for rate, found in losses.items():
        assert set(found) == ({0, 1} if rate in close else {0})


@pytest.mark.parametrize("better", [0.01, 1.0])
def test_choices_of_a_method_are_decided_as_rates_are(plan, results, tmp_path, monkeypatch, better):
    """Ditto with its own pull and a weak one, each at its best rate; the better is in the table."""
    pulls = {}

    def invented(plan, config, folder, watch):
        pull = config.baselines.own_pull
        pulls.setdefault(pull, []).append(folder.name)
        done = by_name(results, "local")[0].record
        loss = 1 + abs(math.log(config.training.learning_rate / 2e-3)) + (pull != better)
        scores = {**done.summary["validation"]["personal"], "loss": loss}
        summary = {**done.summary, "validation": {"personal": scores}}
        return replace(done, config=config.model_dump(mode="json"), summary=summary)

    monkeypatch.setattr(runs, "_perform", invented)
    searched = replace(plan, methods=("ditto",), rates=(1e-3, 1e-2), out=tmp_path)
    chosen = compare(searched)
    assert {r.choice for r in chosen} == {"baselines.own_pull=0.01" if better == 0.01 else ""}
    assert {r.rate for r in chosen} == {1e-3}
    said = "0.001, baselines.own_pull=0.01" if better == 0.01 else "0.001"
    assert f"| {said} |" in table.markdown(chosen)
    assert set(pulls) == {0.01, 1.0}
    assert all("-own_pull0.01-seed" in name for name in pulls[0.01])
    assert not any("own_pull" in name for name in pulls[1.0])
    assert [len(names) for names in pulls.values()] == [len(set(names)) for names in pulls.values()]


def test_what_is_chosen_from(plan):
    """The configuration as it is, and what differs from it; nothing without rates to choose."""
    ditto, searched = VARIANTS["ditto"], replace(plan, rates=(1e-3, 1e-2))
    assert list(searched.choices(ditto)) == ["", "baselines.own_pull=0.01"]
    same = replace(searched, overrides=(*SETTINGS, "baselines.own_pull=0.01"))
    assert list(same.choices(ditto)) == [""]
    assert list(plan.choices(ditto)) == [""]
    assert list(searched.choices(VARIANTS["fedms"])) == [""]


def test_a_choice_that_diverges_everywhere_is_given_up(plan):
    def summary(choice, rate, seed):
        if not choice:
            raise DivergenceError("learning_rate")
        return {"validation": {"personal": {"loss": 1 + rate}}}

    wanted = replace(plan, rates=(1e-3, 1e-2))
    choice, found = runs._choose(wanted, VARIANTS["ditto"], summary)
    assert (choice, found.rate) == ("baselines.own_pull=0.01", 1e-3)

    def never(choice, rate, seed):
        raise DivergenceError("learning_rate")

    with pytest.raises(DivergenceError):
        runs._choose(wanted, VARIANTS["ditto"], never)


def test_roles_of_one_run_are_read_from_it(plan, results):
    by = {(r.method, r.seed): r for r in results}
    for seed in (0, 1):
        summary = json.loads((by["fedms", seed].folder / "summary.json").read_text())
        for method, role in {"zeroshot": "zero_shot", "fedms:global": "global"}.items():
            assert by[method, seed].folder == by["fedms", seed].folder
            assert by[method, seed].test == summary["test"][role]
    assert not (plan.out / "runs" / "zeroshot-rate0.001-seed0").exists()


def test_what_is_there_is_used_again_and_what_is_missing_is_run(plan, results, monkeypatch):
    performed = []
    original = runs.run

    def spy(config, folder, **options):
        performed.append(folder.name)
        return original(config, folder, **options)

    monkeypatch.setattr(runs, "run", spy)
    assert compare(plan) == results
    assert performed == []
    elsewhere = ("runtime.workers=2", "checkpoint_every=3")  # the same but for rounding
    assert compare(replace(plan, overrides=(*SETTINGS, *elsewhere))) == results
    assert performed == []
    lost = by_name(results, "local")[1].folder
    shutil.rmtree(lost)  # its record is enough
    assert compare(plan) == results
    assert performed == []
    lines = (plan.out / "runs.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["run"] != lost.name]
    (plan.out / "runs.jsonl").write_text("".join(kept))
    assert compare(plan) == [*results[:3], changed(results[3]), *results[4:]]
    assert performed == [lost.name]


def test_a_run_that_was_cut_short_goes_on(plan, results, tmp_path, monkeypatch):
    """From its last checkpoint, and ends as it would have; one of other settings begins anew."""
    one, begun, resumed = replace(plan, methods=("fedms",), seeds=(0,), out=tmp_path), [], []
    original = runs.run, runs.resume

    def cut_short(name, event):
        if isinstance(event, RoundDone) and event.record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(one, cut_short)
    folder = one.folder("fedms", 1e-3, 0)
    assert folder.is_dir()
    assert not (folder / "summary.json").exists()
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    monkeypatch.setattr(runs, "run", lambda c, f, **o: begun.append(f) or original[0](c, f, **o))
    monkeypatch.setattr(runs, "resume", lambda f, **o: resumed.append(f) or original[1](f, **o))
    (done,) = compare(one)
    assert (begun, resumed) == ([], [folder])
    assert done.test == by_name(results, "fedms")[0].test
    assert [p.test for p in done.record.points] == [
        p.test for p in by_name(results, "fedms")[0].record.points
    ]
    resumed.clear()
    compare(replace(one, overrides=(*SETTINGS, "gate.smoothing=0.4"), out=other))
    assert (len(begun), resumed) == (1, [])


def test_a_run_goes_on_with_as_many_processes_or_not_at_all(plan, tmp_path, monkeypatch):
    """One that lacked memory would lack it again, and "try fewer runtime.workers" is the advice."""
    resumed = []
    monkeypatch.setattr(runs, "resume", lambda folder, **options: resumed.append(folder))
    config = plan.configure(VARIANTS["local"], 1e-3, 0)
    (tmp_path / "config.toml").write_text(dump_config(config))
    wanted = replace(plan, overrides=(*SETTINGS, "runtime.workers=2"))
    fewer = wanted.configure(VARIANTS["local"], 1e-3, 0)
    assert not runs._go_on(fewer, tmp_path, lambda event: None)
    assert runs._go_on(config, tmp_path, lambda event: None)
    assert resumed == [tmp_path]


@pytest.mark.slow
def test_a_run_that_fails_as_it_goes_on_keeps_its_checkpoints(plan, tmp_path):
    one = replace(plan, methods=("fedms",), seeds=(0,), out=tmp_path)

    def stop(error, at):
        def watch(name, event):
            if isinstance(event, RoundDone) and event.record.round == at:
                raise error

        return watch

    with pytest.raises(KeyboardInterrupt):
        compare(one, stop(KeyboardInterrupt(), 1))
    with pytest.raises(UserError, match="full disk"):
        compare(one, stop(UserError("got a full disk"), 2))
    begun = []
    compare(one, lambda name, event: begun.append(event) if isinstance(event, RoundDone) else None)
    assert 0 not in [event.record.round for event in begun]


@pytest.mark.slow
def test_what_cannot_go_on_begins_anew(plan, results, tmp_path):
    """A run that has no checkpoint."""
    one = replace(plan, methods=("local",), seeds=(0,), out=tmp_path)

    def cut_short(name, event):
        if isinstance(event, RoundDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(one, cut_short)
    shutil.rmtree(one.folder("local", 1e-3, 0) / "checkpoints")
    assert compare(one)[0].test == by_name(results, "local")[0].test


def by_name(results, method):
    return [r for r in results if r.method == method]


def changed(result):
    """The same result, with the seconds that its new run took."""
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["test"]["personal"] == result.test
    return replace(result, cost=summary["cost"], record=Record.read(result.folder))


def test_a_run_with_other_settings_is_not_used(plan, results):
    config = load_config(None, [*SETTINGS, "method=fedms", "gate.smoothing=0.4"])
    assert not by_name(results, "fedms")[0].record.fits(config)


@pytest.mark.parametrize(
    ("sal", "read_by"),
    [({"start": 2}, {"fedms"}), ({"caps": {"*": 1}}, {"fedms", "fedavg", "local"})],
)
def test_growth_of_sal_is_read_by_fedms_alone(results, sal, read_by):
    """So that another one does not run all others again; everybody reads caps."""
    for method in ("fedms", "fedavg", "local"):
        record = by_name(results, method)[0].record
        other = validate({**record.config, "sal": {**record.config["sal"], **sal}})
        assert record.is_of(other) == (method not in read_by)


@pytest.mark.slow
def test_complete_runs_of_other_settings_are_replaced_on_demand_only(tmp_path):
    one = Plan(None, SETTINGS, ("local",), (0,), (1e-3,), tmp_path)
    (first,) = compare(one)
    other = replace(one, overrides=(*SETTINGS, "partition.unseen_rounds=0"))
    with pytest.raises(UserError, match=r"try another \(--out"):
        compare(other)
    assert compare(one) == [first]
    (second,) = compare(replace(other, force=True))
    assert second.folder == first.folder
    assert second.unseen_adapted != first.unseen_adapted


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": (0, -1)}, "fedavg: got seed = -1"),
        ({"rates": (1e-3, math.nan)}, "fedavg: got training.learning_rate = NaN"),
        (
            {"methods": ("ffa", "local"), "overrides": (*SETTINGS, "training.batch_size=5")},
            r"local: got .*, a complete run of other settings \(training.batch_size = \d+, not 5\)",
        ),
    ],
)
def test_what_would_fail_later_fails_before_anything_is_run(
    plan, results, monkeypatch, wrong, said
):
    """Hours later otherwise, and once tables are written anew without what was in them."""
    monkeypatch.setattr(runs, "run", None)
    with pytest.raises(UserError, match=said):
        compare(replace(plan, **{"methods": ("fedavg",), **wrong}))


def test_a_method_without_scores_is_told_of(tmp_path):
    """Zero-shot of a head that is trained, which has no scores before."""
    words = ["compare", *SETTINGS, "model.head=linear", "--seeds", "0", "--rates", "1e-3"]
    words += ["--out", str(tmp_path), "--methods", "zeroshot,fedms"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "zeroshot: its runs have no scores of it (zero-shot)" in done.stderr
    assert "zero-shot is left out: its runs have no scores" in (tmp_path / "table.md").read_text()


def texts(path, *classes):
    """A CSV file with ten rows of every class."""
    rows = [f"{c} {i},{c}" for c in classes for i in range(10)]
    path.write_text("\n".join(["text,label", *rows]))


def test_runs_of_other_data_or_weights_are_not_used(tmp_path, model_folder):
    """Although they are behind the same names, and as long."""
    model = shutil.copytree(model_folder("sentence"), tmp_path / "model")
    data = tmp_path / "texts.csv"
    texts(data, "red", "dog")
    settings = ("data.source=csv", f"data.path={data}", f"model.name={model}")
    settings += ("partition.clients=2", "stage1.rounds=1", "stage2.rounds=0")
    plan = Plan(None, settings, ("local",), (0,), (1e-3,), tmp_path / "out")
    (done,) = (result.record for result in compare(plan))
    config = plan.configure(VARIANTS["local"], 1e-3, 0)
    assert done.fits(config)
    texts(data, "dog", "red")
    assert not done.fits(config)
    with pytest.raises(UserError, match="other data, weights or precision"):
        compare(plan)
    texts(data, "red", "dog")
    assert done.fits(config)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert not done.fits(config)


@pytest.mark.parametrize(("key", "value"), [("precision", "bfloat16"), ("device", "tpu")])
def test_runs_of_other_precision_or_device_are_not_used(results, monkeypatch, key, value):
    done = by_name(results, "fedms")[0]
    config = load_config(done.folder / "config.toml")
    assert done.record.fits(config)
    facts = identity(config)
    monkeypatch.setattr(records, "identity", lambda config: {**facts, key: value})
    assert not done.record.fits(config)


def test_records_are_what_was_written_and_survive_what_was_cut_short(plan, results, tmp_path):
    """By a crash in the middle of a line, which the next one does not continue."""
    path = tmp_path / "runs.jsonl"
    first, second = (r.record for r in by_name(results, "fedms"))
    assert Record.read(by_name(results, "fedms")[0].folder) == first
    kept = Records(path)
    kept.add("a", first)
    kept.add("a", first)
    assert len(path.read_text().splitlines()) == 1
    path.write_text(path.read_text() + path.read_text()[:-40].replace('"run": "a"', '"run": "b"'))
    assert Records(path).get("b") is None
    Records(path).add("a", second)
    Records(path).add("c", first)
    again = Records(path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (second, None, first)
    assert "per_client" in first.summary["test"]["personal"]
    assert "per_client" not in first.summary["validation"]["personal"]
    path.write_text('{"run": "a"}\n')
    with pytest.raises(UserError, match="no record of a run"):
        Records(path)


def test_a_line_cut_within_a_letter_is_passed_over(results, tmp_path):
    path, done = tmp_path / "runs.jsonl", by_name(results, "fedms")[0].record
    summary = {**done.summary, "method": "é"}
    Records(path).add("a", replace(done, summary=summary))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("é".encode()) + 1])
    assert Records(path).get("a").summary == summary


@pytest.mark.slow
def test_a_complete_run_that_cannot_be_read_is_not_replaced(tmp_path):
    """Of another version, whose options are unknown here."""
    one = Plan(None, SETTINGS, ("local",), (0,), (1e-3,), tmp_path)
    (first,) = compare(one)
    (tmp_path / "runs.jsonl").unlink()
    config = first.folder / "config.toml"
    before = config.read_text()
    config.write_text(f"of_old = 1\n{before}")
    with pytest.raises(UserError, match=r"try another \(--out"):
        compare(one)
    config.write_text(before)
    (first.folder / "rounds.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"try another \(--out"):
        compare(one)
    assert compare(replace(one, force=True))[0].test == first.test


def test_records_are_read_where_data_and_weights_are_not(tmp_path, model_folder):
    """To write tables anywhere; but nothing is performed by them."""
    data, model = tmp_path / "texts.csv", model_folder("sentence")
    texts(data, "red", "dog")
    settings = ("data.source=csv", f"data.path={data}", f"model.name={model}")
    settings += ("partition.clients=2", "stage1.rounds=1", "stage2.rounds=0")
    plan = Plan(None, settings, ("local",), (0,), (1e-3,), tmp_path / "out")
    (done,) = compare(plan)
    data.unlink()
    shutil.rmtree(done.folder)
    assert compare(replace(plan, perform=False)) == [done]
    with pytest.raises(UserError):
        compare(plan)


def test_an_option_that_came_later_counts_as_its_default(results):
    done = by_name(results, "fedms")[0].record
    config = validate(done.config)
    gate = {k: v for k, v in done.config["gate"].items() if k != "smoothing"}
    older = replace(done, config={**done.config, "gate": gate})
    assert older.fits(config)
    assert not older.fits(load_config(None, [*SETTINGS, "gate.smoothing=0.4"]))
    gone = replace(done, config={**done.config, "gate": {**gate, "of_old": 1}})
    assert not gone.fits(config)


def test_every_variant_is_a_valid_configuration():
    plan = Plan(None, ("stage1.rounds=2", "stage2.rounds=3"), list(VARIANTS), (0,), (1e-3,), Path())
    runs.check(plan)
    for name, variant in VARIANTS.items():
        if variant.run:
            assert VARIANTS[variant.run].run == ""
            continue
        config = plan.configure(variant, 1e-3, 0)
        assert config.stage1.rounds + config.stage2.rounds == 5, name
        if variant.group != "ours" and "+" not in name:
            assert (config.gate.mix_prior, config.stage1.prior) == ("none", "none")
            assert not config.gate.calibration
            assert config.stage1.server_momentum == 0


def test_what_is_fedms_own_stays_with_fedms():
    """But for the rows that have all of it beside the mixture."""
    own = ("stage2.local_init=zero", "stage1.server_momentum=0.5")
    plan = Plan(None, own, (), (0,), (1e-3,), Path())
    for name, variant in VARIANTS.items():
        config = plan.configure(variant, 1e-3, 0)
        ours = variant.group == "ours" or bool(variant.run)
        assert config.stage2.local_init == ("zero" if ours else "global"), name
    for name in ("local", "finetune", "fedavg"):
        config = plan.configure(VARIANTS[f"{name}+calibration"], 1e-3, 0)
        assert (config.stage2.local_init, config.stage1.server_momentum) == ("global", 0.5)
        assert (config.gate.calibration, config.gate.statistics) == (True, "none")
        assert config.stage1.rounds + config.stage2.rounds == 20


@pytest.mark.parametrize(
    ("settings", "method"), [(["model.head=linear"], "promptfl"), (["lora.ranks.0=9"], "flexlora")]
)
def test_what_a_method_cannot_do_is_told_before_anything_is_run(plan, settings, method, tmp_path):
    words = (*SETTINGS, *settings)
    with pytest.raises(UserError, match=f"^{method}: got"):
        compare(Plan(None, words, ("local", method), (0,), (1e-3,), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_unequal_ranks_are_flexloras_alone():
    plan = Plan(None, ("lora.ranks.0=4",), (), (0,), (1e-3,), Path())
    for name, variant in VARIANTS.items():
        wanted = {"0": 4} if name == "flexlora" else {}
        assert plan.configure(variant, 1e-3, 0).lora.ranks == wanted


def test_an_unknown_method_is_named(plan):
    with pytest.raises(UserError, match=r"'sgd'.*fedavg"):
        compare(Plan(None, (), ("sgd",), (0,), (1e-3,), plan.out))


@pytest.mark.parametrize(
    ("word", "option"),
    [("method=ditto", "--methods"), ("seed=7", "--seeds"), ("training.learning_rate=1", "--rates")],
)
def test_what_a_comparison_sets_is_not_set_beside_it(word, option):
    with pytest.raises(UserError, match=f"got {word}; expected {option}"):
        compare(Plan(None, (word,), ("local",), (0,), (1e-3,), Path()))


@pytest.mark.slow
def test_a_rate_that_diverges_is_not_chosen_and_not_tried_again(plan):
    wild = replace(plan, methods=("local",), seeds=(0,), rates=(1e20, 1e-3))
    for again in (wild, replace(wild, perform=False)):
        (found,) = compare(again)
        assert found.rate < 1e20
        assert not found.edge
    assert not compare(replace(wild, rates=(1e-3,)))[0].edge
    (found,) = compare(replace(wild, rates=(1e20, 1e25)))  # goes on below
    assert found.rate <= 1
    with pytest.raises(DivergenceError, match="learning_rate"):
        compare(replace(wild, rates=(1e20,)))
    with pytest.raises(DivergenceError, match="learning_rate"):
        resume(wild.folder("local", 1e20, 0))
    write([wild.folder("local", 1e20, 0)])


def test_a_rate_whose_run_fails_is_not_passed_over(plan, monkeypatch):
    def fails(config, folder, **options):
        raise UserError("got a full disk")

    monkeypatch.setattr(runs, "run", fails)
    with pytest.raises(UserError, match="full disk"):
        compare(replace(plan, methods=("local",), seeds=(0,), rates=(0.5, 1e-3)))


def test_tables_say_what_the_summaries_say(plan, results, tmp_path):
    table.write(tmp_path, results)
    said = json.loads((tmp_path / "table.json").read_text())
    assert [m["method"] for m in said["methods"]] == list(by_method(results))
    for told in said["methods"]:
        found = by_name(results, told["method"])
        means = [result.test["mean"] for result in found]
        half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
        assert told["test"]["mean"] == pytest.approx({"mean": fmean(means), "half": half})
        ahead, worst = told["fedms_is_ahead_by"], told["fedms_is_ahead_in_the_worst_decile_by"]
        if told["method"] == "fedms":
            assert ahead is worst is None
        else:
            pairs = list(zip(by_name(results, "fedms"), found, strict=True))
            leads = [a.test["mean"] - b.test["mean"] for a, b in pairs]
            half = stats.t.ppf(0.975, len(leads) - 1) * stats.sem(leads)
            assert ahead["spread"] == pytest.approx({"mean": fmean(leads), "half": half})
            assert ahead == asdict(versus(by_name(results, "fedms"), found))
            lead = [a.test["worst_decile"] - b.test["worst_decile"] for a, b in pairs]
            assert worst["mean"] == pytest.approx(fmean(lead))
        assert (told["cost"] is None) == bool(VARIANTS[told["method"]].run)
        if told["cost"]:
            flops = fmean(result.cost["train_flops"] for result in found)
            assert told["cost"]["TFLOPs"] == pytest.approx(flops / 1e12)
    rows = said["runs"]
    assert [(r["method"], r["seed"]) for r in rows] == [(r.method, r.seed) for r in results]
    for row, result in zip(rows, results, strict=True):
        assert row["test"]["personal"] == result.test
        assert (row["test"]["unseen"] is None) == bool(VARIANTS[result.method].run)
        if row["test"]["unseen"]:
            summary = json.loads((result.folder / "summary.json").read_text())
            assert row["test"]["unseen"] == summary["test"]["unseen"]
            assert row["test"]["unseen_adapted"] == summary["test"]["unseen_adapted"]
        assert row["cost"] == result.cost
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["mean"]) for line in lines] == [r.test["mean"] for r in results]
    unseen = [r.unseen and str(r.unseen["mean"]) for r in results]
    assert [line["unseen"] or None for line in lines] == unseen
    assert {line["bound"] for line in lines} == {VARIANTS[r.method].bound for r in results}
    text = (tmp_path / "table.md").read_text()
    mean = np.mean([r.test["mean"] for r in by_name(results, "local")])
    line = next(line for line in text.splitlines() if line.startswith("| local-only LoRA |"))
    assert f"| {mean:.3f} ± " in line
    # equal steps, bytes, FLOPs, until accuracy, unseen clients
    assert text.count("\n| FedAvg-LoRA |") == 5
    assert " (edge) |" not in text
    marked = [replace(r, edge=r.method == "local") for r in results]
    assert table.markdown(marked).count(" (edge) |") == 1
    assert " | any | " in table.markdown([replace(r, rate=None) for r in results])
    unseen = text.split("| unseen clients |")[1]
    mean = np.mean([r.unseen_adapted["mean"] for r in by_name(results, "local")])
    line = next(line for line in unseen.splitlines() if line.startswith("| local-only LoRA |"))
    assert f"| {mean:.3f} ± " in line
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 13
    ours, theirs = (by_name(results, name) for name in ("fedms", "local"))
    for of, place in (("unseen", 4), ("unseen_adapted", 10)):
        differences = [
            np.mean([getattr(one, of)["per_client"][c] - accuracy for c, accuracy in known.items()])
            for one, other in zip(ours, theirs, strict=True)
            if (known := getattr(other, of)["per_client"])
        ]
        assert cells[place].startswith(f"{np.mean(differences):+.3f} ± ")
        better, worse = map(int, cells[place + 1].split(" : "))
        assert 0 <= better + worse <= sum(len(getattr(r, of)["per_client"]) for r in ours)
    assert "zero-shot" not in unseen
    assert "\n\nRuns at commit" in text


def test_the_answer_comes_first_and_is_the_tables(results):
    """Best other mean and best other worst decile, each with its method; bounds do not count."""
    text = table.markdown(results)
    first, means, worst = text.split("\n\n")[0], {}, {}
    for name in ("zeroshot", "local", "fedavg"):
        means[name], worst[name] = (
            np.mean([r.test[key] for r in by_name(results, name)])
            for key in ("mean", "worst_decile")
        )
    ours = by_name(results, "fedms")
    best, fairest = max(means, key=means.get), max(worst, key=worst.get)
    beside = versus(ours, by_name(results, best))
    assert f"**FedMS has {np.mean([r.test['mean'] for r in ours]):.3f}, the best other " in first
    ahead = f"a difference of {table.signed(beside.spread)} over seeds"
    assert f" {means[best]:.3f}** ({VARIANTS[best].title}), {ahead}: of {beside.of} pairs" in first
    assert (
        f"of client and seed FedMS makes {beside.better} better off, {beside.worse} worse" in first
    )
    tenths = [[r.test["worst_decile"] for r in by_name(results, n)] for n in ("fedms", fairest)]
    lead = table.signed(Spread.of([a - b for a, b in zip(*tenths, strict=True)]))
    assert f"and {worst[fairest]:.3f} ({VARIANTS[fairest].title}), {lead}." in first
    assert "MB" not in table.markdown([*by_name(results, "zeroshot"), *ours]).split("\n\n")[0]
    sent = [
        sum(r.cost["upload_bytes"] + r.cost["download_bytes"] for r in by_name(results, n))
        for n in ("fedms", best)
    ]
    costly = sent[1] and not VARIANTS[best].run
    assert (f"{sent[0] / sent[1]:.2f} of its MB sent" in first) if costly else "MB" not in first
    bound = [replace(r, method="centralised", test={**r.test, "mean": 1.0}) for r in ours]
    assert table.markdown([*results, *bound]).split("\n\n")[0] == first
    plain = ours[0].record.config["gate"]["calibration"] is False
    assert ("finetune+statistics" in first) != plain
    rival = [replace(r, method="finetune+statistics") for r in by_name(results, "local")]
    assert "to be compared too" not in table.markdown([*results, *rival]).split("\n\n")[0]
    alone = table.markdown(by_name(results, "local"))
    assert alone.startswith("| at equal local steps |")


def test_commits_that_differ_are_told(results, tmp_path):
    """With a mark where the code was changed without a commit."""
    found, one = [], by_name(results, "local")[0]
    days = ("2026-01-31T23:59:00+00:00", "2026-02-01T00:00:00+00:00", "2026-02-01T09:00:00+00:00")
    for day, commit in zip(days, ("a" * 40, f"{'b' * 40}-dirty", None), strict=True):
        facts = {**one.record.facts, "git_commit": commit, "started": day}
        found.append(replace(one, record=replace(one.record, facts=facts)))
    assert table.markdown(found[:1]).endswith(f"\n\nRuns at commit {'a' * 12}, 2026-01-31 (UTC).\n")
    commits = f"Runs at commits {'a' * 12}, {'b' * 12}-dirty, unknown: the code differed"
    assert commits in table.markdown(found)
    assert "between them, 2026-01-31 to 2026-02-01 (UTC)." in table.markdown(found)
    plots.write(tmp_path, results)
    assert "<svg" in (tmp_path / "accuracy.svg").read_text()
    assert "FedAvg-LoRA" in (tmp_path / "cost.svg").read_text()


@pytest.mark.slow
def test_without_validation_rows_nothing_is_decided_by_them(tmp_path):
    settings = (*SETTINGS, "partition.unseen_clients=0", "partition.val_fraction=0.0")
    plan = Plan(None, settings, ("local", "fedms"), (0,), (1e-3,), tmp_path)
    found = compare(plan)
    table.write(tmp_path, found)
    rows = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert [row["validation"]["personal"] for row in rows] == [None, None]
    text = (tmp_path / "table.md").read_text()
    assert "at equal local steps" in text
    assert "within" not in text
    assert "until" not in text
    plots.write(tmp_path, found)
    with pytest.raises(UserError, match="2 learning rates and no client with validation rows"):
        compare(replace(plan, rates=(1e-3, 3e-3)))


def test_rows_that_lack_are_told_before_anything_is_trained(tmp_path):
    for setting, rates in (("val_fraction", (1e-3, 3e-3)), ("test_fraction", (1e-3,))):
        settings, seen = (*SETTINGS, f"partition.{setting}=0.0"), []
        plan = Plan(None, settings, ("local",), (0,), rates, tmp_path / setting)
        with pytest.raises(UserError, match=f"partition.{setting}"):
            compare(plan, lambda name, event, to=seen: to.append(event))
        assert seen == []


def test_a_table_without_fedms_and_of_one_seed(results, tmp_path):
    table.write(tmp_path, by_name(results, "local")[:1])
    text = (tmp_path / "table.md").read_text()
    assert "±" not in text
    assert "local-only LoRA" in text


def test_bounds_say_what_they_bound(results):
    ours = by_name(results, "fedms")[:1]
    found = [replace(ours[0], method="fedms:oracle"), replace(ours[0], method="centralised")]
    text = table.markdown([*ours, *found])
    assert "| its oracle gate (bound for gates that choose one expert) |" in text
    assert "| centralised LoRA (not federated) |" in text
    assert "upper bound" not in text


def test_intervals_and_tests_against_scipy():
    values = [0.8, 0.83, 0.9]
    spread = Spread.of(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert spread.mean - spread.half == pytest.approx(low)
    assert spread.mean + spread.half == pytest.approx(high)
    assert Spread.of([0.5]) == Spread(0.5, None)


def result(method, seed, clients):
    scores = {"per_client": clients, "mean": float(np.mean(list(clients.values())))}
    record = Record({}, {}, {}, ())
    return Result(method, seed, 1e-3, False, Path(), record, scores, scores, None, None, {})


def same_spread(found, expected):
    assert found.mean == pytest.approx(expected.mean)
    assert found.half == pytest.approx(expected.half)


def test_clients_are_paired_seed_by_seed():
    ours = [result("a", 0, {"x": 0.9, "y": 0.5, "z": 0.7}), result("a", 1, {"x": 0.8, "y": 0.6})]
    theirs = [result("b", 1, {"x": 0.7, "y": 0.6}), result("b", 0, {"x": 0.5, "y": 0.6, "z": 0.4})]
    found = versus(ours, theirs)
    assert (found.of, found.better, found.worse, found.natural) == (5, 3, 1, False)
    same_spread(found.spread, Spread.of([0.2, 0.05]))
    assert found.p == pytest.approx(stats.wilcoxon([0.4, -0.1, 0.3, 0.1]).pvalue)
    assert versus(ours, ours).p is None
    assert versus(ours, [result("b", 7, {"x": 1.0})]) is None


def test_natural_clients_count_once_whatever_the_seeds():
    """They are the same ones on every seed: what is tested is the mean of a client's seeds."""
    config = {"partition": {"by": "column"}}

    def natural(method, seed, clients):
        plain = result(method, seed, clients)
        return replace(plain, record=replace(plain.record, config=config))

    seeds = range(4)
    ours = [natural("a", seed, {"x": 0.9, "y": 0.5 + 0.1 * seed, "z": 0.7}) for seed in seeds]
    theirs = [natural("b", seed, {"x": 0.6, "y": 0.7, "z": 0.7}) for seed in seeds]
    found = versus(ours, theirs)
    assert (found.of, found.better, found.worse, found.natural) == (3, 1, 1, True)
    assert found.p == pytest.approx(stats.wilcoxon([0.3, -0.05]).pvalue)
    same_spread(found.spread, Spread.of([(0.1 + 0.1 * seed) / 3 for seed in seeds]))


def test_few_that_differ_are_tested_exactly():
    ours = [result("a", 0, {str(k): 0.6 if k < 4 else 0.5 for k in range(64)})]
    theirs = [result("b", 0, {str(k): 0.5 for k in range(64)})]
    assert versus(ours, theirs).p == pytest.approx(0.125)


POINTS = [
    Point(1, 10, 100, 1.0, 0.5, 0.4),
    Point(2, 20, 200, 2.0, 0.8, 0.6),
    Point(3, 30, 300, 3.0, 0.7, 0.9),
]


def test_budgets_and_targets_are_decided_by_validation():
    assert within(POINTS, "bytes", 9) is None
    assert within(POINTS, "bytes", 10) is POINTS[0]
    assert within(POINTS, "flops", math.inf) is POINTS[1]  # though the last has the best test score
    assert until(POINTS, 0.6) is POINTS[1]
    again = replace(POINTS[1], round=POINTS[1].round + 1)
    assert within([again, *POINTS], "flops", math.inf) is again  # of equal ones, as models are kept
    assert until(POINTS, 0.81) is None


def test_every_seed_has_the_budget_of_its_own():
    """By hand: on seed 1 FedMS costs ten times what it costs on seed 0."""

    def points(*bytes_sent):
        """Accuracies 0.1, 0.2, … after so many bytes; FLOPs alike."""
        tenths = enumerate(bytes_sent, start=1)
        return [Point(i, sent, sent, 1.0, i / 10, i / 10) for i, sent in tenths]

    curves = {
        "fedms": {0: points(5, 10), 1: points(50, 100)},
        "local": {1: points(40, 90, 100, 101), 0: points(5, 9, 11, 101)},
    }
    lines = table._budgets(curves).splitlines()
    assert lines[0].split(" | ")[1:] == ["50%: 0.0 MB", "100%: 0.0 MB", "200%: 0.0 MB |"]
    assert lines[2].split(" | ")[1:] == ["0.100", "0.200", "0.200 |"]
    assert lines[3].split(" | ")[1:] == ["0.100", "0.250", "0.350 |"]  # 0.2 and 0.3; 0.3 and 0.4


@pytest.mark.parametrize(("every", "rounds"), [(1, [1, 2, 3, 4, 5]), (2, [2, 5]), (0, [5])])
def test_no_method_is_chosen_from_more_rounds_than_others(every, rounds):
    """The ends of its stages, which others have not, are left out, and what is all but the last."""
    points = tuple(Point(i, 1, 1, 1.0, 0.5, 0.5) for i in range(1, 6))
    record = Record({"evaluate_every": every}, {}, {}, points)
    assert [p.round for p in record.regular] == rounds
    assert Record({"evaluate_every": every}, {}, {}, ()).regular == ()


@pytest.mark.parametrize("name", ["local+calibration", "fedavg+calibration", "fedms-no-stage1"])
@pytest.mark.parametrize("settings", [("stage1.epochs=2",), ("stage2.cohort=0.5",)])
def test_steps_that_would_not_be_equal_are_refused(name, settings):
    plan = Plan(None, settings, (), (0,), (1e-3,), Path())
    with pytest.raises(UserError, match="got stages of unequal cohorts or epochs"):
        plan.configure(VARIANTS[name], 1e-3, 0)
    plan.configure(VARIANTS["fedms"], 1e-3, 0)


def test_a_curve_adds_up_to_the_summary(results):
    for found in by_name(results, "fedms"):
        points = found.record.points
        assert [p.round for p in points] == [1, 2, 3]
        last, cost = points[-1], found.cost
        assert last.bytes == cost["upload_bytes"] + cost["download_bytes"]
        assert last.flops == cost["train_flops"]
        assert last.seconds == pytest.approx(cost["train_seconds"])
        assert last.test == pytest.approx(found.test["mean"])


def test_the_command_has_two_rates_and_three_seeds(tmp_path, monkeypatch):
    """Where it is told nothing else."""
    plans = []

    def caught(plan):
        plans.append(plan)
        raise UserError("that is enough")

    monkeypatch.setattr("fedms.compare.check", caught)
    done = CliRunner().invoke(app, ["compare", "--out", str(tmp_path)])
    assert str(done.exception) == "that is enough"
    assert [*plans[0].rates, *plans[0].seeds] == [3e-3, 1e-2, 0, 1, 2]


def test_the_command(plan, results):
    words = [*SETTINGS, "--methods", "local,fedms", "--seeds", "0", "--rates", "1e-3"]
    done = CliRunner().invoke(app, ["compare", *words, "--out", str(plan.out)])
    assert done.exit_code == 0, done.output
    assert "local-only LoRA" in done.output
    assert (plan.out / "accuracy.svg").is_file()
    as_json = CliRunner().invoke(app, ["compare", *words, "--out", str(plan.out), "--json"])
    said = json.loads(as_json.stdout)
    assert [method["method"] for method in said["methods"]] == ["local", "fedms"]
    names = CliRunner().invoke(app, ["compare", "--methods", "help"]).stdout
    assert all(name in names for name in VARIANTS)


def test_the_command_tells_of_methods_that_diverge(plan, results, tmp_path, monkeypatch):
    """And has the tables of the others, written as they are done."""
    original, out = runs._choose, str(plan.out)

    def choose(plan, variant, summary):
        if variant is VARIANTS["local"]:
            raise DivergenceError("got no learning rate that trains")
        return original(plan, variant, summary)

    monkeypatch.setattr(runs, "_choose", choose)
    words = ["compare", *SETTINGS, "--seeds", "0", "--rates", "1e-3", "--out", out, "--methods"]
    done = CliRunner().invoke(app, [*words, "local,fedavg,fedms", "--targets", "0.5,0.9"])
    assert done.exit_code == 0, done.output
    assert "local: got no learning rate that trains" in done.stderr
    assert "local-only LoRA is left out: got no learning rate that trains" in done.stdout
    assert "| until validation accuracy | 0.500: MB " in done.stdout
    assert "| FedAvg-LoRA |" in done.stdout
    assert "Of one seed this is luck in part" in done.stdout
    none = CliRunner().invoke(app, [*words, "local"])
    assert none.exit_code == 2
    assert "no method has results: got no learning rate that trains" in none.stderr


def test_margins_are_over_federated_methods_and_the_strongest_of_all(results):
    """Who trains nothing, or alone, is neither the weakest nor the median; a bound is nothing."""
    ours = by_name(results, "fedms")

    def named(**means):
        return {
            n: [replace(r, method=n, test={**r.test, "mean": m}) for r in ours]
            for n, m in means.items()
        }

    found = named(
        zeroshot=0.1, fedcgs=0.2, fedavg=0.5, fedsa=0.6, finetune=0.7, probe=0.9, fedms=0.8
    )
    text = table._margins(found | named(centralised=0.95)).splitlines()
    assert [line.split(" | ")[:3] for line in text[2:]] == [
        ["| weakest federated", "FedAvg-LoRA", "0.500"],
        ["| median federated", "FedSA-LoRA", "0.600"],
        ["| strongest of all", "linear probe, local", "0.900"],
    ]
    assert table._margins(named(fedms=0.8)) == ""
    assert "federated" not in table._margins(named(local=0.3, fedms=0.8))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--seeds", "a"], "--seeds"), (["--rates", ""], "--rates"), (["--targets", "80"], "up to 1")],
)
def test_wrong_lists_are_one_line(words, said):
    done = CliRunner().invoke(app, ["compare", *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_plan_that_performs_nothing_says_what_is_missing(plan, results):
    again = compare(replace(plan, perform=False))
    assert [(r.method, r.seed, r.test) for r in again] == [
        (r.method, r.seed, r.test) for r in results
    ]
    with pytest.raises(MissingRunError, match="seed7"):
        compare(replace(plan, seeds=(*plan.seeds, 7), perform=False))
