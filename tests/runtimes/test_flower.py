"""Sites over Flower's grid, in this process: equal to the simulator, and what does not fit."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedms[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedms.build import build, load_table
from fedms.config import load_config
from fedms.core.algorithm import ServerState
from fedms.core.errors import UserError
from fedms.core.seeds import derive_seed, draw_cohort
from fedms.deploy.parts import build_server, build_site
from fedms.run import run, serve
from fedms.runtimes import messages, service
from fedms.runtimes.flower import nodes, relay, waiting
from fedms.runtimes.flower import sites as server
from fedms.runtimes.simulator import send
from fedms.runtimes.site import (
    Site,
    answer_all,
    listening,
    of_run,
    read_hello,
    read_refusal,
)
from fedms.store.states import load_client_state

SITES = ("north", "south", "west")
WORDS = (
    "data.source=parquet",
    "data.input=image",
    "data.split=split",
    "partition.by=column",
    "partition.column=site",
    "stage1.rounds=2",
    "stage2.rounds=2",
    "evaluate_every=2",
    "training.learning_rate=3e-3",
    "runtime.threads=1",
)
TERMS = {"configuration": "1"}
BUSY = "is still at work on what it was asked before"


class LocalGrid(Grid):
    """Nodes in this process: a message is answered when it is pushed, by a copy of its content."""

    def __init__(self, apps):
        self.apps, self.replies, self.asked = apps, {}, []
        self.later, self.pulls = {}, 0
        self.names, self.since = {}, {}
        self._ids = itertools.count(1)

    run = None

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *words, **more):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.apps)

    def get_nodes(self):
        return [
            SimpleNamespace(
                node_id=k, name=self.names.get(k, ""), last_activated_at=self.since.get(k, "")
            )
            for k in self.apps
        ]

    def push_messages(self, messages):
        pushed = []
        for message in messages:
            name = f"message {next(self._ids)}"
            self.asked.append((message.metadata.dst_node_id, message.content))
            message.metadata.__dict__["_message_id"] = name
            context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), {})
            asked = copy.deepcopy(message)
            reply = self.apps[message.metadata.dst_node_id](asked, context)
            if isinstance(reply, tuple):  # it comes after so many looks
                self.later[name] = self.pulls + reply[1], reply[0]
            elif reply is not None:
                self.replies[name] = reply
            pushed.append(name)
        return pushed

    def pull_messages(self, message_ids):
        self.pulls += 1
        for name in [n for n, (pull, _) in self.later.items() if pull <= self.pulls]:
            self.replies[name] = self.later.pop(name)[1]
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]


@pytest.fixture(autouse=True)
def at_a_server(monkeypatch):
    """Messages are made where Flower has said whose they are."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """All rows in one file, and every site's in its own."""
    folder = tmp_path_factory.mktemp("tables")
    small = ["data.max_rows=150", "partition.clients=3", "partition.test_fraction=0.3"]
    experiment = build(load_config(None, small))
    table = load_table(load_config(None, small))
    rows = []
    for site, who in zip(SITES, experiment.federation.clients, strict=True):
        for split in ("train", "val", "test"):
            for i in getattr(who, split):
                rows.append((png(table.inputs[i]), table.labels[i], split, site))
    every = pandas.DataFrame(rows, columns=["image", "label", "split", "site"])
    every.to_parquet(folder / "all.parquet")
    for site in SITES:
        every[every.site == site].drop(columns="site").to_parquet(folder / f"{site}.parquet")
    classes = json.dumps(list(experiment.federation.classes))
    return folder, f"data.classes={classes}"


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def node(answer):
    """What is at a node: a site that needs no relay, for it is in this process."""

    def app(message, context):
        try:
            said = answer(nodes.unpack(message.content))
        except OSError as error:  # as Flower tells of an app that failed
            return Message(Error(0, str(error)), reply_to=message)
        if isinstance(said, tuple):
            return Message(nodes.pack(said[0]), reply_to=message), said[1]
        return None if said is None else Message(nodes.pack(said), reply_to=message)

    return app


def started(tables, folder, site, *words):
    """A site as it starts."""
    made = build_site(configured(tables, site, *words), site)
    what = (made.algorithm, made.learner, made.client, made.sizes)
    return Site(*what, TERMS, folder / site, made.keep)


def configured(tables, file, *words):
    data, classes = tables
    return load_config(None, [*WORDS, classes, f"data.path={data / file}.parquet", *words])


def served(tables, folder, apps, *words, sites=3, again=False, **options):
    """A run with what is at the nodes, and everything that was said of sites."""
    told = []
    there = server.Sites(LocalGrid(apps), "one", TERMS, tell=told.append, **options)
    there.meet(sites)
    config = configured(tables, "all", *words)
    parts = build_server(config, there.sizes)
    return serve(config, parts, there, folder, again=again, tell=told.append), told


def rejected(folder):
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["rejected"] for line in lines]


