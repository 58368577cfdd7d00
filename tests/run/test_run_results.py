"""The models a run makes: what they depend on, that they differ, and that others load them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from fedms import run as run_module
from fedms.build import build
from fedms.core.algorithm import View
from fedms.core.errors import DivergenceError, UserError
from fedms.core.rows import Rows
from fedms.models.names import EMBEDDED
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates, ServerStates

_SHARED = ({"zero_shot", "global", "personal"}, True, True, False)
_BOTH = ({"zero_shot", "global", "local", "personal"}, True, True, True)
_OWN = ({"zero_shot", "local", "personal"}, True, False, True)
METHODS = {
    # roles with scores, whether anything is sent, whether the global expert and clients' are kept
    "fedms": _BOTH,
    "finetune": _BOTH,
    "fedavg": _SHARED,
    "fedprox": _SHARED,
    "fedadam": _SHARED,
    "ffa": _SHARED,
    "flora": _SHARED,
    "promptfl": ({"global", "personal"}, True, True, False),
    "fedclip": ({"global", "personal"}, True, True, False),
    "fedex": _SHARED,
    'flexlora lora.ranks={"0"=1,"*"=3}': _SHARED,
    "fedra": _SHARED,
    "centralised": _SHARED,
    "ditto": _BOTH,
    "fedper": _OWN,
    "fedrep": _OWN,
    "fedsa": _OWN,
    "dual": _BOTH,
    "fedalt": _OWN,
    "feddpa": _BOTH,
    "local": ({"zero_shot", "local", "personal"}, False, False, True),
    "probe model.head=linear": ({"local", "personal"}, False, False, True),
}


@pytest.mark.quick("fedms", "fedavg", "promptfl", "fedrep", "local")
@pytest.mark.parametrize("method", METHODS)
def test_methods(done, method):
    roles, sends, shared, private = METHODS[method]
    finished = done(*f"method={method}".split())
    test, cost = finished.summary["test"], finished.summary["cost"]
    mixes = {"oracle"} if method == "fedms" else set()
    assert {role for role, scores in test.items() if scores is not None} == roles | mixes
    assert (cost["upload_bytes"] > 0) == (cost["download_bytes"] > 0) == sends
    assert finished.summary["rounds"] == (2 if method in ("ditto", "fedrep") else 4)
    assert (finished.path / "adapters" / "global").is_dir() == shared
    assert (finished.path / "adapters" / "clients").is_dir() == private
    assert (finished.path / "checkpoints" / "clients").is_dir() == private


def test_fedavg_is_stage_1_of_fedms_with_all_blocks(done):
    alone = ("stage1.rounds=4", "stage2.rounds=0", "sal.trigger=all", "stage1.prior=none")
    first, second = done(*alone), done("method=fedavg")
    mine = {k: v for k, v in first.bytes().items() if k.startswith("adapters/global/")}
    theirs = {k: v for k, v in second.bytes().items() if k.startswith("adapters/global/")}
    assert mine == theirs != {}


def test_centralised_training_sees_all_rows_and_is_scored_client_by_client(done):
    finished = done("method=centralised")
    test = finished.summary["test"]["personal"]
    assert set(test["per_client"]) == {"0", "1", "2"}
    assert {tuple(line["cohort"]) for line in finished.lines("rounds")} == {("everyone",)}
    sizes = json.loads((finished.path / "partition.json").read_text())
    assert [s["id"] for s in sizes] == ["0", "1", "2"]
    steps = {line["costs"]["flops"] for line in finished.lines("rounds")}
    assert len(steps) == 1


def test_centralised_training_of_one_client_is_fedavg(done, tmp_path, model_folder):
    """Of one that has the name which all have together: the order of its rows goes by that."""
    words = ["lost card", "pay my card", "a red cat", "the blue bird is not a dog"] * 12
    rows = "".join(f"{text} {i},{len(text) % 3},everyone\n" for i, text in enumerate(words))
    (tmp_path / "data.csv").write_text("text,label,who\n" + rows)
    settings = (
        *("data.source=csv", f"data.path={tmp_path / 'data.csv'}"),
        *("partition.by=column", "partition.column=who", f"model.name={model_folder('sentence')}"),
    )
    pooled, plain = done(*settings, "method=centralised"), done(*settings, "method=fedavg")
    assert pooled.bytes("adapters/global") == plain.bytes("adapters/global") != {}
    assert pooled.summary["test"] == plain.summary["test"]
    for first, second in zip(pooled.lines("rounds"), plain.lines("rounds"), strict=True):
        assert first["cohort"] == second["cohort"] == ["everyone"]
        assert first["validation"] == second["validation"]
        assert first["costs"]["flops"] == second["costs"]["flops"]


DIVERGE = [
    (),
    ("method=local",),
    ("stage1.rounds=0",),
    ("method=fedavg", "training.batch_size=64", "evaluate_every=1"),  # one step: finite weights
]


@pytest.mark.parametrize("options", DIVERGE, ids=str)
def test_diverging_training_is_the_users_to_mend(tmp_path, small, options):
    with pytest.raises(DivergenceError, match=r"training\.learning_rate"):
        run_module.run(small("training.learning_rate=1e20", *options), tmp_path / "run")


def test_a_name_for_a_class_that_is_not_there(small):
    with pytest.raises(UserError, match=r"label_names of '10', which is no class.*did you mean 1"):
        build(small("model.label_names.10=ten"))
    build(small("model.label_names.9=nine", 'data.drop_labels=["9"]'))


def test_seeds_differ(done):
    first, second = done().tensors(), done("seed=1").tensors()
    name = next(n for n in sorted(first) if n.startswith("adapters/global/"))
    assert not torch.equal(first[name], second[name])


def test_local_experts_differ(done):
    tensors = done().tensors("adapters")
    name = next(n for n in tensors if n.startswith("adapters/global/") and "lora_B" in n)
    path, key = name.split(":")
    same = [tensors[f"adapters/clients/{c}/local/{path.split('/')[-1]}:{key}"] for c in "012"]
    for i, one in enumerate([*same, tensors[name]]):
        for other in [*same, tensors[name]][:i]:
            assert not torch.allclose(one, other, atol=1e-6)


def test_private_state_is_kept_with_the_client_alone(done):
    for file, key in (name.split(":") for name in done().tensors("checkpoints")):
        private = file.startswith("checkpoints/clients/")
        assert private or not key.startswith(("local/", "kept/"))
        assert not (private and key.startswith("global/"))


def _with_rows(experiment, change):
    return dataclasses.replace(experiment, clients=tuple(change(c) for c in experiment.clients))


def _permuted(rows: Rows) -> Rows:
    return Rows(rows.columns, (rows.labels + 3) % 10)


@pytest.mark.parametrize("split", ["test", "train"])
def test_test_rows_never_influence_training(done, small, tmp_path, monkeypatch, split):
    expected = done()  # before anything is changed

    def changed(config, scratch, table):
        return _with_rows(
            build(config, scratch, table),
            lambda c: dataclasses.replace(c, **{split: _permuted(c.split(split))}),
        )

    monkeypatch.setattr(run_module, "build", changed)
    summary = run_module.run(small(), tmp_path / "run")
    finished = type(expected)(tmp_path / "run", summary)
    assert (finished.bytes() == expected.bytes()) == (split == "test")
    assert (finished.bytes("checkpoints") == expected.bytes("checkpoints")) == (split == "test")
    assert summary["test"]["personal"] != expected.summary["test"]["personal"]


def test_results_do_not_depend_on_the_order_of_clients(done, small, tmp_path):
    experiment = build(small())
    states = ClientStates(tmp_path / "states")
    order = [experiment.clients[i] for i in (2, 0, 1)]
    simulator = Simulator(experiment.algorithm, experiment.learner, order, states)
    start = experiment.algorithm.init(experiment.learner, 0)
    rounds = list(run_rounds(experiment.algorithm, simulator, start))
    assert [record.cohort for _, record in rounds] == [("0", "1", "2")] * 4
    state = rounds[-1][0]
    expected = ServerStates(done().path / "checkpoints" / "server").load()[0]
    assert expected.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(t, state.tensors[n]) for n, t in expected.tensors.items())
    for client in "012":
        mine = (tmp_path / "states" / client / "000003.safetensors").read_bytes()
        name = f"checkpoints/clients/{client}/000003.safetensors"
        assert mine == done().bytes("checkpoints")[name]


LOADED = [
    (),
    ("sal.trigger=schedule", "sal.every=1", "sal.caps.0=2"),  # experts of several blocks
    ("stage2.local_init=zero", "lora.targets=qkvo", "lora.rank=3", "stage2.checkpoint=last"),
]


@pytest.mark.quick("default")
@pytest.mark.parametrize("overrides", LOADED, ids=["default", "growing", "other adapters"])
def test_plain_peft_loads_every_local_expert(done, small, overrides):
    finished, experiment = done(*overrides), build(small(*overrides))
    states = ClientStates(finished.path / "checkpoints" / "clients")
    server = ServerStates(finished.path / "checkpoints" / "server").load()[0]
    for client in experiment.clients:
        view = experiment.algorithm.view(server, states.load(client.id), "local")
        plain = dataclasses.replace(view, calibration=None)
        ours = experiment.learner.predict(plain, client, client.test).log_probabilities
        zero = experiment.learner.predict(
            View(dataclasses.replace(view.expert, tensors={})), client, client.test
        )
        folder = finished.path / "adapters" / "clients" / client.id / "local"
        theirs = _logits(folder, client.test.columns["pixel_values"], finished).log_softmax(-1)
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert not torch.allclose(zero.log_probabilities, theirs, atol=1e-2)


def _logits(folder, pixels, finished):
    """Logits from transformers and PEFT alone, given the prompts the run wrote down."""
    import json

    from peft import PeftModel
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    head = json.loads((finished.path / "adapters" / "head.json").read_text())
    (prompts,) = head["prompts"]
    tokens = AutoTokenizer.from_pretrained(EMBEDDED)(prompts, padding=True, return_tensors="pt")
    images = [Image.fromarray(np.asarray(p).transpose(1, 2, 0)) for p in pixels]
    processor = CLIPImageProcessor.from_pretrained(EMBEDDED)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(EMBEDDED), folder).eval()
    with torch.no_grad():
        return model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=processor(images=images, return_tensors="pt")["pixel_values"],
        ).logits_per_image
