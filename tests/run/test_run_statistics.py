"""Runs that gather class statistics first: what is sent, what is kept, what can be read again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch.utils.flop_counter import FlopCounterMode

from fedms.build import build
from fedms.core import discriminant
from fedms.store.states import ClientStates, ServerStates
from fedms.use import Models

PERSONAL = ("gate.statistics=personal",)
WIDTH, CLASSES = 128, 10


def wire(shapes):
    return len(save({name: torch.zeros(shape) for name, shape in shapes.items()}))


def test_they_take_a_round_before_all_others(done):
    plain, gathered = done().lines("rounds"), done(*PERSONAL).lines("rounds")
    assert [line["stage"] for line in gathered] == [0, 1, 1, 2, 2]
    first, *others = gathered
    assert first["cohort"] == ["0", "1", "2"]
    assert first["trainable_parameters"] == 0
    assert first["upload_bytes"] == 3 * wire(discriminant.shapes(CLASSES, WIDTH))
    assert first["download_bytes"] == 0
    assert [line["upload_bytes"] for line in others] == [line["upload_bytes"] for line in plain]


def test_what_they_say_is_sent_once(done):
    plain, (_, *gathered) = done().lines("rounds"), done(*PERSONAL).lines("rounds")
    more = [a["download_bytes"] - b["download_bytes"] for a, b in zip(gathered, plain, strict=True)]
    triangle = WIDTH * (WIDTH + 1) // 2
    numbers = triangle + CLASSES * WIDTH + CLASSES
    assert more[1:] == [0, 0, 0]
    assert 3 * 4 * numbers <= more[0] <= 3 * (4 * numbers + 400)  # and a header


@pytest.mark.parametrize("cohort", ["stage1.cohort=1", "stage1.rounds=0"])
def test_all_clients_take_part_once(done, cohort):
    first, *others = done(*PERSONAL, cohort, "stage2.cohort=1", "seed=2").lines("rounds")
    assert first["cohort"] == ["0", "1", "2"]
    assert all(len(line["cohort"]) == 1 for line in others)
    assert others[0]["cohort"] == others[1]["cohort"]  # and so what was gathered is sent once
    assert others[0]["download_bytes"] > others[1]["download_bytes"]


@pytest.mark.parametrize("word", ["gate.calibration=false", "gate.statistics=none"])
def test_without_calibration_there_are_none(done, word):
    lines = done(*PERSONAL, word).lines("rounds")
    assert [line["stage"] for line in lines] == [1, 1, 2, 2]
    assert not list(done(*PERSONAL, word).path.rglob("statistics.safetensors"))


def test_they_change_what_models_say(done):
    losses = {
        name: run.summary["test"]["personal"]["loss"]
        for name, run in {"with": done(*PERSONAL), "without": done()}.items()
    }
    assert losses["with"] < losses["without"]


@pytest.mark.slow
def test_the_same_for_every_number_of_workers(done):
    one, two = done(*PERSONAL), done(*PERSONAL, "runtime.workers=2")
    assert one.bytes() == two.bytes()
    assert one.bytes("checkpoints") == two.bytes("checkpoints")


def test_scores_can_be_computed_from_files(done, small):
    """With NumPy: features of unit length, whitened, against each client's means."""
    finished, experiment = done(*PERSONAL), build(small(*PERSONAL))
    shared = load_file(finished.path / "adapters" / "statistics.safetensors")
    states = ClientStates(finished.path / "checkpoints" / "clients")
    server = ServerStates(finished.path / "checkpoints" / "server").load()[0]
    for client in experiment.clients:
        view = experiment.algorithm.view(server, states.load(client.id), "personal")
        frozen = experiment.learner.frozen
        z, own = frozen(client.test).cpu(), frozen(client.train).cpu()
        labels = torch.from_numpy(client.train.labels)
        prompts = experiment.learner.head.prompts.cpu()
        said = view.statistics.scores(z, own, labels, prompts).numpy()
        folder = finished.path / "adapters" / "clients" / client.id
        means = load_file(folder / "means.safetensors")["means"].numpy()
        assert not np.allclose(means, shared["means"].numpy(), atol=1e-3)
        unit = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
        white = unit @ shared["whitening"].numpy().T
        expected = white @ means.T - (means**2).sum(1) / 2 + shared["bias"].numpy()
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_class_vectors_can_be_read_from_files(done, small):
    """An expert's logits are its features' cosines to them, or to prompts where those are meant."""
    for words, there in (((), True), (("model.class_vectors=prompt",), False)):
        finished, experiment = done(*PERSONAL, *words), build(small(*PERSONAL, *words))
        shared = load_file(finished.path / "adapters" / "statistics.safetensors")
        assert ("vectors" in shared) == there
        server = ServerStates(finished.path / "checkpoints" / "server").load()[0]
        view = experiment.algorithm.view(server, None, "global")
        learner, client = experiment.learner, experiment.clients[0]
        features = learner.features(view.expert, client.test).cpu().numpy()
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        head = json.loads((finished.path / "adapters" / "head.json").read_text())
        vectors = shared.get("vectors", learner.head.prompts).cpu().numpy()
        expected = head["temperature"] * unit @ vectors.T
        expected -= np.log(np.exp(expected).sum(1, keepdims=True))
        alone = replace(view, calibration=None)
        got = learner.predict(alone, client, client.test).log_probabilities.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_shared_ones_leave_clients_no_means(done):
    run = done("gate.statistics=shared")
    assert (run.path / "adapters" / "statistics.safetensors").is_file()
    assert not list(run.path.rglob("means.safetensors"))


