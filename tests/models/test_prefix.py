"""The prefix cache: the same numbers, never a stale one, nothing left behind."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedms.core.algorithm import Expert, Fit, View
from fedms.core.tensors import fingerprint
from fedms.models import Room, Training
from fedms.models.prefix import PrefixCache
from fedms.models.resident import alone

MODELS = ["clip", "sentence", "vit", "roberta", "distilbert", "dinov2"]
PLENTY = 10**7


def random_expert(learner, depth, seed=0):
    rng = torch.Generator().manual_seed(seed)
    names = sorted(learner.layout.expert(depth))
    return {n: 0.3 * torch.randn(learner.layout.shapes[n], generator=rng) for n in names}


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def nothing_patched(learner):
    blocks = learner.backbone.model.get_submodule(learner.slots.root)
    hooked = [b for b in blocks if b._forward_pre_hooks or b._forward_hooks]
    hooked += [m for m in learner.backbone.model.modules() if m._forward_hooks]
    return not hooked and not any("forward" in vars(m) for m in learner.backbone.model.modules())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("boundary", [1, 2])
def test_prefix_and_suffix_are_the_whole(make_learner, make_rows, kind, boundary):
    learner = make_learner(kind)
    rows = make_rows(learner.backbone, 7)
    batch = learner.backbone.collate(rows)
    with (
        torch.no_grad(),
        learner.slots.holding(alone(learner.adapters(random_expert(learner, 3)))),
    ):
        whole = learner.backbone.features(batch)
        states = learner.prefixes.split.prefix(batch, boundary)
        close(learner.prefixes.split.suffix(batch, states, boundary), whole)
        other = learner.prefixes.split.suffix(batch, states + 1.0 + states**2, boundary)
    assert (other - whole).abs().max() > 1e-3
    assert nothing_patched(learner)


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 3])
def test_fit_and_score_are_the_same_with_and_without(make_learner, make_client, kind, depth, start):
    """`start` 3: blocks below the boundary are adapted too, and stand still."""
    training = Training(batch_size=4, learning_rate=0.01)
    results = []
    for budget in (PLENTY, 0):
        learner = make_learner(kind, cache_bytes=budget, training=training)
        client = make_client(learner.backbone)
        names = learner.layout.expert(depth)
        tensors = {**learner.initial_expert(names, 0), **random_expert(learner, start)}
        view = learner.fit([Fit(View(Expert(tensors)), names, client, 2, 5)])[0]
        score = learner.score(view, client, "val")
        again = learner.score(view, client, "val")
        assert (learner.prefixes.bytes > 0) == (budget > 0 and min(depth, 3) < 3)
        results.append((view.expert.tensors, score, again))
    (cached, one, two), (plain, *others) = results
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, atol=1e-5, rtol=0)
    for got, expected in zip((one, two), others, strict=True):
        assert (got.correct, got.rows) == (expected.correct, expected.rows)
        assert got.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_too_small_a_budget_keeps_nothing_and_changes_nothing(make_learner, make_client, kind):
    fitted = []
    for budget in (1, 0):
        learner = make_learner(kind, cache_bytes=budget)
        client = make_client(learner.backbone)
        names = learner.layout.expert(1)
        start = View(Expert(learner.initial_expert(names, 0)))
        view = learner.fit([Fit(start, names, client, 1, 0)])[0]
        learner.score(view, client, "test")
        assert learner.prefixes.bytes == 0
        fitted.append(fingerprint(view.expert.tensors))
    assert fitted[0] == fitted[1]


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_the_budget_is_never_exceeded(make_learner, make_rows, kind):
    learner = make_learner(kind, cache_bytes=PLENTY)
    some = [make_rows(learner.backbone, 6, seed) for seed in range(5)]
    expert = Expert(random_expert(learner, 1))
    for rows in some:
        learner.features(expert, rows)
    one = learner.prefixes.bytes // 5
    limited = make_learner(kind, cache_bytes=int(2.5 * one))
    for rows in some:
        close(limited.features(expert, rows), learner.features(expert, rows))
        assert limited.prefixes.bytes <= 2.5 * one
    assert limited.prefixes.bytes > 0
    del rows
    some.clear()
    assert limited.prefixes.bytes == 0


def sequence(learner, make_rows):
    """Experts and rows in an order that a careless cache would mix up."""
    first, second = (make_rows(learner.backbone, 6, s) for s in (1, 2))
    deep, other = random_expert(learner, 3, 1), random_expert(learner, 3, 2)
    shallow = random_expert(learner, 1, 3)
    lowest, highest = learner.layout.blocks[0], learner.layout.blocks[2]
    changed_below = {**deep, **{n: other[n] for n in lowest}}
    changed_above = {**deep, **{n: other[n] for n in highest}}
    without_lowest = {n: t for n, t in deep.items() if n not in lowest}
    experts = [deep, changed_below, deep, changed_above, shallow, without_lowest, {}, deep, other]
    return [(tensors, rows) for tensors in experts for rows in (first, second)]


@pytest.mark.quick("1-clip", "2-sentence")
@pytest.mark.parametrize("kind", ["clip", "sentence"])
@pytest.mark.parametrize("boundary", [1, 2])
def test_stale_states_are_never_used(make_learner, make_rows, kind, boundary):
    learner, plain = make_learner(kind, cache_bytes=PLENTY), make_learner(kind)
    for tensors, rows in sequence(plain, make_rows):
        adapters = learner.adapters(tensors)
        with learner.slots.holding(alone(adapters)):
            learner.prefixes.keep(rows, boundary, learner._below(adapters)(boundary))
        for again, other in sequence(plain, make_rows)[::7]:
            close(
                learner.features(Expert(again), rows),
                plain.features(Expert(again), rows),
            )
            close(
                learner.features(Expert(again), other),
                plain.features(Expert(again), other),
            )


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_kept_states_are_used_while_they_fit(make_learner, make_rows, monkeypatch, kind):
    learner = make_learner(kind, cache_bytes=PLENTY)
    rows = make_rows(learner.backbone, 6)
    blocks = learner.backbone.model.get_submodule(learner.slots.root)
    calls = []
    forward = type(blocks[0]).forward
    monkeypatch.setattr(
        type(blocks[0]), "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k)
    )
    patches = []
    if kind == "clip":
        embed = learner.backbone.model.vision_model.embeddings.patch_embedding
        embed.register_forward_hook(lambda *args: patches.append(1))
    counts = []
    for seed in (1, 2):
        learner.features(Expert(random_expert(learner, 1, seed)), rows)
        counts.append(len(calls))
        calls.clear()
    assert counts == [3, 1]
    assert len(patches) == (kind == "clip")


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_an_update_does_not_depend_on_who_filled_the_cache(make_learner, make_client, kind):
    """With room for one client only, whoever comes second finds none.

    But for rounding: what is kept was computed with more rows at a time, and on some processors the
    number of rows decides how a product is summed.
    """

    def update(learner, client):
        names = learner.layout.expert(1)
        view = View(Expert(learner.initial_expert(names, 0)))
        return learner.fit([Fit(view, names, client, 2, 1)])[0].expert.tensors

    alone = make_learner(kind, cache_bytes=PLENTY)
    first = make_client(alone.backbone, rows=9, seed=1)
    expected = update(alone, first)
    budget = alone.prefixes.bytes
    crowded = make_learner(kind, cache_bytes=budget + 64)
    other = make_client(crowded.backbone, rows=9, seed=2)
    update(crowded, other)
    found = update(crowded, first)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
@pytest.mark.parametrize("budget", [0, PLENTY])
def test_gradients_stop_at_the_boundary(make_learner, make_client, monkeypatch, kind, budget):
    learner = make_learner(kind, cache_bytes=budget)
    client, seen = make_client(learner.backbone), []
    names = learner.layout.expert(1)
    step = torch.optim.AdamW.step

    def watch(self, *args):
        train = [p for group in self.param_groups for p in group["params"]]
        seen.append(sorted(tuple(p.shape) for p in train if p.grad is not None))
        assert all(p.grad is None for p in learner.backbone.model.parameters())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    start = random_expert(learner, 3)
    view = learner.fit([Fit(View(Expert(start)), names, client, 1, 0)])[0]
    assert seen == [sorted(learner.layout.shapes[n] for n in names)] * len(seen)
    assert len(seen) == 3
    for name, tensor in view.expert.tensors.items():
        assert torch.equal(tensor, start[name]) == (name not in names)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
@pytest.mark.parametrize("where", ["fit", "features", "keep"])
def test_an_error_inside_leaves_the_model_as_it_was(
    make_learner, make_client, monkeypatch, kind, where
):
    learner = make_learner(kind, cache_bytes=PLENTY)
    client = make_client(learner.backbone)
    expert = Expert(random_expert(learner, 2))
    expected = learner.features(Expert({}), client.test)
    last = learner.backbone.model.get_submodule(learner.slots.root)[2]
    first = learner.backbone.model.get_submodule(learner.slots.root)[0]

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    def work():
        if where == "features":
            return learner.features(expert, client.val)
        return learner.fit([Fit(View(expert), learner.layout.expert(1), client, 1, 0)])[0]

    with monkeypatch.context() as patch:
        broken = first if where == "keep" else last
        patch.setattr(type(broken.mlp if kind == "clip" else broken.output), "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory") as kept_alive:
            work()
    assert kept_alive.tb is not None  # else the interpreter might tidy up by itself
    assert nothing_patched(learner)
    assert all(layer.disable_adapters for block in learner.slots._layers for layer in block)
    assert not any(p.requires_grad for p in learner.backbone.model.parameters())
    assert torch.equal(learner.features(Expert({}), client.test), expected)


def test_a_gate_that_does_not_fit_leaves_the_model_as_it_was(make_learner, make_client):
    learner = make_learner("clip")
    client, expert = make_client(learner.backbone), Expert(random_expert(learner, 2))
    with pytest.raises(KeyError) as kept_alive:
        learner.fit([Fit(View(expert, expert, {}), learner.layout.expert(1), client, 1, 0)])
    assert "down" in str(kept_alive.value)
    assert all(layer.disable_adapters for block in learner.slots._layers for layer in block)
    assert not any(p.requires_grad for p in learner.backbone.model.parameters())


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
def test_training_no_block_at_all(make_learner, make_client, kind):
    """Depth 0: the head, if any, and the gate; the whole model is a prefix."""
    results = []
    for budget in (PLENTY, 0):
        learner = make_learner(kind, cache_bytes=budget)
        client = make_client(learner.backbone)
        names = learner.layout.expert(0)
        expert = Expert(learner.initial_expert(names, 0))
        start = View(expert, Expert(random_expert(learner, 1)), learner.initial_gate(0))
        view = learner.fit([Fit(start, names, client, 1, 0)])[0]
        results.append({**view.expert.tensors, **view.gate})
    for name, tensor in results[1].items():
        torch.testing.assert_close(results[0][name], tensor, atol=1e-5, rtol=0)


def test_rows_that_are_empty_are_no_reason_to_fail(make_learner, make_client):
    learner = make_learner("clip", cache_bytes=PLENTY)
    client = make_client(learner.backbone)
    none = client.val.take(np.array([], dtype=np.int64))
    client = replace(client, val=none, test=none)
    expert = Expert(random_expert(learner, 1))
    view = View(expert, expert, learner.initial_gate(0))
    after = learner.fit([Fit(view, learner.layout.expert(1), client, 1, 0)])[0]
    assert learner.score(after, client, "val").rows == 0


def room_on_disk(learner, folder, disk=PLENTY, memory=1, dtype=None):
    room = Room(memory, disk, folder, dtype)
    learner.prefixes = PrefixCache(learner.backbone, learner.slots, room, learner.meter)
    return learner


def fitted(learner, client):
    names = learner.layout.expert(1)
    view = View(Expert(learner.initial_expert(names, 0)))
    return learner.fit([Fit(view, names, client, 2, 5)])[0].expert.tensors


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_what_memory_has_no_room_for_goes_to_nameless_files(
    make_learner, make_client, tmp_path, kind
):
    memory = make_learner(kind, cache_bytes=PLENTY)
    disk = room_on_disk(make_learner(kind), tmp_path)
    client = make_client(memory.backbone)
    expected = fitted(memory, client)
    got = fitted(disk, client)
    assert fingerprint(got) == fingerprint(expected)
    assert {kept.on_disk for kept in disk.prefixes._kept.values()} == {True}
    assert disk.prefixes.bytes == memory.prefixes.bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_memory_is_filled_before_files_and_files_not_beyond_their_budget(
    make_learner, make_rows, tmp_path
):
    learner = make_learner("clip", cache_bytes=PLENTY)
    some = [make_rows(learner.backbone, 6, seed) for seed in range(4)]
    expert = Expert(random_expert(learner, 1))
    learner.features(expert, make_rows(learner.backbone, 6, 9))
    one = learner.prefixes.bytes
    room_on_disk(learner, tmp_path, disk=2 * one, memory=one)
    for rows in some:
        learner.features(expert, rows)
    kept = [learner.prefixes._kept.get(rows) for rows in some]
    assert [k and k.on_disk for k in kept] == [False, True, True, None]
    assert learner.prefixes.bytes == 3 * one


@contextmanager
def files_no_larger_than(count):
    """As on a full disk: reserving more fails, by the kernel's own limit."""
    resource = pytest.importorskip("resource", reason="this system has no limits on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("trouble", ["full", "gone"])
def test_a_full_disk_is_said_once_and_nothing_is_lost(
    make_learner, make_client, tmp_path, caplog, trouble
):
    folder = tmp_path if trouble == "full" else tmp_path / "gone"
    disk = room_on_disk(make_learner("clip"), folder)
    client = make_client(disk.backbone)
    expected = fitted(make_learner("clip"), client)
    with files_no_larger_than(64 if trouble == "full" else PLENTY):
        got = fitted(disk, client)
    assert fingerprint(got) == fingerprint(expected)
    assert disk.prefixes.bytes == 0
    assert list(tmp_path.iterdir()) == []
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(folder) in record.getMessage()
    assert "no room" in record.getMessage()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_storage_rounds_as_stated(make_learner, make_rows, dtype, error):
    learner = make_learner("clip", cache_bytes=PLENTY)
    half = make_learner("clip")
    room_on_disk(half, None, memory=PLENTY, dtype=dtype)
    rows = make_rows(learner.backbone, 6)
    exact, rounded = (m.prefixes.keep(rows, 2, "") for m in (learner, half))
    assert rounded.states.dtype == dtype
    assert 2 * rounded.bytes == exact.bytes
    assert ((rounded.states.float() - exact.states).abs() <= error * exact.states.abs()).all()
    assert not torch.equal(rounded.states.float(), exact.states)
    expert = Expert(random_expert(learner, 1))
    got, expected = half.features(expert, rows), learner.features(expert, rows)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)