def test_a_run_over_the_grid_is_the_simulators(tables, tmp_path):
    """To the bit: what the server has, what sites keep, scores, bytes; and nothing private here."""
    expected = run(configured(tables, "all"), tmp_path / "simulated")
    apps = {100 - k: node(started(tables, tmp_path, site).answer) for k, site in enumerate(SITES)}
    got, told = served(tables, tmp_path / "served", apps)
    assert not told
    for summary in (expected, got):
        for name in ("train_seconds", "phase_seconds", "wall_seconds"):
            del summary["cost"][name]
        for name in ("peak_activation_bytes", "train_flops", "cache_bytes"):
            del summary["cost"][name]  # every site counts shapes of its own, and has a cache
    assert got == expected
    for name in (
        "checkpoints/server/000005.safetensors",
        "adapters/global/adapter_model.safetensors",
        "adapters/gate/gate.safetensors",
        "partition.json",
    ):
        first, second = (tmp_path / run / name for run in ("simulated", "served"))
        assert first.read_bytes() == second.read_bytes()
    private = ("labels.jsonl", "gates.jsonl")  # classes of rows
    assert all((tmp_path / "simulated" / name).is_file() for name in private)
    assert not any((tmp_path / "served" / name).exists() for name in private)
    for site in SITES:
        kept = tmp_path / site / "one" / "clients" / site
        simulated = tmp_path / "simulated" / "checkpoints" / "clients" / site
        assert [p.name for p in sorted(kept.iterdir())] == [
            "000003.safetensors",
            "000004.safetensors",
        ]
        for path in kept.iterdir():
            assert path.read_bytes() == (simulated / path.name).read_bytes()
        adapters = tmp_path / site / "one" / "adapters"
        expected_files = tmp_path / "simulated" / "adapters"
        here = {p.relative_to(adapters) for p in adapters.rglob("*") if p.is_file()}
        assert {p.parts[1] for p in here if p.parts[0] == "clients"} == {site}
        for path in here:
            assert (adapters / path).read_bytes() == (expected_files / path).read_bytes()
        scores = [line for line in lines(tmp_path / "simulated", "clients") if line["id"] == site]
        kept_scores = lines(tmp_path / site / "one", "scores")
        assert [line["round"] for line in scores] == [line["round"] for line in kept_scores]
        for there, own in zip(scores, kept_scores, strict=True):
            for role, accuracy in there["test"].items():
                score = own["test"][role][site]
                assert score["correct"] / score["rows"] == accuracy
    assert not (tmp_path / "served" / "adapters" / "clients").exists()
    assert not (tmp_path / "served" / "checkpoints" / "clients").exists()


def test_a_site_that_fails_is_left_out_of_that_round_and_comes_back(tables, tmp_path):
    trained, answer = itertools.count(), started(tables, tmp_path, "south").answer

    def failing(message):
        if message.kind == "train" and next(trained) == 2:
            raise ConnectionError("no route")
        return answer(message)

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    served(tables, tmp_path / "served", {**apps, 7: node(failing)})
    assert rejected(tmp_path / "served") == [{}, {}, {"south": "failed: no route"}, {}, {}]


@pytest.mark.quick("before rounds")
@pytest.mark.parametrize("ever", [False, True], ids=["never", "before rounds"])
def test_a_site_that_does_not_answer_is_not_waited_for(tables, tmp_path, ever):
    """It says who it is, and with `ever` what its rows score before the first round."""
    answer = started(tables, tmp_path, "south").answer
    heard = ("hello", "score_all") if ever else ("hello",)

    def silent(message):
        return answer(message) if message.kind in heard else None

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    words = ("stage1.rounds=1", "stage2.rounds=1", "evaluate_every=0")
    _, told = served(tables, tmp_path / "served", {**apps, 7: node(silent)}, *words, deadline=0.2)
    silence = "gave no answer in 0.2 s"
    first, *later = [line["south"] for line in rejected(tmp_path / "served")]
    if ever:
        assert first == silence
    else:  # it was asked before
        assert told[0] == f"site 'south' was not scored: {silence}"
        assert first in {BUSY, silence}
    assert len(later) == 2
    assert {*later} <= {BUSY, silence}  # which it is when it is asked again, after three deadlines


SHORT = ("stage1.rounds=1", "stage2.rounds=1", "evaluate_every=0")


def two(tables, folder):
    """Sites north and west, at nodes 0 and 1."""
    sites = enumerate(("north", "west"))
    return {k: node(started(tables, folder, site).answer) for k, site in sites}