def test_their_pass_is_counted(done, small):
    """Every training row goes through the foundation model once, and that is told."""
    counted = done(*PERSONAL).lines("rounds")[0]["costs"]["flops"]
    experiment = build(small(*PERSONAL))
    learner = experiment.learner
    one = experiment.clients[0].train.take(np.array([0]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        learner.backbone.features(learner.backbone.collate(one))
    rows = sum(len(client.train) for client in experiment.trained)
    blocks, tokens = 6, 17
    attention = blocks * 2 * 2 * tokens**2 * WIDTH  # which torch counts on some devices alone
    told = any("attention" in str(op) for op in counter.get_flop_counts()["Global"])
    once = rows * (counter.get_total_flops() + (0 if told else attention))
    assert once <= counted < 1.03 * once  # what lies below is kept, and pictures are embedded again


ALONE = (
    *("partition.by=shards", "partition.shards=1", "partition.clients=10", "data.max_rows=400"),
    *("faults.drop=0.4", "stage1.rounds=3", "stage2.rounds=2"),
)
"""A class or two a client, of which some miss the round in which sums are gathered."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["personal", "shared"])
def test_a_class_that_no_sums_had_is_looked_for_where_its_client_has_it(done, small, kind):
    """Also in what is saved: a client's own vectors, in the run and without it."""
    words = (*ALONE, f"gate.statistics={kind}")
    finished, experiment = done(*words), build(small(*words))
    states = ClientStates(finished.path / "checkpoints" / "clients")
    server = ServerStates(finished.path / "checkpoints" / "server").load()[0]
    models, lacking = Models(finished.path), 0
    for client in experiment.clients:
        view = experiment.algorithm.view(server, states.load(client.id), "personal")
        lacks = view.statistics.lacks(torch.from_numpy(client.train.labels))
        lacking += lacks
        path = finished.path / "adapters" / "clients" / client.id / "means.safetensors"
        assert ("vectors" in (load_file(path) if path.exists() else {})) == lacks
        expected = experiment.learner.predict(view, client, client.test).log_probabilities
        found = models.model(client.id).predict(client.test).personal
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert 0 < lacking < len(experiment.clients)