def test_states_beyond_float16_are_not_kept_and_said_so(make_learner, make_rows, caplog):
    learner = room_on_disk(make_learner("clip"), None, memory=PLENTY, dtype=torch.float16)
    rows = make_rows(learner.backbone, 6)
    norm = learner.backbone.model.vision_model.pre_layrnorm
    norm.weight.data.mul_(1e6)
    for _ in range(2):
        assert learner.prefixes.keep(rows, 1, "") is None
    assert learner.prefixes.bytes == 0
    (record,) = caplog.records
    assert "runtime.cache_dtype=bfloat16" in record.getMessage()
    learner.spent()
    learner.prefixes.keep(rows, 1, "")
    assert learner.spent().flops == 0  # not tried again


def test_a_device_that_is_full_is_no_reason_to_fail(make_learner, make_rows, tmp_path, monkeypatch):
    """As CUDA says it; what was meant for its memory goes to a file."""
    learner = room_on_disk(make_learner("clip"), tmp_path, memory=PLENTY)
    rows, empty = make_rows(learner.backbone, 6), torch.empty

    def full(*size, **options):
        if size[0][0] == len(rows):
            raise torch.OutOfMemoryError
        return empty(*size, **options)

    with monkeypatch.context() as patch:
        patch.setattr("fedms.models.prefix.torch.empty", full)
        kept = learner.prefixes.keep(rows, 1, "")
    assert kept.on_disk


def test_a_random_prefix_is_not_kept_and_said_so(make_learner, make_rows, caplog):
    learner = make_learner("sentence", cache_bytes=PLENTY)
    rows = make_rows(learner.backbone, 6)
    dropout = learner.backbone.model.get_submodule(learner.slots.root)[0].output.dropout
    dropout.p = 0.1
    assert learner.prefixes.keep(rows, 1, "") is not None
    dropout.train()
    for _ in range(2):
        assert learner.prefixes.keep(rows, 2, "") is None
    (record,) = caplog.records
    assert "dropout" in record.getMessage()