def lines(folder, name="rounds"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_a_node_that_never_says_what_it_is_delays_nobody(tables, tmp_path):
    grid = LocalGrid({**two(tables, tmp_path), 7: node(lambda message: None)})
    sites = server.Sites(grid, "one", TERMS)
    sites.meet(2)
    assert list(sites.declared) == ["north", "west"]
    sites.meet(2)
    assert [asked for asked, _ in grid.asked] == [0, 1, 7]  # nobody twice


@pytest.mark.slow
def test_what_comes_late_is_counted_and_never_mixed_into_another_round(tables, tmp_path):
    """South's first update comes while the second round is asked for; the third has it again."""
    answer, trained = started(tables, tmp_path, "south").answer, itertools.count()

    def slow(message):
        said = answer(message)
        return (said, 6) if message.kind == "train" and next(trained) == 0 else said

    apps = {**two(tables, tmp_path), 7: node(slow)}
    words = (*SHORT, "stage2.rounds=2", "gate.statistics=none", "data.max_rows=")
    served(tables, tmp_path / "served", apps, *words, deadline=0.01)
    first, second, third = lines(tmp_path / "served")
    assert first["rejected"] == {"south": "gave no answer in 0.01 s"}
    assert first["late"] == []
    assert [second["late"], third["late"]] in ([["south"], []], [[], ["south"]])
    served(tables, tmp_path / "without", two(tables, tmp_path / "w"), *words, sites=2)
    assert len(lines(tmp_path / "without")) == 3


@pytest.mark.slow
def test_a_site_that_comes_back_elsewhere_goes_on_as_who_it_was(tables, tmp_path):
    """Without a key of its own a node has another number after every start."""
    answer, trained = started(tables, tmp_path, "south").answer, itertools.count()
    apps = two(tables, tmp_path)

    def moving(message):
        said = answer(message)
        if message.kind == "train" and next(trained) == 1:
            del apps[7]
            apps[8] = node(answer)
        return said

    apps[7] = node(moving)
    served(tables, tmp_path / "moved", apps)
    apps = {**two(tables, tmp_path / "w"), 7: node(started(tables, tmp_path / "w", "south").answer)}
    served(tables, tmp_path / "stayed", apps)
    assert rejected(tmp_path / "moved") == [{}] * 5
    state = "checkpoints/server/000005.safetensors"
    moved, stayed = (tmp_path / name / state for name in ("moved", "stayed"))
    assert moved.read_bytes() == stayed.read_bytes()


@pytest.mark.slow
def test_a_site_may_join_while_the_run_is_on(tables, tmp_path):
    """It gets the global expert, trains its local one, and is scored like the others."""
    answer = started(tables, tmp_path, "west").answer
    late = node(started(tables, tmp_path, "south").answer)
    apps = {0: node(started(tables, tmp_path, "north").answer)}

    def calling(message):
        if message.kind == "train" and message.facts["plan"]["stage"] == 2:
            apps.setdefault(7, late)
        return answer(message)

    apps[1] = node(calling)
    summary, told = served(tables, tmp_path / "served", apps, sites=2)
    assert told == []
    assert [line["cohort"] for line in lines(tmp_path / "served")] == [
        *[["north", "west"]] * 4,
        ["north", "south", "west"],
    ]
    assert set(summary["test"]["personal"]["per_client"]) == set(SITES)
    assert summary["clients"] == 3
    assert len(json.loads((tmp_path / "served" / "partition.json").read_text())) == 3


@pytest.mark.slow
def test_of_clients_asked_beyond_the_cohort_the_first_suffice(tables, tmp_path):
    """South is slow: no round waits for it, but scores do, and the end of the run."""
    answer = started(tables, tmp_path, "south").answer

    def slow(message):
        said = answer(message)
        return (said, 6) if message.kind == "train" else said

    apps = {**two(tables, tmp_path), 7: node(slow)}
    words = (*SHORT, "stage1.cohort=2", "stage2.cohort=2", "gate.statistics=none")
    summary, told = served(tables, tmp_path / "served", apps, *words, spare=0.5)
    assert told == []
    assert "south" in summary["test"]["personal"]["per_client"]
    assert (tmp_path / "south" / "one" / "adapters" / "clients" / "south").is_dir()
    for line in lines(tmp_path / "served"):
        assert line["cohort"] == ["north", "south", "west"]
        assert list(line["rejected"]) == ["south"]
        assert len(line["client_depths"]) == 2


@pytest.mark.slow
def test_a_round_of_too_few_is_tried_again_with_others_then_ends_the_run(tables, tmp_path):
    def gone(message):
        raise ConnectionError("no route")

    def lost(site):
        answer = started(tables, tmp_path, site).answer
        return node(lambda m: answer(m) if m.kind != "train" else gone(m))

    apps = {**two(tables, tmp_path), 7: lost("south")}
    words = (*SHORT, "stage1.cohort=1", "stage2.cohort=1", "gate.statistics=none")
    seed = next(s for s in itertools.count() if draw_cohort(SITES, 1, s, 0) == ("south",))
    served(tables, tmp_path / "again", apps, *words, "rounds.attempts=9", f"seed={seed}")
    assert lines(tmp_path / "again")[0]["rejected"] == {"south": "failed: no route"}
    assert all(len(line["client_depths"]) == 1 for line in lines(tmp_path / "again"))
    with pytest.raises(UserError, match=r"got 2 usable updates in round 1; expected at least 3"):
        served(tables, tmp_path / "few", apps, *SHORT, "rounds.min_updates=3")
    apps = {k: lost(site) for k, site in enumerate(SITES)}
    with pytest.raises(UserError, match=r"got no usable updates .*no route\); try to resume when"):
        served(tables, tmp_path / "none", apps, *SHORT)


@pytest.mark.slow
def test_a_site_that_was_started_anew_goes_on_from_its_disk(tables, tmp_path):
    """Killed before every message, it ends as one that ran through; without its disk, it asks."""

    def anew(message):
        return started(tables, tmp_path / "killed", "south").answer(message)

    for name, south in (
        ("killed", anew),
        ("whole", started(tables, tmp_path / "whole", "south").answer),
    ):
        others = {
            k: node(started(tables, tmp_path / name, s).answer)
            for k, s in enumerate(("north", "west"))
        }
        served(tables, tmp_path / name / "run", {**others, 7: node(south)})
    kept = sorted((tmp_path / "whole" / "south" / "one").rglob("*.safetensors"))
    names = {path.name for path in kept}
    assert names > {"000003.safetensors", "000004.safetensors", "constants.safetensors"}
    for path in kept:
        again = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == again.read_bytes()
    states = [
        tmp_path / n / "run/checkpoints/server/000005.safetensors" for n in ("killed", "whole")
    ]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.slow
def test_a_site_without_its_disk_is_sent_all_again(tables, tmp_path):
    places = itertools.count()

    def forgetful(message):
        return started(tables, tmp_path / str(next(places)), "south").answer(message)

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    served(tables, tmp_path / "served", {**apps, 7: node(forgetful)})
    assert rejected(tmp_path / "served") == [{}] * 5


def test_a_site_of_another_federation_is_refused_and_told_why(tables, tmp_path):
    odd = started(tables, tmp_path, "south")
    odd._terms = {"configuration": "2"}
    told = []
    grid = LocalGrid({1: node(odd.answer)})
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    with pytest.raises(UserError, match=r"got 0 of 2 sites after 0\.1 s"):
        sites.meet(2, patience=0.1)  # another one may come
    (text,) = told
    assert "'south' has configuration 2, the server 1; expected the same" in text
    assert len(grid.asked) == 1  # what is refused is not asked again
    with pytest.raises(UserError, match=r"0 of 1 sites, and 1 that refused: .*'south' has config"):
        sites.meet(1)  # it would wait for ever


def test_a_site_does_not_say_where_its_gate_sends_rows(tables, tmp_path):
    """That tells their labels; a server that asks for it is refused."""
    site, state = started(tables, tmp_path, "south"), ServerState(0, 5, 2, 1, {})
    said = site.answer(of_run("one", service.ask_routing(state)))
    assert read_refusal(said) == "got a message 'routing'; expected one that a site answers"


def test_nonsense_is_left_out_wherever_it_comes(tables, tmp_path):
    """A site that answers everything but the first question with something else."""
    answer = started(tables, tmp_path, "south").answer

    def odd(message):
        said = answer(message)
        return said if message.kind == "hello" else messages.Message("hello", said.facts)

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    nothing = node(lambda message: messages.Message("hello", {"client": 3}))
    words = ("stage1.rounds=1", "stage2.rounds=1", "evaluate_every=0")
    _, told = served(tables, tmp_path / "served", {**apps, 7: node(odd), 8: nothing}, *words)
    assert (
        rejected(tmp_path / "served") == [{"south": "got a message 'hello'; expected 'update'"}] * 3
    )
    assert told[0].startswith("a site (node 8) was left out: got client of a message 'hello'")
    assert "site 'south' was not scored: got a message 'hello'; expected 'scores'" in told


@pytest.mark.slow
def test_who_lacks_something_and_then_is_silent_costs_nobody_else_a_round(tables, tmp_path):
    """The others' answers arrived before."""
    asked = itertools.count()

    def lacking(message):
        if message.kind != "train":
            return silent_after(message)
        return messages.Message("lacks", {"names": ["a"]}) if next(asked) % 2 == 0 else None

    silent_after = started(tables, tmp_path, "south").answer
    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    words = ("stage1.rounds=1", "stage2.rounds=0", "evaluate_every=0")
    served(tables, tmp_path / "served", {-1: node(lacking), **apps}, *words, deadline=0.3)
    assert rejected(tmp_path / "served") == [
        {"south": "gave no answer in 0.3 s"},
        {"south": BUSY},
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"client": {"id": ""}},
        {"client": {"id": "x" * 201}},
        {"client": {"id": "so\x1b[2Juth"}, "sizes": {"id": "so\x1b[2Juth"}},
        {"client": {"validation": 7}},
        {"client": {"rows": -3}},
        {"client": {"rows": 10**30}, "sizes": {"train": 10**30}},
        {"client": {"rows": 5}},
        {"client": {"cap": 0}},
        {"client": {"rank": 10**30}},
        {"sizes": {"test": -1}},
        {"sizes": {"classes": 0}},
    ],
)
def test_a_site_that_cannot_be_is_refused(changed):
    client = {"id": "south", "rows": 9, "cap": None, "rank": None, "validation": 0}
    sizes = {"id": "south", "train": 9, "val": 0, "test": 2, "classes": 3}
    facts = {"client": client, "sizes": sizes}
    read_hello(messages.Message("hello", facts))
    facts = {name: {**facts[name], **changed.get(name, {})} for name in facts}
    with pytest.raises(messages.MessageError, match="cannot be"):
        read_hello(messages.Message("hello", facts))


@pytest.mark.parametrize("costs", [{"flops": -1}, {"seconds": {"train": float("nan")}}])
def test_costs_that_are_none_do_not_count(tables, tmp_path, costs):
    answer = started(tables, tmp_path, "south").answer

    def odd(message):
        said = answer(message)
        if "costs" not in said.facts:
            return said
        return dataclasses.replace(
            said, facts={**said.facts, "costs": {**said.facts["costs"], **costs}}
        )

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    words = ("stage1.rounds=1", "stage2.rounds=0", "evaluate_every=0")
    served(tables, tmp_path / "served", {**apps, 7: node(odd)}, *words)
    assert rejected(tmp_path / "served") == [{"south": "got costs that are none"}] * 2


def test_a_question_that_fails_does_not_end_the_site(tables, tmp_path, capsys):
    site = started(tables, tmp_path, "south")
    state = ServerState(0, 1, 1, 1, {})
    asked = of_run(
        "one", service.ask_evaluate(dataclasses.replace(state, tensors={"global/x": torch.ones(1)}))
    )
    said = site.answer(asked)
    assert said.kind == "failed"
    assert said.facts["reason"].startswith("site 'south' failed: ")
    assert "Traceback" in capsys.readouterr().err
    assert site.answer(asked).facts == said.facts
    assert not capsys.readouterr().err  # nothing new


def test_a_site_whose_disk_is_full_at_the_first_question_is_asked_again(tables, tmp_path):
    """That passes; what a site refuses does not."""
    told, site = [], started(tables, tmp_path, "south")
    blocked = tmp_path / "south"
    blocked.write_text("in the way of its folder")
    grid = LocalGrid({1: node(site.answer)})
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    with pytest.raises(UserError, match=r"got 0 of 1 sites after 0\.1 s"):
        sites.meet(1, patience=0.1)
    assert told == ["a site (node 1) was left out: site 'south' failed: NotADirectoryError"]
    blocked.unlink()
    sites.meet(1)
    assert list(sites.declared) == ["south"]


def test_a_damaged_private_state_is_passed_over(tables, tmp_path):
    """Whoever runs the site is told which; it goes on from the one before, or anew without any."""
    told = []
    made = build_site(configured(tables, "south", "method=local"), "south")
    what = (made.algorithm, made.learner, made.client, made.sizes)
    site = Site(*what, TERMS, tmp_path, tell=told.append)
    start = made.algorithm.init(made.learner, 0)

    def train(round):
        plan = made.algorithm.plan(dataclasses.replace(start, round=round))
        asked = of_run("one", service.ask_train(send(plan, start.tensors), ["south"]))
        assert site.answer(asked).kind == "update"
        return load_client_state(kept / f"{round:06}.safetensors").rounds

    def damage(round):
        path = kept / f"{round:06}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        return path

    kept = tmp_path / "one" / "clients" / "south"
    assert [train(0), train(1), train(2)] == [1, 2, 3]
    newest = damage(2)
    assert train(3) == 3
    (line,) = told
    assert line.startswith(f"got {newest}, which is damaged: ")
    assert line.endswith("; going back to an earlier state")
    assert not newest.exists()
    left = [damage(int(path.stem)) for path in sorted(kept.glob("*.safetensors"))]
    scored = site.answer(of_run("one", service.ask_evaluate(dataclasses.replace(start, round=4))))
    assert scored.kind == "scores"
    assert len(told) == 1 + len(left)
    assert train(3) == 1


def test_caps_are_those_of_all_sites(tables):
    words = ("sal.caps.north=1", "sal.caps.south=2")
    assert build_site(configured(tables, "south", *words), "south").client.cap == 2
    assert build_site(configured(tables, "west", *words), "west").client.cap is None


def test_scores_of_more_rows_than_there_are_do_not_count(tables, tmp_path):
    answer = started(tables, tmp_path, "south").answer

    def boasting(message):
        said = answer(message)
        if said.kind != "scores":
            return said
        facts = json.loads(json.dumps(said.facts))
        for by_role in facts["scores"]["test"].values():
            by_role["south"]["correct"] = by_role["south"]["rows"] = 10**6
        return messages.Message(said.kind, facts)

    apps = {k: node(started(tables, tmp_path, s).answer) for k, s in enumerate(("north", "west"))}
    words = ("stage1.rounds=1", "stage2.rounds=0", "evaluate_every=0")
    summary, told = served(tables, tmp_path / "served", {**apps, 7: node(boasting)}, *words)
    assert set(summary["test"]["personal"]["per_client"]) == {"north", "west"}
    assert any("'south' has a personal score of Score(correct=1000000" in text for text in told)


def test_two_sites_of_one_name(tables, tmp_path):
    told = []
    apps = {k: node(started(tables, tmp_path / str(k), "south").answer) for k in (1, 2)}
    sites = server.Sites(LocalGrid(apps), "one", TERMS, tell=told.append)
    sites.meet(1)
    assert [one.id for one in sites.sizes] == ["south"]
    assert told == ["a second site 'south' (node 2) was left out"]


def test_a_class_that_the_federation_does_not_have(tables, tmp_path):
    data, _ = tables
    words = [*WORDS, 'data.classes=["zero", "one"]', f"data.path={data / 'south'}.parquet"]
    with pytest.raises(UserError, match=r"which is none of the federation's 2 classes"):
        build_site(load_config(None, words), "south")
    with pytest.raises(UserError, match=r"got no data\.classes"):
        build_site(load_config(None, [*words, "data.classes=[]"]), "south")


def test_records_are_read_again_to_the_bit():
    tensors = {
        "global/a": torch.tensor([[1.0, float("nan")], [float("inf"), -0.0]]),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(3.5),
    }
    message = messages.Message("train", {"α": [1, None, {"x": 0.1}]}, tensors)
    got = nodes.unpack(nodes.pack(message))
    assert (got.kind, got.facts) == (message.kind, message.facts)
    assert got.tensors.keys() == tensors.keys()
    for name, t in tensors.items():
        assert got.tensors[name].shape == t.shape
        assert got.tensors[name].numpy().tobytes() == t.numpy().tobytes()


def _npy(header, data):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
FINE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (10**12,), "numpy.ndarray", _npy(HUGE, b"1234")),
        Array("float32", (1,), "numpy.ndarray", _npy(FINE, b"12345678")),
        Array("float32", (2,), "numpy.ndarray", _npy(FINE, b"1234")),
        Array("float32", (1,), "numpy.ndarray", _npy("[" * 9999, b"1234")),
        Array("float32", (1,), "numpy.ndarray", _npy("__import__('os')", b"1234")),
        Array("float32", (1,), "numpy.ndarray", b"\x93NUMPY"),
        Array("float32", (), "numpy.ndarray", b""),
        Array(np.zeros(3)),
        Array(np.asfortranarray(np.zeros((2, 2), dtype=np.float32))),
    ],
)
def test_arrays_that_are_none_are_refused(array):
    content = nodes.pack(messages.Message("update"))
    content["tensors"] = ArrayRecord({"a": array})
    with pytest.raises(messages.MessageError, match="'a', which is no float32 array"):
        nodes.unpack(content)


def test_records_that_are_none_are_refused():
    def refused(content, match):
        with pytest.raises(messages.MessageError, match=match):
            nodes.unpack(content)

    content = nodes.pack(messages.Message("update"))
    words = dict(content["words"])
    refused(RecordDict({}), "got records")
    refused(RecordDict({**content, "more": ConfigRecord()}), "got records")
    refused(RecordDict({**content, "words": ArrayRecord()}), "of other types")
    refused(RecordDict({**content, "words": ConfigRecord({"kind": "x"})}), "got words")
    refused(RecordDict({**content, "words": ConfigRecord({**words, "facts": 1})}), "got words")
    refused(RecordDict({**content, "words": ConfigRecord({**words, "facts": "{"})}), "no message")
    refused(RecordDict({**content, "words": ConfigRecord({**words, "schema": "0"})}), "schema")


def test_the_relay_hands_on_what_arrives(tmp_path):
    """Over a socket, as Flower's process for a message does, without torch in it."""
    asked = []

    class Echo:
        def answer(self, message):
            asked.append(message)
            return messages.Message("update", {"of": message.kind}, message.tensors)

    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with (
        pytest.raises(UserError, match="is open to others"),
        listening(tmp_path / "open" / "socket"),
    ):
        pass
    long = tmp_path / ("x" * 110) / "socket"
    with pytest.raises(UserError, match=r"a short path .*; try TMPDIR=/tmp"), listening(long):
        pass
    with listening(tmp_path / "own" / "socket") as line:
        assert oct((tmp_path / "own").stat().st_mode)[-3:] == "700"
        threading.Thread(target=lambda: list(answer_all(Echo(), line)), daemon=True).start()
        message = messages.Message("train", {"x": 1}, {"a": torch.arange(3.0)})
        sent = Message(nodes.pack(message), dst_node_id=1, message_type="train")
        sent.metadata.__dict__["_message_id"] = "1"
        context = Context(1, 1, {relay.SOCKET: str(tmp_path / "own" / "socket")}, RecordDict(), {})
        got = nodes.unpack(relay.app(sent, context).content)
    assert (got.kind, got.facts, asked[0].facts) == ("update", {"of": "train"}, {"x": 1})
    assert got.tensors["a"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ConnectionError, match=r"gave no answer at .*; try to start it"):
        relay.ask(str(tmp_path / "none"), nodes.pack(message))


def test_the_relay_needs_no_torch():
    code = "import sys, fedms.runtimes.flower.relay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_site_that_crashed_at_work_is_asked_again_after_three_deadlines(tables, tmp_path):
    """Its question stays without an answer for ever, though it is back."""
    answer, trained = started(tables, tmp_path, "south").answer, itertools.count()
    north = started(tables, tmp_path, "north").answer

    def crashing(message):
        return None if message.kind == "train" and next(trained) == 0 else answer(message)

    def slow(message):
        if message.kind == "train":
            time.sleep(0.1)  # a round takes that long at least
        return north(message)

    apps = {**two(tables, tmp_path), 0: node(slow), 7: node(crashing)}
    words = ("stage1.rounds=12", "stage2.rounds=0", "evaluate_every=0", "gate.statistics=none")
    served(tables, tmp_path / "served", apps, *words, deadline=0.2)
    said = [line.get("south") for line in rejected(tmp_path / "served")]
    assert said[:2] == ["gave no answer in 0.2 s", BUSY]
    back = said.index(None)
    assert set(said[1:back]) == {BUSY}
    assert set(said[back:]) == {None}


def test_a_site_is_who_its_key_is_of(tables, tmp_path):
    """North's key does not make another site of it, and keeps south's place free."""
    told = []
    apps = {k: node(started(tables, tmp_path / str(k), "south").answer) for k in (1, 2)}
    grid = LocalGrid(apps)
    grid.names = {1: "north", 2: "south"}
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    sites.meet(1)
    assert told == ["site 'north' (node 1) was left out: it says that it is 'south'"]
    assert sites._meeting.met["south"].node == 2


def test_a_site_that_goes_while_it_says_who_it_is_is_asked_again(tables, tmp_path):
    """While it is gone nobody knows whose key it has: north may be south for as long as that."""
    told, held = [], []

    class Late(LocalGrid):
        """Answers to the first questions come when it is let go."""

        def pull_messages(self, message_ids):
            return [] if held else super().pull_messages(message_ids)

    odd = node(started(tables, tmp_path / "odd", "south").answer)
    apps = {1: odd}
    grid = Late(apps)
    grid.names = {1: "north", 2: "south"}
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    held.append("first")
    sites._meeting.greet()
    del apps[1]
    held.clear()
    sites._meeting.greet()
    assert sites.sizes == []
    apps |= {1: odd, 2: node(started(tables, tmp_path, "south").answer)}
    sites.meet(1)
    assert sites._meeting.met["south"].node == 2
    assert told == ["site 'north' (node 1) was left out: it says that it is 'south'"]


@pytest.mark.slow
def test_a_node_that_was_started_anew_is_not_waited_for_and_met_again(tables, tmp_path):
    """What it was asked is lost; without a deadline, too."""
    answer, trained = started(tables, tmp_path, "south").answer, itertools.count()
    apps = two(tables, tmp_path)
    grid, told = LocalGrid(apps), []

    def crashing(message):
        if message.kind == "train" and next(trained) == 1:
            grid.since[7] = "later"
            return None
        return answer(message)

    apps[7] = node(crashing)
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    sites.meet(3)
    words = ("stage1.rounds=2", "stage2.rounds=1", "evaluate_every=0")
    config = configured(tables, "all", *words)
    serve(config, build_server(config, sites.sizes), sites, tmp_path / "run")
    said = [line.get("south") for line in rejected(tmp_path / "run")]
    assert said == [None, "was started anew while it was at work", None, None]
    hellos = [n for n, content in grid.asked if content["words"]["kind"] == "hello"]
    assert sorted(hellos) == [0, 1, 7, 7]


@pytest.mark.slow
def test_a_site_that_joins_is_no_spare_of_the_round_in_which_it_comes(tables, tmp_path):
    answer = started(tables, tmp_path, "west").answer
    late = node(started(tables, tmp_path, "south").answer)
    apps = {0: node(started(tables, tmp_path, "north").answer)}

    def calling(message):
        apps.setdefault(7, late)
        return answer(message)

    apps[1] = node(calling)
    words = (*SHORT, "stage1.cohort=1", "stage2.cohort=1", "gate.statistics=none")
    served(tables, tmp_path / "served", apps, *words, sites=2, spare=2.0)
    assert [len(line["client_depths"]) for line in lines(tmp_path / "served")] == [1, 1]
    said = [reason for line in rejected(tmp_path / "served") for reason in line.values()]
    assert BUSY not in said  # they answered when others had


@pytest.mark.slow
def test_what_flower_cannot_read_costs_its_sender_alone_a_round(tables, tmp_path):
    class Breaking(LocalGrid):
        """A reply of node 7's cannot be read, nor whatever is pulled with it."""

        def pull_messages(self, message_ids):
            found = super().pull_messages(message_ids)
            if any(reply.metadata.src_node_id == 7 and "bad" in self.state for reply in found):
                raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no text")
            return found

    state, answer = set(), started(tables, tmp_path, "south").answer

    def odd(message):
        state.add("bad") if message.kind == "train" else state.discard("bad")
        return answer(message)

    apps = {**two(tables, tmp_path), 7: node(odd)}
    grid, told = Breaking(apps), []
    grid.state = state
    sites = server.Sites(grid, "one", TERMS, tell=told.append, deadline=0.2)
    sites.meet(3)
    config = configured(tables, "all", *SHORT, "gate.statistics=none", "stage1.rounds=3")
    serve(config, build_server(config, sites.sizes), sites, tmp_path / "run")
    said = rejected(tmp_path / "run")
    assert said[-1] == {"south": "sent what cannot be read: UnicodeDecodeError"}


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_records_that_flower_gives_up_on_do_not_end_the_server(error):
    """As over a site's JSON of a hundred thousand brackets, which Flower reads itself."""

    def pull(names):
        raise error

    there = nodes.Nodes(SimpleNamespace(pull_messages=pull))
    assert there.pull(["one", "two"]) == []  # each is read by itself from now on
    failure = nodes.Failure(f"sent what cannot be read: {error.__name__}")
    assert there.pull(["one", "two"]) == [("one", failure), ("two", failure)]


@pytest.mark.slow
def test_slow_sites_are_waited_for_when_the_run_ends(tables, tmp_path):
    """South's last update is late, and it is scored and keeps its models all the same."""
    answer, trained = started(tables, tmp_path, "south").answer, itertools.count()

    def slow(message):
        said = answer(message)
        return (said, 4) if message.kind == "train" and next(trained) == 1 else said

    apps = {**two(tables, tmp_path), 7: node(slow)}
    words = (*SHORT, "gate.statistics=none")
    summary, told = served(tables, tmp_path / "served", apps, *words, deadline=0.3)
    assert list(rejected(tmp_path / "served")[-1]) == ["south"]
    assert "south" in summary["test"]["personal"]["per_client"]
    assert (tmp_path / "south" / "one" / "adapters" / "clients" / "south").is_dir()
    assert told == []


@pytest.mark.slow
def test_sites_that_missed_the_end_of_a_run_are_told_again(tables, tmp_path):
    """South was busy then, and west is not there any more; north has its models already."""
    answer = started(tables, tmp_path, "south").answer

    def busy(message):
        if message.kind == "finish":
            raise ConnectionError("no time")
        return answer(message)

    apps, out = two(tables, tmp_path), tmp_path / "served"
    first, told = served(tables, out, {**apps, 7: node(busy)}, *SHORT)
    assert told == ["site 'south' did not keep its models: failed: no time"]

    def content():
        return {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.*")}

    before = content()
    again, told = served(tables, out, {0: apps[0], 7: node(answer)}, again=True, sites=2)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first))
    assert told == ["sites that keep their models of this run: north, south"]
    after = content()
    assert before == {path: after[path] for path in before}
    new = {path.parts[:3] for path in after.keys() - before.keys()}
    assert new <= {("south", "one", name) for name in ("adapters", "config.toml", "site.json")}
    assert (tmp_path / "south/one/adapters/clients/south/local").is_dir()
    assert served(tables, out, apps, again=True, sites=1)[1] == [
        "sites that keep their models of this run: north, west"
    ]


def test_who_was_started_anew_is_not_waited_for_when_the_run_ends(tables, tmp_path, monkeypatch):
    """Without a deadline either; and whoever waits says so."""
    monkeypatch.setattr(waiting, "_FIRST", 0.2)
    told, asked = [], []

    def south(message):
        asked.append(message.kind)
        return messages.Message("finished") if message.kind == "finish" else answer(message)

    answer = started(tables, tmp_path, "south").answer
    grid = LocalGrid({7: node(south)})
    sites = server.Sites(grid, "one", TERMS, tell=told.append)
    sites.meet(1)
    sites._meeting._open["lost"] = "south", time.monotonic()
    threading.Timer(0.5, grid.since.update, [{7: "later"}]).start()
    assert sites.finish(ServerState(0, 1, 1, 1, {})) == ["south"]
    assert asked == ["hello", "hello", "finish"]
    assert told == ["waiting for sites that are still at work: south"]


def test_who_is_waited_for_is_told_now_and_then(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "_FIRST", 0.1)
    told = []
    sites = server.Sites(LocalGrid(two(tables, tmp_path)), "one", TERMS, tell=told.append)
    with pytest.raises(UserError, match=r"got 2 of 3 sites after 0\.5 s \(not there: south\); exp"):
        sites.meet(3, patience=0.5, names=SITES)
    assert told == ["waiting for sites: 2 of 3 have come (not there: south)"]
    with pytest.raises(UserError, match=r"got 2 of 3 sites after 0\.5 s; expected"):
        sites.meet(3, patience=0.5)
    assert told[1:] == ["waiting for sites: 2 of 3 have come"]


def test_words_from_elsewhere_move_no_cursor():
    said = read_refusal(messages.Message("refused", {"reason": "a\n\x1b[2J fake " + 999 * "x"}))
    assert said.startswith("a  [2J fake x")
    assert len(said) == 500


@pytest.mark.slow
def test_gathering_class_statistics_shifts_no_cohort(tables, tmp_path):
    """Nor those who are asked beyond it."""
    found = {}
    for name in ("none", "personal"):
        words = ("stage1.cohort=1", "stage2.cohort=1", "stage2.rounds=1", "evaluate_every=0")
        words, folder = (*words, "seed=5", f"gate.statistics={name}"), tmp_path / name
        apps = {k: node(started(tables, folder, s, *words).answer) for k, s in enumerate(SITES)}
        served(tables, folder / "served", apps, *words, spare=0.5)
        found[name] = [line["cohort"] for line in lines(folder / "served")]
    gathered, *trained = found["personal"]
    assert gathered == list(SITES)
    expected = []
    for number in range(3):
        (first,) = draw_cohort(SITES, 1, 5, number)
        rest = [site for site in SITES if site != first]
        spare = draw_cohort(rest, 1, derive_seed(5, "spare"), number)
        expected.append(sorted([first, *spare]))
    assert trained == found["none"] == expected
    assert expected[1:] != expected[:-1]
